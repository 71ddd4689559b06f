"""Client and journal: requests per second of our teacher client beside a bare ``AsyncOpenAI`` loop of the same concurrency.

The server answers at once and has a process of its own. Ours stores every attempt twice (before it leaves, and with its answer) on a
disk, in order; the bare loop keeps nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import time
from pathlib import Path

from scripts.bench.row import Row
from speedlit.context import Request, Sampling
from speedlit.synthesis.client import HTTPBackend

COUNT, CONCURRENCY = 3000, 64
TEXT = "Write a user query and a positive document as JSON about wooden boats of a crimson colour near the damp woods. " * 6
ANSWER = '{\\"user_query\\": \\"crimson boat near the woods\\", \\"positive_document\\": \\"' + "a wooden boat that is damp and old " * 8 + '\\"}'


class Quick(asyncio.Protocol):
    """One connection of a server that answers everything at once."""

    numbers = itertools.count()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport, self.buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        """Answer when a request is complete."""
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        if len(rest) < length:
            return
        self.buffer = rest[length:]
        choice = '{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "' + ANSWER + '"}}'
        usage = '{"prompt_tokens": 140, "completion_tokens": 90, "total_tokens": 230}'
        body = f'{{"id": "c-{next(self.numbers)}", "object": "chat.completion", "created": 1, "model": "m", "choices": [{choice}], "usage": {usage}}}'
        self.transport.write(f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())


async def serve() -> None:
    """Serve on a free port, printed first, until standard input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Quick, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


def client(folder: Path) -> Row:
    """The row."""
    command = [sys.executable, "-m", "scripts.bench.client"]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # ends with this process: its input closes
    assert server.stdout is not None
    url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
    requests = [Request(f"r{i}", [{"role": "user", "content": f"{i} {TEXT}"}], Sampling(1.0, 1.0, 512, i)) for i in range(COUNT)]
    rounds = itertools.count()

    def ours() -> float:
        start = time.perf_counter()
        backend = HTTPBackend("m", url, folder / f"round-{next(rounds)}" / "journal.sqlite", concurrency=CONCURRENCY)
        texts = [reply.text for reply in backend.generate(requests)]
        backend.close()
        assert len(texts) == COUNT and all(texts)
        return COUNT / (time.perf_counter() - start)

    async def bare() -> list[str]:
        from openai import AsyncOpenAI

        texts, todo = [""] * COUNT, iter(enumerate(requests))
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as openai:

            async def worker() -> None:
                for i, r in todo:
                    s = r.sampling
                    answer = await openai.chat.completions.create(
                        model="m", messages=r.messages, temperature=s.temperature, top_p=s.top_p, max_tokens=s.max_tokens, seed=s.seed
                    )
                    texts[i] = answer.choices[0].message.content or ""

            await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
        return texts

    def theirs() -> float:
        start = time.perf_counter()
        assert all(asyncio.run(bare()))
        return COUNT / (time.perf_counter() - start)

    return Row("requests/s", "AsyncOpenAI", ours, {"bare loop of the same concurrency": theirs})


if __name__ == "__main__":
    asyncio.run(serve())
