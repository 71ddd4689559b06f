"""A real HTTP server on loopback whose answers a test scripts: healthy chat completions, and every fault a teacher can have."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests", 500: "Internal Server Error", 503: "Unavailable"}
IDS = itertools.count()  # real servers give every completion an id of its own


@dataclass
class Fault:
    """An answer that is not a chat completion. ``how``: status | reset | hang | drip."""

    how: str = "status"
    status: int = 200
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)


def completion(text: str, finish_reason: str = "stop") -> str:
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text}}
    return json.dumps({"id": f"chatcmpl-{next(IDS)}", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage})


class Server:
    """``answer(body, n)`` gives a text or a Fault; n counts the requests with this last message, from 0."""

    def __init__(self, answer: Callable[[dict[str, Any], int], str | Fault], delay: float = 0.0) -> None:
        self.answer, self.asked, self.answered, self.delay = answer, Counter(), Counter(), delay
        self.flying = self.most = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> Server:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self._port))
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(next(line for line in head.splitlines() if line.startswith("content-length")).split(":")[1])
                body = json.loads(await reader.readexactly(length))
                self.flying += 1
                self.most = max(self.most, self.flying)
                try:
                    await self._reply(body, writer)
                finally:
                    self.flying -= 1
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _reply(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        text = body["messages"][-1]["content"]
        said = self.answer(body, self.asked[text])
        self.asked[text] += 1
        await asyncio.sleep(self.delay)
        fault = said if isinstance(said, Fault) else Fault(body=completion(said))
        if fault.how == "reset":
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            raise ConnectionResetError
        if fault.how == "hang":
            await asyncio.sleep(60)
        data = fault.body.encode()
        headers = {"content-type": "application/json", "content-length": str(len(data)), **fault.headers}
        head = f"HTTP/1.1 {fault.status} {REASONS[fault.status]}\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items()) + "\r\n"
        writer.write(head.encode())
        if fault.how == "drip":
            for byte in data:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.05)
        writer.write(data)
        await writer.drain()
        if not isinstance(said, Fault):
            self.answered[text] += 1
