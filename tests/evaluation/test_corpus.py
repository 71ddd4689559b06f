"""Embeddings of a corpus: the same files from any number of ranks, every text once and in order, also after kill -9."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from speedlit.cli import main
from speedlit.evaluation import ranks
from speedlit.evaluation.corpus import write_embeddings
from speedlit.files import sha256_file
from tests.evaluation.conftest import bag_of_words, jsonl
from tests.helpers import sentence, tiny_bert
from tests.modules.recipes import in_ranks

ROWS = [{"id": f"t{i}", "text": sentence(i, 1 + i % 9)} for i in range(46)] + [{"id": "cat", "text": "cat red"}]  # 9 parts of 5 and one of 2


def write(out: Path, log: Path | None = None, kill: int | None = None) -> None:
    """This rank's parts; rank 1 may kill itself in the middle of its ``kill``-th part."""
    with ranks.joined("cpu"):
        encoder, count = bag_of_words(spread=False), 0
        inner = encoder.vectors

        def vectors(texts: list[str], instruction: str | None = None) -> np.ndarray:
            nonlocal count
            count += 1
            if ranks.number() == 1 and count == kill:
                (out / ".part-00099.parquet.1.tmp").write_text("half a part")
                os.kill(os.getpid(), signal.SIGKILL)
            if log is not None:
                with log.open("a") as stream:
                    stream.write(f"{len(texts)}\n")
            return inner(texts, instruction)

        encoder.vectors = vectors  # type: ignore[method-assign]
        write_embeddings(encoder, ROWS, out, {"model": "bag"}, size=5)


def parts(out: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted(out.glob("part-*"))}


def test_two_ranks_one_killed_and_three_that_go_on_leave_the_files_of_one_process(tmp_path: Path) -> None:
    alone, out, log = tmp_path / "alone", tmp_path / "out", tmp_path / "log"
    write(alone)
    assert len(parts(alone)) == 10 and (alone / "_SUCCESS").is_file()
    assert in_ranks(2, write, out, None, 3) == [3, -signal.SIGKILL]  # the other notices at once
    left = 10 - len(parts(out))
    assert 0 < left < 10 and not (out / "_SUCCESS").exists()
    assert in_ranks(3, write, out, log) == [0, 0, 0]
    assert parts(out) == parts(alone) and len(log.read_text().splitlines()) == left  # only what was missing
    assert json.loads((out / "manifest.json").read_text()) == json.loads((alone / "manifest.json").read_text())
    assert not list(out.glob(".*")) and (out / "_SUCCESS").is_file()
    found = pq.read_table([out / name for name in parts(out)])
    assert found["id"].to_pylist() == [row["id"] for row in ROWS]
    expected = np.concatenate([bag_of_words().vectors([row["text"] for row in ROWS[i : i + 5]]) for i in range(0, len(ROWS), 5)])
    assert np.array_equal(np.stack(found["vector"].to_numpy()), expected)


def test_a_damaged_part_is_written_again(tmp_path: Path) -> None:
    write(tmp_path / "out")
    before = parts(tmp_path / "out")
    (tmp_path / "out" / "part-00003.parquet").write_bytes(b"PAR1")
    write(tmp_path / "out")
    assert parts(tmp_path / "out") == before


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = tiny_bert(tmp_path / "m"), tmp_path / "out"
    rows = [{"_id": "a", "title": "T", "text": "the sun"}, {"title": "", "text": "x " * 50_000}, {"_id": "c", "title": None, "text": ""}]
    jsonl(tmp_path / "corpus.jsonl", rows)
    words = ["predict", str(model), "--corpus", str(tmp_path / "corpus.jsonl"), "--pooling", "mean", "--text", "title,text"]
    words += ["--format", "npy", "--part-size", "2"]
    assert main([*words, "--to", str(out)]) == 0
    assert "3 embeddings in 2 part(s)" in capsys.readouterr().out
    assert [json.loads((out / f"part-0000{i}.ids.json").read_text()) for i in (0, 1)] == [["a", "1"], ["c"]]
    assert np.load(out / "part-00000.npy").shape[0] == 2 and np.isfinite(np.load(out / "part-00001.npy")).all()
    assert main([*words, "--to", str(out), "--instruction", "Find it"]) == 2
    assert "holds embeddings with another instruction (None, now Find it)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "words", "said"),
    [
        ([{"body": "x"}], [], "row 1 of the corpus has no column 'text'; it has: body"),
        ([{"text": "x"}, {"text": 3}], [], "row 2 of the corpus: column 'text' holds int, not a text"),
        ([], [], "the corpus is empty"),
        ([{"text": "x"}], ["--part-size", "0"], "--part-size is 0"),
    ],
)
def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, object]], words: list[str], said: str) -> None:
    jsonl(tmp_path / "c.jsonl", rows)
    model = tiny_bert(tmp_path / "m")
    assert main(["predict", str(model), "--corpus", str(tmp_path / "c.jsonl"), "--to", str(tmp_path / "out"), "--pooling", "mean", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert main(["predict", str(model), "--corpus", "gone.jsonl", "--to", "x"]) == 2
    assert "--corpus gone.jsonl: no such file" in capsys.readouterr().err
