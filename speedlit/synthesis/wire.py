"""One OpenAI-compatible endpoint: where it is, how it wants the key, one exchange with it, and what the bytes that came back say.

The official client does the HTTP; its own retries are off, because they would pay for an answer twice without a trace. Nothing that
leaves this file holds the key.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, urlsplit
from urllib.request import getproxies, proxy_bypass

from speedlit.context import Request
from speedlit.errors import UsageError

REPEATED = "speedlit_repeated"  # set by connections.py in the extensions of a response
SECRET = 12  # shorter keys are placeholders such as EMPTY: words that an answer may well hold
OPENAI = "https://api.openai.com/v1"


class Answer:
    """What one body says: text, finish reason and token counts; ``fault`` is set where it is no chat completion."""

    __slots__ = ("text", "finish_reason", "tokens_in", "tokens_out", "fault")

    def __init__(self, raw: str) -> None:
        self.text, self.finish_reason, self.tokens_in, self.tokens_out, self.fault = "", "stop", 0, 0, ""
        try:
            body = json.loads(raw)
            usage = body.get("usage") or {}
            self.tokens_in, self.tokens_out = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
            choice = body["choices"][0]
            message = choice["message"]
            text = message.get("content") or message.get("refusal") or ""
            self.finish_reason = choice.get("finish_reason") or "stop"
            if isinstance(text, str):
                self.text = text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # no file takes half a pair
            else:
                self.fault = "content_is_no_text"
        except ValueError:
            self.fault = "body_is_no_json"
        except (KeyError, IndexError, TypeError, AttributeError):
            self.fault = "body_has_no_choice"


@dataclass
class Outcome:
    """How one HTTP attempt ended.

    Args:
        status: of the response; 0 where none came.
        raw: its body, without the key.
        reason: why this is no answer; empty where it may be one.
        wait: seconds that the server asked for.
        connected: False when nobody listened.
        seconds: from sending to the end.
    """

    status: int = 0
    raw: str = ""
    reason: str = ""
    wait: float | None = None
    connected: bool = True
    seconds: float = 0.0

    @property
    def paid(self) -> bool:
        """Whether the server took the request as done, usable or not."""
        return 200 <= self.status < 300

    @property
    def overloaded(self) -> bool:
        """Whether fewer requests at a time would have helped."""
        return self.status in (429, 503) or self.reason == "timeout"


def read_key() -> str:
    """The key: ``OPENAI_API_KEY``, or the content of the file that ``OPENAI_API_KEY_FILE`` names; empty where there is none.

    Raises:
        UsageError: the file cannot be read, or what is there can be no key.
    """
    key, name = os.environ.get("OPENAI_API_KEY", ""), "OPENAI_API_KEY"
    path = os.environ.get("OPENAI_API_KEY_FILE", "")
    if not key.strip() and path:
        name = f"the file {path} (OPENAI_API_KEY_FILE)"
        try:
            key = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise UsageError(f"cannot read {name}: {reason}; let it hold the key alone") from error
    key = key.strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(f"{name} holds blanks or letters that no key has; let it hold the key alone")
    return key


def address(url: str) -> SplitResult:
    """A base URL in its parts.

    Raises:
        UsageError: it is none, or a name or password stands in it.
    """
    shown = url.split("?")[0].rpartition("@")[2]
    try:
        parts = urlsplit(url.strip())
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise UsageError(f"teacher.base_url (OPENAI_BASE_URL) {shown!r} is no address: it is written http://host:port/v1")
    if parts.username or parts.password:
        raise UsageError(f"teacher.base_url (OPENAI_BASE_URL) for {shown} holds a name or password: take it out; keys stand in OPENAI_API_KEY")
    return parts


class Endpoint:
    """Address and key of a server. ``name`` is its address as it may be shown: without query.

    Args:
        url: such as ``http://127.0.0.1:8000/v1``, or an Azure deployment with ``?api-version=...``; None means OPENAI_BASE_URL, else OpenAI itself.

    Raises:
        UsageError: the address is none, or a key stands in it.
    """

    def __init__(self, url: str | None = None) -> None:
        parts = address(url or os.environ.get("OPENAI_BASE_URL") or OPENAI)
        self.scheme, self.host, self.key = parts.scheme, str(parts.hostname), read_key()
        self.query = dict(parse_qsl(parts.query, keep_blank_values=True))
        self.name = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/chat/completions')}"
        self.azure = "api-version" in self.query or self.host.endswith(".azure.com")
        self._spellings = {self.key, quote(self.key, safe=""), self.key.replace("/", "\\/")}

    def client(self) -> Any:
        """An ``AsyncOpenAI`` for it, without retries or time limits of its own. A redirect takes the key nowhere; loopback passes proxies by."""
        import openai

        from speedlit.synthesis.connections import Connections, http

        verify = http.create_ssl_context() if self.scheme == "https" else False
        local = self.host in ("127.0.0.1", "localhost", "::1") or proxy_bypass(self.host)
        proxy = None if local else getproxies().get(self.scheme) or getproxies().get("all")

        def line() -> Any:
            try:
                return http.AsyncHTTPTransport(verify=verify, proxy=proxy)
            except (ImportError, ValueError) as error:
                raise UsageError(f"the proxy that the environment names for {self.scheme} cannot be used: {error}") from error

        transport = Connections(line)
        client = openai.DefaultAsyncHttpxClient(transport=transport, follow_redirects=False)
        query: Mapping[str, object] = self.query
        return openai.AsyncOpenAI(
            base_url=self.name, api_key=self.key or "none", max_retries=0, timeout=None, http_client=client, default_query=query or None
        )

    def headers(self) -> dict[str, Any]:
        """Headers of each request beyond the client's own: Azure takes the key under another name."""
        import openai

        return {"api-key": self.key, "Authorization": openai.Omit()} if self.azure else {}

    def clean(self, text: str, least: int = 6) -> str:
        """``text`` without the key, should a server echo it. JSON can spell it in more ways: what was decoded is cleaned once more."""
        if len(self.key) >= least:
            for spelling in self._spellings:
                text = text.replace(spelling, "[key]")
        return text


