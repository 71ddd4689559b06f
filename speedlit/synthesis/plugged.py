"""A teacher that is a Python class and no server: another API, or a model in this process. One method is all that it needs.

Everything around an answer (the journal, the budget, order, retries, pacing) stays what it is for a server: the client of ``client.py``
takes a ``Plugged`` in the place of its ``Wire``.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from speedlit.errors import SpeedlitError, UsageError
from speedlit.files import content_id
from speedlit.plugins import load, plugins
from speedlit.synthesis.wire import Outcome, within

KEY = "teacher.backend"


class Teacher(Protocol):
    """What a plug-in is."""

    def answer(self, body: Mapping[str, Any]) -> str | Mapping[str, Any]:
        """Answer one request; called from several threads at a time.

        Args:
            body: of a chat completion: ``model``, ``messages``, ``temperature``, ``top_p``, ``max_tokens``, ``seed``; perhaps ``response_format``.

        Returns:
            The text, or a whole chat completion with ``choices``, whose ``usage`` is what the budget counts. Of a text alone it is guessed.

        Raises:
            Refused: this one request gets no answer.
            OSError: a passing fault, such as a lost connection or ``TimeoutError``; the request is tried again.
        """
        ...


class Refused(Exception):
    """Raised by a plug-in for a request that it will never answer: the request is rejected, with this as its reason."""


class Plugged:
    """Exchanges with a plug-in, as ``Wire`` has them with a server.

    Args:
        teacher: the plug-in.
        name: its dotted path.
        timeout: seconds after which an answer is no longer waited for; the thread that makes it is left to itself.
        threads: most requests at a time.
        settings: what it was made with: the journal has other answers for others.
    """

    def __init__(self, teacher: Teacher, name: str, timeout: float, threads: int, settings: Mapping[str, Any] | None = None) -> None:
        self.teacher, self.name, self.kind, self.timeout = teacher, name, name, timeout
        self.mark = f" {name} {content_id(dict(settings or {}))}"
        self.flying = 0
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="teacher")

    async def send(self, body: Mapping[str, Any], doubted: str = "") -> Outcome:
        """One exchange."""
        start = time.monotonic()
        self.flying += 1
        try:
            outcome = await self._exchange(body)
        finally:
            self.flying -= 1
        outcome.seconds = time.monotonic() - start
        return outcome

    async def close(self) -> None:
        """Free the threads, and what the plug-in holds, if it has a ``close``."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if callable(close := getattr(self.teacher, "close", None)):
            close()

    def clean(self, text: str, least: int = 6) -> str:
        """The text: no key of ours goes to a plug-in, so none can come back."""
        return text

    async def _exchange(self, body: Mapping[str, Any]) -> Outcome:
        call = asyncio.get_running_loop().run_in_executor(self._threads, self.teacher.answer, body)
        try:
            return Outcome(200, self._body(await within(self.timeout, call), body))
        except (asyncio.TimeoutError, TimeoutError):
            return Outcome(reason="timeout")
        except OSError as error:
            return Outcome(reason=f"{type(error).__name__}: {error}")
        except Refused as error:
            return Outcome(422, reason=str(error) or "refused")

    def _body(self, found: Any, asked: Mapping[str, Any]) -> str:
        if isinstance(found, str):
            usage = {"prompt_tokens": guess("".join(message["content"] for message in asked["messages"])), "completion_tokens": guess(found)}
            found = {"choices": [{"message": {"role": "assistant", "content": found}, "finish_reason": "stop"}], "usage": usage}
        if not isinstance(found, Mapping):
            raise SpeedlitError(f"{KEY} {self.name} answered with {type(found).__name__}; `answer` returns a text, or a chat completion as a dict")
        return json.dumps(dict(found))


def guess(text: str) -> int:
    """Tokens of a text that nobody has counted: one for every four bytes, as English has them about."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // 4)


def open_teacher(name: str, settings: Mapping[str, Any], timeout: float, threads: int) -> Plugged:
    """The plug-in of this name or dotted path, made with ``settings``.

    Raises:
        UsageError: there is none, it takes other settings, or it has no ``answer``.
    """
    made, path = load(name, KEY), plugins().get(name, name)
    try:
        inspect.signature(made).bind(**settings)
    except TypeError as error:
        raise UsageError(f"teacher.settings don't fit {path}: {error}; it takes {inspect.signature(made)}") from error
    teacher = made(**settings)
    if not callable(getattr(teacher, "answer", None)):
        raise UsageError(f"{KEY} {path} has no method `answer`, so it is no teacher (docs/plugins.md)")
    return Plugged(teacher, path, timeout, threads, settings)
