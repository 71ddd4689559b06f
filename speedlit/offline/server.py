"""The embedded teacher's server: OpenAI-compatible chat completions on loopback, standard library only.

Beside ``/v1/chat/completions`` and ``/v1/models`` it serves ``/health`` and the world itself: ``/world/topics``, ``/world/cells``,
``/world/check``, ``/world/evaluation``. Answers depend on (messages, seed, choice index) alone, so reruns agree.
"""

from __future__ import annotations

import errno
import json
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from speedlit.errors import UsageError
from speedlit.files import content_id
from speedlit.offline.checker import check
from speedlit.offline.evaluation import evaluation
from speedlit.offline.lexicon import TOPICS
from speedlit.offline.teacher import Teacher
from speedlit.offline.world import cell

MODEL = "embedded"
_TOKEN = re.compile(r"\w+|[^\w\s]")


class BadRequest(ValueError):
    """A request that cannot be answered; its text goes into the 400 reply."""


class Server(ThreadingHTTPServer):
    """The HTTP server; one thread per connection, connections kept alive.

    Args:
        teacher: who answers.
        host: loopback address.
        port: 0 takes a free one (see ``server_port``).

    Raises:
        UsageError: the port is in use or cannot be opened.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, teacher: Teacher, host: str = "127.0.0.1", port: int = 8008) -> None:
        self.teacher = teacher
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            if getattr(error, "errno", None) == errno.EADDRINUSE:
                raise UsageError(f"port {port} on {host} is in use: choose another with --port, or --port 0 for any free one") from error
            raise UsageError(f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}; choose another --port") from error

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing when a client went away (a run that was stopped); anything else is shown as usual."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def server_bind(self) -> None:
        """Bind without the reverse name look-up of ``HTTPServer``, which can take seconds offline."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        address: tuple[str, int] = self.socket.getsockname()
        self.server_address = address
        self.server_name, self.server_port = address[:2]


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # header and body leave in one packet
    server: Server

    def do_GET(self) -> None:  # noqa: N802
        """Health, models, topics."""
        answers: dict[str, Callable[[], Any]] = {
            "/health": lambda: {"status": "ok", "world": self.server.teacher.world.seed},
            "/v1/models": lambda: {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "speedlit"}]},
            "/world/topics": lambda: {"topics": list(TOPICS.values())},
        }
        path = self.path.split("?")[0]
        if path not in answers:
            return self._reply(404, failure(f"no such address: GET {path}"))
        self._reply(200, answers[path]())

    def do_POST(self) -> None:  # noqa: N802
        """Chat completions and the world's checks."""
        answers: dict[str, Callable[[Teacher, Mapping[str, Any]], Any]] = {
            "/v1/chat/completions": chat,
            "/world/cells": cells,
            "/world/check": checks,
            "/world/evaluation": files,
        }
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.split("?")[0]
        if path not in answers:
            return self._reply(404, failure(f"no such address: POST {path}"))
        try:
            data = json.loads(body)
            if not isinstance(data, dict):
                raise BadRequest("the body must be a JSON object")
            reply = answers[path](self.server.teacher, data)
        except (BadRequest, json.JSONDecodeError, UnicodeDecodeError) as error:
            return self._reply(400, failure(str(error)))
        except (KeyError, TypeError, AttributeError) as error:
            return self._reply(400, failure(f"the body lacks a key or has a value of the wrong type: {error}"))
        self._reply(200, reply)

    def _reply(self, status: int, value: Any) -> None:
        body = json.dumps(value, ensure_ascii=False).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client went away; nothing to tell it

    def log_message(self, *_: Any) -> None:
        """Silent: thousands of requests come in a minute."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        """The date header, made once a second rather than once a reply."""
        now = int(time.time())
        if getattr(self.server, "_now", None) != now:
            self.server._now, self.server._date = now, super().date_time_string(now)  # type: ignore[attr-defined]
        return self.server._date  # type: ignore[attr-defined,no-any-return]


def failure(message: str) -> dict[str, Any]:
    """An error body as the openai library reads it."""
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}


def count(text: str) -> int:
    """Tokens of a text: words and punctuation marks."""
    return len(_TOKEN.findall(text))


def chat(teacher: Teacher, data: Mapping[str, Any]) -> dict[str, Any]:
    """A chat completion with ``n`` choices. ``temperature`` and ``top_p`` are taken and change nothing."""
    messages = data.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in messages):
        raise BadRequest("messages must be a list of {role, content} with text contents")
    if data.get("stream"):
        raise BadRequest("the embedded teacher does not stream: leave `stream` out")
    number, limit = data.get("n") or 1, data.get("max_completion_tokens") or data.get("max_tokens")
    if not isinstance(number, int) or not 1 <= number <= 128:
        raise BadRequest("n must be a number from 1 to 128")
    plain = [{"role": str(m.get("role", "user")), "content": m["content"]} for m in messages]
    choices = [choice(teacher.answer(plain, data.get("seed"), index), index, limit) for index in range(number)]
    given, made = sum(count(m["content"]) for m in plain), sum(count(c["message"]["content"]) for c in choices)
    return {
        "id": "chatcmpl-" + content_id([plain, data.get("seed"), number]),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": str(data.get("model") or MODEL),
        "choices": choices,
        "usage": {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made},
    }


def choice(text: str, index: int, limit: int | None) -> dict[str, Any]:
    """One choice, cut after ``limit`` tokens."""
    ends = [match.end() for match in _TOKEN.finditer(text)]
    cut = limit is not None and len(ends) > limit
    shown = text[: ends[limit - 1]] if cut and limit else text
    return {"index": index, "message": {"role": "assistant", "content": shown}, "logprobs": None, "finish_reason": "length" if cut else "stop"}


def cells(teacher: Teacher, data: Mapping[str, Any]) -> dict[str, Any]:
    """The group of each task."""
    return {"cells": [cell(task["topic"], task["kind"], task["text"]) for task in data["tasks"]]}


def checks(teacher: Teacher, data: Mapping[str, Any]) -> dict[str, Any]:
    """The exact checks of each (prompt, text)."""
    return {"checks": [check(teacher.world, item["prompt"], item["text"]) for item in data["items"]]}


def files(teacher: Teacher, data: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation folder rendered from held-out cells."""
    return {"files": evaluation(teacher.world, data["cells"], data.get("seed", 0), data.get("sizes"))}
