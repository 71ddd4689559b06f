"""The client against a server that somebody else wrote: ``transformers serve`` with a tiny generator of ours."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from speedlit.context import Request, Sampling
from speedlit.errors import SpeedlitError
from speedlit.export import export
from speedlit.synthesis.client import HTTPBackend
from speedlit.synthesis.journal import Journal, journal_file
from speedlit.synthesis.schemas import record_schema
from speedlit.synthesis.structured import Structured
from tests.helpers import sentence, tiny_llama

MISSING = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
pytestmark = [pytest.mark.serve, pytest.mark.skipif(bool(MISSING), reason=f"transformers serve needs {' and '.join(MISSING)}: pip install 'speedlit[test]'")]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Base URL and model name (the exact path) of a running server of a generator that we have trained and exported."""
    root = tmp_path_factory.mktemp("serve")
    model = root / "out"
    export(trained_generator(root), model, "merged")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = model.parent / "log.txt"
    words = ["serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    with log.open("w") as stream:
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        server = subprocess.Popen([sys.executable, "-m", "transformers.cli.transformers", *words], stdout=stream, stderr=stream, env=env)
    try:
        until = time.monotonic() + 150
        while not healthy(port):
            assert server.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.25)
        yield f"http://127.0.0.1:{port}/v1", str(model)
    finally:
        server.kill()
        server.wait()


def healthy(port: int) -> bool:
    """/v1/models fails offline; /health does not."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def test_a_real_server_is_asked_journalled_and_not_asked_again(served: tuple[str, str], tmp_path: Path) -> None:
    url, model = served
    requests = [Request(f"r{i}", [{"role": "user", "content": f"the sun is warm {i}"}], Sampling(1.0, 1.0, 8, i)) for i in range(12)]
    texts = []
    for cached in (False, True):
        client = HTTPBackend(model, url, journal_file(tmp_path), concurrency=4)
        replies = list(client.generate(requests))
        client.close()
        assert [(r.id, r.error, r.cached) for r in replies] == [(f"r{i}", "", cached) for i in range(12)]
        assert all(r.tokens_in > 5 and 1 <= r.tokens_out <= 8 and r.finish_reason in ("stop", "length") for r in replies)
        texts.append([r.text for r in replies])
    assert texts[0] == texts[1] and any(texts[0])
    journal = Journal(journal_file(tmp_path))
    counts = journal.counts()
    journal.close()
    assert (counts["sent"], counts["answered"], counts["orphaned"]) == (12, 12, 0)


def test_a_model_that_it_does_not_serve_is_one_sentence(served: tuple[str, str]) -> None:
    client = HTTPBackend("no/such-model", served[0], concurrency=1, retries=0)
    with pytest.raises(SpeedlitError) as caught:
        list(client.generate([Request(f"r{i}", [{"role": "user", "content": f"x {i}"}], Sampling(max_tokens=4)) for i in range(20)]))
    client.close()
    assert "\n" not in str(caught.value) and served[0] in str(caught.value)


def test_the_probe_finds_out_that_it_ignores_response_format(served: tuple[str, str], tmp_path: Path) -> None:
    """It takes ``response_format`` without a word and does not keep to it."""
    url, model = served
    said: list[str] = []
    client = HTTPBackend(model, url, journal_file(tmp_path), concurrency=2)
    backend = Structured(client, client, url, said.append)
    requests = [Request(f"r{i}", [{"role": "user", "content": f"x {i}"}], Sampling(1.0, 1.0, 4, i), schema=record_schema(["a"])) for i in range(3)]
    replies = list(backend.generate(requests))
    backend.close()
    assert [reply.error for reply in replies] == ["", "", ""], "asked without a schema"
    assert len(said) == 1 and "it ignores response_format" in said[0] and url in said[0]


def trained_generator(folder: Path) -> Path:
    """A generator after some real steps of training on sentences of its own, written as a fit writes it."""
    import torch

    from speedlit.data.tokens import TokenContract
    from speedlit.models.adapter import LoRA
    from speedlit.models.backbone import Backbone
    from speedlit.models.folder import save_folder

    backbone = Backbone(str(tiny_llama(folder / "base")))
    tokenizer, tokens = backbone.tokenizer(), TokenContract(template="Write about {prompt}\n->", max_length=64)
    model = LoRA(r=4, alpha=16).apply(backbone.build(True)).train()
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], lr=0.02)
    rows = [tokens.encode_pair(tokenizer, sentence(i, 3), " " + sentence(i + 9, 4)) for i in range(8)]
    for step in range(40):
        ids, labels = (torch.tensor([part]) for part in rows[step % 8])
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return save_folder(model.eval(), tokenizer, folder / "fit" / "model", role="generator", backbone=backbone, tokens=tokens)


def test_a_trained_generator_that_was_exported_answers_as_it_does_here(served: tuple[str, str], tmp_path: Path) -> None:
    """Adapter, prompt template, start token and ends: the exported folder is served as it is, and writes greedily what we write."""
    from speedlit.generation.local import LocalBackend

    model = Path(served[1]).parent / "fit" / "model"
    requests = [Request(f"r{i}", [{"role": "user", "content": sentence(i, 3)}], Sampling(0.0, 1.0, 16, i)) for i in range(6)]
    here = [(reply.text.strip(), reply.finish_reason) for reply in LocalBackend(model).generate(requests)]
    client = HTTPBackend(served[1], served[0], journal_file(tmp_path), concurrency=1)
    there = [(reply.text.strip(), reply.finish_reason) for reply in client.generate(requests)]
    client.close()
    assert there == here
    assert len(set(here)) > 2 and any(reason == "stop" for _, reason in here), "it answers the prompt, and has learnt to end"
