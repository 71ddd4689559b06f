"""The endpoints of the Batch API (files and batches), through the official client: each call tried again where that can do no harm.

Creating a batch is the one call that costs money. Whenever its fate is unknown the server's batches are listed first, and one that
carries our name is taken instead of a second one.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from speedlit.errors import SpeedlitError
from speedlit.files import disk_error
from speedlit.synthesis.health import LONGEST_WAIT, NO_CREDIT, PASSING
from speedlit.synthesis.wire import Endpoint, Outcome, error_code, retry_after

TAG = "speedlit"  # the metadata key that carries our name of a batch
UPLOAD = "take a file of requests"
LIST = 100  # batches per page


class Refused(SpeedlitError):
    """The server refuses a call for good."""

    def __init__(self, sentence: str, outcome: Outcome) -> None:
        super().__init__(sentence)
        self.outcome = outcome


class Down(SpeedlitError):
    """The server does not answer a call as it should, all attempts included."""


class BatchWire:
    """Files and batches of one server.

    Args:
        endpoint: where.
        timeout: seconds for one call; uploads and downloads get ten times as long.
        retries: further attempts after a passing fault.
        backoff: seconds before the first of them; doubled each time, at most 30, with jitter.
    """

    def __init__(self, endpoint: Endpoint, timeout: float, retries: int, backoff: float) -> None:
        import openai

        from speedlit.synthesis.connections import http as library

        self.endpoint, self.timeout, self.retries, self.backoff = endpoint, timeout, retries, backoff
        local = endpoint.host in ("127.0.0.1", "localhost", "::1")
        http = openai.DefaultHttpxClient(trust_env=not local, follow_redirects=False)
        query: Any = endpoint.query or None
        self._client = openai.OpenAI(
            base_url=endpoint.name, api_key=endpoint.key or "none", max_retries=0, timeout=timeout, http_client=http, default_query=query
        )
        self._broken = library.HTTPError  # a download that breaks off; the official client hands it on as it is
        self._options: dict[str, Any] = {"extra_headers": endpoint.headers()}

    def upload(self, path: Path, name: str) -> str:
        """Upload a file of lines; returns its id. Doing it twice costs nothing."""

        def send() -> str:
            with path.open("rb") as stream:
                made = self._client.files.with_raw_response.create(
                    file=(f"speedlit-{name}.jsonl", stream, "application/jsonl"), purpose="batch", timeout=10 * self.timeout, **self._options
                )
            return str(read(made.text, "id")["id"])

        return str(self._try(UPLOAD, send))

    def create(self, file: str, name: str) -> dict[str, Any]:
        """Make the batch of an uploaded file, once: a call of unknown fate is followed by a look at the list."""

        def send() -> dict[str, Any]:
            made = self._client.batches.with_raw_response.create(
                input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h", metadata={TAG: name}, **self._options
            )
            return read(made.text, "id")

        return dict(self._try("make a batch", send, doubt=lambda: self.find(name)))

    def find(self, name: str) -> dict[str, Any] | None:
        """The batch that carries our name, or None. Looked for twice: a list may lag behind."""
        found = self._search(name)
        if found is None:
            time.sleep(self.backoff)
            found = self._search(name)
        return found

    def _search(self, name: str) -> dict[str, Any] | None:
        after: str | None = None
        while True:
            page = self._try("list its batches", partial(self._page, after))
            rows = [row for row in page["data"] if isinstance(row, dict) and "id" in row]
            for row in rows:
                if (row.get("metadata") or {}).get(TAG) == name:
                    return dict(row)
            if not rows or not page.get("has_more"):
                return None
            after = str(rows[-1]["id"])

    def _page(self, after: str | None) -> dict[str, Any]:
        more: dict[str, Any] = {} if after is None else {"after": after}
        return read(self._client.batches.with_raw_response.list(limit=LIST, **more, **self._options).text, "data")

    def look(self, batch: str) -> dict[str, Any]:
        """What has become of a batch."""
        retrieve = self._client.batches.with_raw_response.retrieve
        return dict(self._try(f"tell of the batch {batch}", lambda: read(retrieve(batch, **self._options).text, "status")))

    def fetch(self, file: str, path: Path) -> None:
        """Download a file's content, whole or not at all."""

        def receive() -> None:
            with self._client.files.with_streaming_response.content(file, timeout=10 * self.timeout, **self._options) as response:
                response.stream_to_file(path)

        self._try(f"give the file {file}", receive)

    def close(self) -> None:
        """Free sockets."""
        self._client.close()

    def _try(self, what: str, call: Callable[[], Any], doubt: Callable[[], Any] | None = None) -> Any:
        """Do a call; ``doubt`` looks for its result where nobody knows whether it was done.

        Raises:
            Refused: not now and not later.
            Down: the attempts are used up.
        """
        attempt = 0
        while True:
            outcome = self._outcome(call)
            if not isinstance(outcome, Outcome):
                return outcome[0]
            if self._final(outcome):
                raise Refused(self._sentence(outcome, what), outcome)
            if attempt >= self.retries:
                raise Down(
                    f"the teacher at {self.endpoint.name} does not {what} ({outcome.reason}): see to it and start again; batches that were made go on there"
                )
            time.sleep(min(outcome.wait, LONGEST_WAIT) if outcome.wait is not None else min(self.backoff * 2.0**attempt, 30.0) * random.uniform(0.5, 1.0))
            attempt += 1
            if doubt is not None and (outcome.status == 0 or outcome.status >= 500 or outcome.paid) and (found := doubt()) is not None:
                return found

    def _outcome(self, call: Callable[[], Any]) -> Outcome | tuple[Any]:
        """The result in a tuple, or how the call failed."""
        import openai

        clean = self.endpoint.clean
        try:
            return (call(),)
        except openai.APIStatusError as error:
            raw = clean(error.response.text if error.response.is_stream_consumed else error.response.read().decode(errors="replace"))
            return Outcome(error.status_code, raw, error_code(raw) or f"status_{error.status_code}", retry_after(error.response.headers))
        except openai.APITimeoutError:
            return Outcome(reason="timeout")
        except openai.APIConnectionError as error:
            return Outcome(reason=clean(str(error.__cause__) or "connection lost"))
        except self._broken as error:
            return Outcome(reason=clean(str(error) or "connection lost"))
        except ValueError as error:  # 200, but no JSON of the kind that was asked for
            return Outcome(200, reason=str(error))
        except OSError as error:
            raise disk_error(error, Path(str(error.filename or "."))) from error

    def _final(self, outcome: Outcome) -> bool:
        return outcome.reason in NO_CREDIT or (300 <= outcome.status < 500 and outcome.status not in PASSING)

    def _sentence(self, outcome: Outcome, what: str) -> str:
        at, said = f"the teacher at {self.endpoint.name}", " ".join(outcome.raw.split())[:200]
        if outcome.status in (401, 403):
            return f"{at} refuses this client (status {outcome.status}): put a valid key into OPENAI_API_KEY, or name another server"
        if outcome.status == 402 or outcome.reason in NO_CREDIT:
            return f"{at} says that the account has no credit left: top it up and start again; nothing that was answered is asked again"
        if outcome.status in (404, 405) and what == UPLOAD:
            return f"{at} has no Batch API (status {outcome.status}): set teacher.mode to live"
        return f"{at} refuses to {what} (status {outcome.status}: {said})"


def read(text: str, key: str) -> dict[str, Any]:
    """The JSON object of a response.

    Raises:
        ValueError: it is none, or lacks ``key``.
    """
    value = json.loads(text)
    if not isinstance(value, dict) or key not in value:
        raise ValueError(f"its answer has no {key!r}")
    return value
