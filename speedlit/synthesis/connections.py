"""Connections to one server, each with one request at a time. Imported when the first request leaves: it brings the HTTP library in."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Callable
from importlib.util import find_spec
from typing import Any

from speedlit.synthesis.wire import REPEATED

http: Any = importlib.import_module("httpx2" if find_spec("httpx2") else "httpx")  # what openai 3 speaks through, and what it did before



class Line:
    """One connection, and the last body that came over it."""

    def __init__(self, transport: Any) -> None:
        self.transport, self.last = transport, b""


class Connections(http.AsyncBaseTransport):  # type: ignore[misc]
    """As many connections as requests are in flight; the one that was used last is used next.

    The library's own pool asks the system about every idle socket for each request, which with 64 of them costs more than the request.
    And it does not notice what this one does: a server or proxy that delivers an answer twice would have the second copy taken for the
    answer to the next request of that connection, and so on for ever. So a body that repeats the one before it is marked, and its
    connection dropped.

    Args:
        make: a transport of the library, for one connection.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._idle: list[Line] = []

    async def handle_async_request(self, request: Any) -> Any:
        """Send one request over a connection of its own."""
        line = self._idle.pop() if self._idle else Line(self._make())
        try:
            response = await line.transport.handle_async_request(request)
        except BaseException:
            self._idle.append(line)  # it has closed its socket and will open another
            raise
        response.stream = Body(response, line, self._idle)
        return response

    async def aclose(self) -> None:
        """Close what is idle; what is in flight closes by itself."""
        while self._idle:
            await self._idle.pop().transport.aclose()


class Body(http.AsyncByteStream):  # type: ignore[misc]
    """The body of a response; frees its line at the end."""

    def __init__(self, response: Any, line: Line, idle: list[Line]) -> None:
        self._response, self._stream, self._line, self._idle = response, response.stream, line, idle
        self._parts: list[bytes] = []
        self._closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._stream:
            self._parts.append(part)
            yield part

    async def aclose(self) -> None:
        """End it."""
        if self._closed:
            return
        self._closed = True
        line, body = self._line, b"".join(self._parts)
        await self._stream.aclose()
        if body and body == line.last:
            self._response.extensions[REPEATED] = True
            line.last = b""
            await line.transport.aclose()
        else:
            line.last = body
        self._idle.append(line)