class Wire:
    """Exchanges with one endpoint, inside one event loop.

    Args:
        endpoint: where.
        timeout: seconds after which one exchange is given up, however it drips.
    """

    kind, mark = "http", ""  # the mark goes into the journal's keys; servers have none, whose port may change

    def __init__(self, endpoint: Endpoint, timeout: float) -> None:
        self.endpoint, self.timeout = endpoint, timeout
        self.name, self.clean = endpoint.name, endpoint.clean
        self.flying = 0
        self._client: Any = None
        self._raw: Any = None
        self._options: Any = None

    async def send(self, body: Mapping[str, Any], doubted: str = "") -> Outcome:
        """One exchange. ``doubted`` is a body that this request was refused as delivered twice: when it comes again, it is real."""
        start = time.monotonic()
        self.flying += 1
        try:
            outcome = await self._exchange(body, doubted)
        finally:
            self.flying -= 1
        outcome.seconds = time.monotonic() - start
        return outcome

    async def close(self) -> None:
        """Free the sockets."""
        if self._client is not None:
            await self._client.close()

    async def _exchange(self, body: Mapping[str, Any], doubted: str) -> Outcome:
        import openai

        clean = self.clean
        try:
            response = await within(self.timeout, self._post(body))
            raw = clean(response.text, SECRET)
            twice = response.extensions.get(REPEATED) and raw != doubted
            return Outcome(response.status_code, raw, "delivered_twice" if twice else "")
        except openai.APIStatusError as error:
            raw, headers = clean(error.response.text), error.response.headers
            return Outcome(error.status_code, raw, clean(error_code(raw)) or f"status_{error.status_code}", retry_after(headers))
        except (asyncio.TimeoutError, openai.APITimeoutError):
            return Outcome(reason="timeout")
        except openai.APIConnectionError as error:
            cause = error.__cause__
            refused = type(cause).__name__ in ("ConnectError", "UnsupportedProtocol", "LocalProtocolError")
            return Outcome(reason=clean(str(cause) or type(cause).__name__) if refused else "connection_lost", connected=not refused)
        except (ValueError, UnicodeError) as error:  # a body that cannot even be decoded
            return Outcome(200, "", f"unreadable_body:{type(error).__name__}")

    def _post(self, body: Mapping[str, Any]) -> Any:
        if self._client is None:
            from speedlit.synthesis.connections import http

            self._client, self._raw = self.endpoint.client(), http.Response
            self._options = {"headers": self.endpoint.headers()}
        return self._client.post("/chat/completions", body=body, cast_to=self._raw, options=self._options)


async def within(seconds: float, work: Awaitable[Any]) -> Any:
    """The result of ``work``, or ``asyncio.TimeoutError``."""
    if sys.version_info < (3, 11):
        return await asyncio.wait_for(work, seconds)
    async with asyncio.timeout(seconds):  # without a task of its own
        return await work


def chat_body(model: str, request: Request, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The body of a chat completion; keys without a value are left out."""
    s = request.sampling
    body = {"model": model, "messages": list(request.messages), "temperature": s.temperature, "top_p": s.top_p, "max_tokens": s.max_tokens, "seed": s.seed}
    if request.schema is not None:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": dict(request.schema)}}
    return {key: value for key, value in {**body, **(extra or {})}.items() if value is not None}


def error_code(raw: str) -> str:
    """The server's own error code, where it gives one."""
    try:
        error = json.loads(raw).get("error")
    except (ValueError, AttributeError):
        return ""
    if not isinstance(error, dict):
        return ""
    code = error.get("code") or error.get("type")
    if "maximum context length" in str(error.get("message")):
        return "context_length_exceeded"
    return code if isinstance(code, str) else ""


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from ``retry-after-ms``, or ``retry-after`` in seconds or as a date."""
    try:
        if "retry-after-ms" in headers:
            return max(float(headers["retry-after-ms"]) / 1000, 0.0)
        return max(float(headers["retry-after"]), 0.0) if "retry-after" in headers else None
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError):
        return None
