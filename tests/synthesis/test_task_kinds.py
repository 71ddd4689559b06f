"""The example of docs/task-kinds.md is a working task kind outside the package: one file, and stages run with it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from speedlit.pipeline.stage import config_slice
from speedlit.records import Prompt, Record, Task, read_rows
from speedlit.synthesis.templates import PACKAGED, load_set
from tests.synthesis.scripted import answer, context, run_until
from tests.synthesis.server import Server

DOCS = Path(__file__).parents[2] / "docs" / "task-kinds.md"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    [example] = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    own = tmp_path / "my-prompts"
    own.mkdir()
    (own / "dialogue.yaml").write_text(example, encoding="utf-8")
    return own


@pytest.mark.parametrize("layered", [True, False])
def test_the_documented_kind_goes_through_the_stages(layered: bool, folder: Path, tmp_path: Path) -> None:
    assert PACKAGED not in folder.parents
    name = f"paper+{folder}" if layered else str(folder)
    with Server(answer) as server:
        done = run_until("revisions", tmp_path / "run", server, prompts=name)
    tasks = [task for task in read_rows(tmp_path / "run" / "tasks" / "tasks.jsonl", Task) if task.kind == "dialogue"]
    assert len(tasks) == 16 * 2, "brainstormed within every topic"
    prompts = [p for p in read_rows(tmp_path / "run" / "tasks" / "prompts.jsonl", Prompt) if p.use == "seed" and p.kind == "dialogue"]
    assert len(prompts) == (load_set(name).shares(30)["dialogue"] if layered else 30)
    assert all(p.template == "my-prompts/dialogue@1" and p.keys == ["question", "reply", "other_reply"] for p in prompts)
    records = [r for r in read_rows(tmp_path / "run" / "seed" / "records.jsonl", Record) if r.kind == "dialogue"]
    assert records and all(r.query == r.fields["question"] and r.negatives == [r.fields["other_reply"]] for r in records)
    assert done["preferences"].ledger.accepted and done["revisions"].ledger.accepted


def test_a_changed_file_of_ones_own_redoes_its_stages(folder: Path) -> None:
    before = config_slice({"prompts": f"paper+{folder}"}, ("prompts",))
    assert config_slice({"prompts": "paper"}, ("prompts",)) == {"prompts": "paper"}, "packaged sets carry versions"
    (folder / "dialogue.yaml").write_text((folder / "dialogue.yaml").read_text() + "# another word\n")
    assert config_slice({"prompts": f"paper+{folder}"}, ("prompts",)) != before


def test_the_embedder_hears_which_kinds_have_no_in_batch_negatives(folder: Path, tmp_path: Path) -> None:
    from speedlit.pipeline.training import own_negatives

    path = folder / "dialogue.yaml"
    path.write_text(path.read_text().replace("share: 3", "share: 3\nin_batch_negatives: false"))
    with Server(answer) as server:
        ctx = context("embedder", tmp_path, server, prompts=f"paper+{folder}", embedder={"recipe": "fit/demo/embedder", "set": {}})
    assert own_negatives(ctx) == {"model": {"init_args": {"no_in_batch": ["classification", "dialogue"]}}}
    ctx.config["embedder"]["set"] = {"model": {"class_path": "my.Module"}}
    assert own_negatives(ctx) == {}


def test_the_table_of_the_docs_names_every_key() -> None:
    from speedlit.synthesis.templates import TEMPLATE_KEYS

    table = re.findall(r"^\| `(\w+)` \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(table) == sorted(TEMPLATE_KEYS)
