"""A real HTTP server on loopback whose answers a test scripts: healthy chat completions, and every fault a teacher can have."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any


@dataclass
class Fault:
    """An answer that is not a chat completion, or not one that arrives well. ``how``: status | reset | hang | drip | twice."""

    how: str = "status"
    status: int = 200
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)


NUMBERS = itertools.count()


def completion(text: str, finish_reason: str = "stop") -> str:
    """A healthy body; its id is new each time, as with every real server."""
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text}}
    return json.dumps({"id": f"c-{next(NUMBERS)}", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage})


JSON_429 = '{"error": {"message": "slow down", "code": "rate_limit_exceeded"}}'
FAULTS: dict[str, Callable[[str], Fault]] = {  # each made from the text that a healthy answer would hold
    "429": lambda text: Fault(status=429, body=JSON_429),
    "429 with Retry-After": lambda text: Fault(status=429, body="{}", headers={"retry-after": "0.02"}),
    "429 with a date": lambda text: Fault(status=429, body="{}", headers={"retry-after": "Mon, 01 Jan 2024 00:00:00 GMT"}),
    "500": lambda text: Fault(status=500, body="oops"),
    "503 in HTML": lambda text: Fault(status=503, body="<html>busy</html>", headers={"content-type": "text/html"}),
    "reset": lambda text: Fault("reset"),
    "hang": lambda text: Fault("hang"),
    "drip": lambda text: Fault("drip", body=completion("too slow") + " " * 200),
    "truncated JSON": lambda text: Fault(body=completion(text)[:-30]),
    "wrong JSON": lambda text: Fault(body='{"object": "list", "data": []}'),
    "empty choices": lambda text: Fault(body='{"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 0}}'),
    "HTML with status 200": lambda text: Fault(body="<html>log in</html>", headers={"content-type": "text/html"}),
    "delivered twice": lambda text: Fault("twice", body=completion(text)),
}
CLEAN = ("delivered twice",)  # of these the first copy is a good answer


def echo(body: dict[str, Any], n: int) -> str:
    """The healthy answer of most tests."""
    return "answer to " + body["messages"][-1]["content"]


def faulty(share: float, seed: int = 0, without: tuple[str, ...] = ()) -> Callable[[dict[str, Any], int], str | Fault]:
    """``echo``, but for a share of the attempts, by question and attempt alone, that go wrong in one of all ways."""
    kinds = [kind for kind in FAULTS if kind not in without]

    def answer(body: dict[str, Any], n: int) -> str | Fault:
        rng = random.Random(f"{seed}:{body['messages'][-1]['content']}:{n}")
        return FAULTS[rng.choice(kinds)](echo(body, n)) if rng.random() < share else echo(body, n)

    return answer


class Server:
    """``answer(body, n)`` gives a text or a Fault; n counts the requests with this last message, from 0.

    Attributes:
        asked: requests by their last message; ``answered`` those that left with a good answer.
        heads: the last request's line and headers, ``most`` the most requests at a time.
    """

    def __init__(self, answer: Callable[[dict[str, Any], int], str | Fault], delay: float = 0.0) -> None:
        self.answer, self.asked, self.answered, self.delay = answer, Counter(), Counter(), delay
        self.flying = self.most = 0
        self.heads = ""
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
                self.heads = (await reader.readuntil(b"\r\n\r\n")).decode()
                head = self.heads.lower()
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
        head = f"HTTP/1.1 {fault.status} {HTTPStatus(fault.status).phrase}\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items()) + "\r\n"
        writer.write(head.encode())
        if fault.how == "drip":
            for byte in data:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.05)
        writer.write(data + head.encode() + data if fault.how == "twice" else data)
        await writer.drain()
        if not isinstance(said, Fault) or fault.how == "twice":
            self.answered[text] += 1
