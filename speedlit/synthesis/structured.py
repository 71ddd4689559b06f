"""Asking an HTTP server to keep its answers to a JSON schema, where it really does.

Some servers take ``response_format`` and ignore it without a word. So one question is asked first whose answer no writer would guess; its
answer is in the journal like any other. A server that fails it is asked without schemas, and that is said once.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from speedlit.context import Backend, Reply, Request, Sampling
from speedlit.synthesis.parsing import Rejected, decode
from speedlit.synthesis.schemas import obj
from speedlit.synthesis.templates import derived_seed

PROBE = obj({"colour": {"type": "string", "enum": ["octarine"]}})
QUESTION = "Name a colour that one can see in a garden."


class Structured:
    """A backend that passes schemas on only after its server has shown that it honours them.

    Args:
        inner: answers the requests.
        prober: answers the probe; a live client where ``inner`` takes its time.
        url: the server, for the message and for the probe's key: another server is probed anew.
        say: shows one line.
    """

    def __init__(self, inner: Backend, prober: Backend, url: str, say: Callable[[str], None] | None = None) -> None:
        self.inner, self.prober, self.url = inner, prober, url
        self._say = say or (lambda text: print(text, file=sys.stderr, flush=True))
        self._honoured: bool | None = None

    def generate(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """Answer every request, in order, under its schema where the server can."""
        source = iter(requests)
        first = next(source, None)
        if first is None:
            return
        stream = itertools.chain([first], source)
        yield from self.inner.generate(stream if first.schema is None or self.honoured() else (replace(r, schema=None) for r in stream))

    def honoured(self) -> bool:
        """Whether the server keeps to schemas; asked once."""
        if self._honoured is None:
            [reply] = self.prober.generate([probe(self.url)])
            fault = verdict(reply)
            self._honoured = not fault
            if fault:
                self._say(f"  teacher.structured: {self.url} does not keep answers to a JSON schema ({fault}); going on without, answers are checked as before")
        return self._honoured

    def close(self) -> None:
        """Close both."""
        self.inner.close()
        if self.prober is not self.inner:
            self.prober.close()


def probe(url: str) -> Request:
    """The question that tells; its seed belongs to the server."""
    return Request("probe", [{"role": "user", "content": QUESTION}], Sampling(0.0, 1.0, 64, derived_seed("probe", url)), schema=PROBE)


def verdict(reply: Reply) -> str:
    """Why an answer to the probe does not follow its schema; empty where it does."""
    if reply.error:
        return f"it refuses response_format: {reply.error}"
    try:
        value, parsed_by = decode(reply.text, dict, reply.finish_reason)
    except Rejected:
        value, parsed_by = None, ""
    return "" if value == {"colour": "octarine"} and parsed_by == "strict" else "it ignores response_format"
