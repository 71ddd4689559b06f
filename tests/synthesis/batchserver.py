"""A real HTTP server on loopback that implements the Batch API (/files and /batches) in memory, with the trouble that a test wants."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.synthesis.server import Fault, completion

Answer = Callable[[dict[str, Any], int], "str | Fault"]
PAGE = 2  # batches per page of the list, so that paging is really used


class BatchServer:
    """``answer(body, n)`` gives a text, or a Fault for the error file; n counts the times that this text was processed, from 0.

    Attributes:
        polls: looks at a batch before it has ended.
        trouble: ``trouble(method, path, server)`` is called before (``before`` True) and after each call took effect; what it returns
            as a Fault is sent instead of the answer, and a True cuts the connection.
        ends: ``ends(batch, lines)`` gives (status, how many of the lines were processed).
        processed: how often each key was worked on: what is paid.
    """

    def __init__(self, answer: Answer, polls: int = 1) -> None:
        self.answer, self.polls = answer, polls
        self.trouble: Callable[[str, str, bool], Fault | bool | None] = lambda method, path, before: None
        self.ends: Callable[[dict[str, Any], list[dict[str, Any]]], tuple[str, int]] = lambda batch, lines: ("completed", len(lines))
        self.files: dict[str, str] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.processed: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.seen: list[dict[str, Any]] = []
        self._looks: Counter[str] = Counter()
        self._lock = threading.RLock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def __enter__(self) -> BatchServer:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._do("GET")

            def do_POST(self) -> None:
                self._do("POST")

            def _do(self, method: str) -> None:
                data = self.rfile.read(int(self.headers.get("content-length") or 0))
                with outer._lock:
                    said = outer._serve(method, self.path.split("?")[0].removeprefix("/v1"), self.path.partition("?")[2], data)
                if said is True:
                    self.close_connection = True
                    self.connection.close()
                    return
                body = said.body.encode()
                self.send_response(said.status)
                for name, value in {"content-type": "application/json", "content-length": str(len(body)), **said.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
                self.close_connection = self.close_connection or "content-length" in said.headers  # a body cut short

            def log_message(self, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _serve(self, method: str, path: str, query: str, data: bytes) -> Fault | bool:
        self.calls[f"{method} {re.sub('(batch|file)_[0-9]+', 'X', path)}"] += 1
        if instead := self.trouble(method, path, True):
            return instead
        said = self._route(method, path, query, data)
        return self.trouble(method, path, False) or said

    def _route(self, method: str, path: str, query: str, data: bytes) -> Fault:
        if (method, path) == ("POST", "/files"):
            content = re.search(rb'name="file"; filename="speedlit-.*?"\r\n.*?\r\n\r\n(.*)\r\n--', data, re.DOTALL)[1].decode()
            assert b'name="purpose"\r\n\r\nbatch' in data
            return self._json({"id": self._file(content), "object": "file", "purpose": "batch"})
        if (method, path) == ("POST", "/batches"):
            return self._create(json.loads(data))
        if (method, path) == ("GET", "/batches"):
            rows = list(self.batches.values())[::-1]
            after = re.search(r"after=(\w+)", query)
            start = next((i + 1 for i, row in enumerate(rows) if after and row["id"] == after[1]), 0)
            return self._json({"object": "list", "data": rows[start : start + PAGE], "has_more": start + PAGE < len(rows)})
        if match := re.fullmatch(r"/batches/(\w+)", path):
            return self._look(match[1])
        if (match := re.fullmatch(r"/files/(\w+)/content", path)) and match[1] in self.files:
            return Fault(body=self.files[match[1]], headers={"content-type": "application/octet-stream"})
        return Fault(status=404, body='{"error": {"message": "no such thing"}}')

    def _create(self, wanted: dict[str, Any]) -> Fault:
        if wanted["input_file_id"] not in self.files:
            return Fault(status=400, body='{"error": {"message": "no such file"}}')
        assert wanted["endpoint"] == "/v1/chat/completions" and wanted["completion_window"] == "24h"
        lines = self.files[wanted["input_file_id"]].splitlines()
        name = f"batch_{len(self.batches)}"
        counts = {"total": len(lines), "completed": 0, "failed": 0}
        self.batches[name] = {**wanted, "id": name, "object": "batch", "status": "validating", "created_at": int(time.time()) - 60, "request_counts": counts}
        return self._json(self.batches[name])

    def _look(self, name: str) -> Fault:
        if name not in self.batches:
            return Fault(status=404, body='{"error": {"message": "no such batch"}}')
        batch = self.batches[name]
        self._looks[name] += 1
        if batch["status"] in ("validating", "in_progress"):
            if self._looks[name] <= self.polls:
                batch["status"] = "in_progress"
            else:
                self._end(batch)
        return self._json(batch)

    def _end(self, batch: dict[str, Any]) -> None:
        lines = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        batch["status"], count = self.ends(batch, lines)
        batch[f"{batch['status']}_at"] = int(time.time())
        out, errors = [], []
        for line in lines[:count]:
            self.processed[line["custom_id"]] += 1
            self.seen.append(line["body"])
            text = line["body"]["messages"][-1]["content"]
            said = self.answer(line["body"], self.asked[text])
            self.asked[text] += 1
            fault = said if isinstance(said, Fault) else Fault(body=completion(said))
            row = {"id": "r", "custom_id": line["custom_id"], "error": None, "response": {"status_code": fault.status, "body": json.loads(fault.body)}}
            (out if fault.status == 200 else errors).append(row)
        left = {"code": f"batch_{batch['status']}", "message": "never begun"}
        if batch["status"] == "expired":
            errors += [{"id": "r", "custom_id": line["custom_id"], "response": None, "error": left} for line in lines[count:]]
        batch["request_counts"] = {"total": len(lines), "completed": len(out), "failed": len(errors)}
        for name, rows in (("output", out[::-1]), ("error", errors)):  # the order is not that of the input
            if rows:
                batch[f"{name}_file_id"] = self._file("".join(json.dumps(row) + "\n" for row in rows))

    def _file(self, content: str) -> str:
        name = f"file_{len(self.files)}"
        self.files[name] = content
        return name

    def _json(self, value: Any) -> Fault:
        return Fault(body=json.dumps(value))
