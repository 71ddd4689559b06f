"""A third-party package adds a module, a data source, a callback, a loss, a teacher and a task kind without a change here.

The module writes no line about ranks, sharding or checkpoints: that it runs under them is what the base gives it.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from speedlit.data.shards import ShardSet, write_shards
from speedlit.errors import UsageError
from speedlit.files import read_json, read_jsonl
from speedlit.modules.dpo import find_loss
from speedlit.pipeline import fitting
from speedlit.pipeline.configure import parse
from speedlit.pipeline.recipe import _block
from speedlit.plugins import load
from speedlit.records import Record, read_rows
from tests.blocks import ROOT, blocks
from tests.helpers import preference_rows, tiny_llama
from tests.modules.recipes import in_child, in_ranks
from tests.synthesis.scripted import run_until
from tests.synthesis.server import Server

EXAMPLE = Path(__file__).parent / "plugin_example"
PAGE = ROOT / "docs" / "plugins.md"
NAMES = ("RewardModule", "ShortPairs", "Margins", "margin_loss", "Storyteller", "dialogues")
fit = partial(fitting.fit, progress=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package installed in ``site``, a base, shards, topics, and a recipe."""
    root = tmp_path_factory.mktemp("plugin")
    shutil.copytree(EXAMPLE, root / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(root / "site")]
    subprocess.run([*pip, str(root / "source")], check=True, capture_output=True)
    tiny_llama(root / "my-base")
    write_shards(preference_rows(32), root / "my-pairs", "preference")
    (root / "topics.txt").write_text("Arts/Movies\nScience/Birds\nSports/Sailing\nHome/Gardens\nTrade/Markets\nHistory/Rome\n")
    (block,) = [block for block in blocks(PAGE) if block.language == "yaml" and "RewardModule" in block.text]
    (root / "reward.yaml").write_text(block.text)
    return root


@pytest.fixture
def installed(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, with the package in this process."""
    monkeypatch.syspath_prepend(str(place / "site"))
    return place


def start(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command line in a process that sees the package."""
    paths = os.pathsep.join([str(place / "site"), str(Path(__file__).parent.parent)])
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run([sys.executable, "-m", "speedlit", *words], env=environment, capture_output=True, text=True, cwd=place)


def call(place: Path, *words: str) -> str:
    """Standard output of a command line that works."""
    done = start(place, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def recipe(root: Path, steps: int = 8, **trainer: Any) -> dict[str, Any]:
    """Full training with a constant rate; a large eps, so that the rounding of tiny gradients stays rounding."""
    model = {"backbone": {"name": str(root / "my-base")}, "schedule": {"kind": "constant"}}
    return {
        "seed_everything": 3, "model": {"class_path": "RewardModule", "init_args": model},
        "optimizer": {"class_path": "AdamW", "init_args": {"lr": 1e-3, "eps": 1e-3}},
        "data": {"class_path": "ShortPairs", "init_args": {"shards": str(root / "my-pairs")}},
        "trainer": {"accelerator": "cpu", "max_steps": steps, **trainer},
    }  # fmt: skip


def trace(place: Path) -> list[float]:
    with (place / "metrics.csv").open() as stream:
        return [float(row["loss"]) for row in csv.DictReader(stream)]


def score(place: Path) -> torch.Tensor:
    return load_file(place / "model" / "score.safetensors")["score"]


def test_the_page_shows_it_as_it_is() -> None:
    page = PAGE.read_text()
    for path in EXAMPLE.rglob("*"):
        if path.suffix in (".py", ".yaml", ".toml") and path.name != "__init__.py":
            assert f"\n{path.read_text()}```" in page, path


def test_all_of_it_is_listed(place: Path) -> None:
    shown = call(place, "list")
    for name in NAMES:
        assert f"  {name} " in shown


def test_its_module_data_and_callback_train_by_their_short_names(place: Path) -> None:
    """By the page's own recipe, cut short."""
    call(place, "fit", "--config", "reward.yaml", "--trainer.max_steps", "4", "--trainer.default_root_dir", "straight")
    lines = (place / "straight" / "margins.txt").read_text().splitlines()
    assert len({line.split()[1] for line in lines}) == 4
    assert (score(place / "straight") != 0.01).any(), "the weight that the module adds is trained"


def test_its_loss_is_named_like_ours(installed: Path) -> None:
    assert find_loss("margin_loss")(torch.ones(2), torch.zeros(2), 1.0).tolist() == pytest.approx([0.3133, 0.3133], abs=1e-4)
    assert find_loss("speedlit_example.losses.margin_loss") is find_loss("margin_loss")


def test_its_module_gives_the_same_in_two_processes(installed: Path, tmp_path: Path) -> None:
    fit(recipe(installed), tmp_path / "alone")

    def both() -> None:
        for name in ("ddp", "fsdp"):
            fit(recipe(installed, devices=2, strategy=name), tmp_path / name)

    assert in_ranks(2, both) == [0, 0]
    alone = trace(tmp_path / "alone")
    assert len(alone) == 8 and alone[0] - alone[-1] > 1e-3
    for name in ("ddp", "fsdp"):
        assert trace(tmp_path / name) == pytest.approx(alone, abs=1e-5), name
        assert torch.allclose(score(tmp_path / name), score(tmp_path / "alone"), atol=1e-5, rtol=0), name


def test_its_module_goes_on_bit_for_bit_after_a_kill(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "_identity", lambda config: "the killer is not part of the recipe")

    def attempt(name: str, **kill: Any) -> int:
        callbacks = [{"class_path": "tests.modules.killer.Killer", "init_args": kill}, {"class_path": "Resume", "init_args": {"every_n_steps": 1}}]
        return in_child(fit, recipe(installed, callbacks=callbacks), tmp_path / name)

    assert attempt("straight") == 0
    assert [attempt("killed", after_backward=3), attempt("killed", after_step=5, before_save=True), attempt("killed")] == [-9, -9, 0]
    for name in ("metrics.csv", "model/model.safetensors", "model/score.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name


def test_its_teacher_and_task_kind_make_the_seed_of_a_run(place: Path) -> None:
    """Refusals are rejections with the plug-in's reason; what was answered stands in the journal, so other counts ask only for what is new."""
    counts = [f"--counts.{name}={n}" for name, n in {"root": 5, "preferences": 5, "revisions": 5, "synthesis": 5, "test": 2}.items()]
    words = ["run", "--config", "smoke", "--root", "run", "--topics", "topics.txt", "--prompts", "dialogues", "--teacher.backend", "Storyteller"]
    words += ["--teacher.settings", "{refuses: 0.25}", "--until", "seed", *counts]
    call(place, *words, "--counts.seed", "16")
    seed = place / "run" / "stages" / "03-seed"
    first = read_json(seed / "manifest.json")["ledger"]
    assert first["accepted"] + first["rejected"]["no_answer:content_filter"] == first["calls"] == 16 and first["accepted"] > 8
    records = list(read_rows(seed / "records.jsonl", Record))
    assert {record.kind for record in records} == {"dialogue"} and all(record.negatives for record in records)
    provenance = next(iter(read_jsonl(seed / "generations.jsonl")))["provenance"]
    assert provenance["backend"] == "speedlit_example.teacher.Storyteller"
    call(place, *words, "--counts.seed", "20")
    assert read_json(seed / "manifest.json")["ledger"]["cached"] == first["accepted"]


def test_its_task_kind_becomes_a_contrastive_batch(installed: Path, tmp_path: Path) -> None:
    from speedlit.data.collate import encode_contrastive
    from speedlit.data.samples import Samples
    from speedlit.data.steps import Steps
    from speedlit.data.tokens import TokenContract
    from speedlit.models.backbone import Backbone
    from tests.synthesis.scripted import answer

    with Server(answer) as server:
        run_until("dataset", tmp_path, server, prompts="dialogues")
    shards = ShardSet(tmp_path / "dataset" / "shards" / "refined")
    assert list(shards.manifest.kinds) == ["dialogue"]
    tokenizer = Backbone(str(installed / "my-base")).tokenizer()
    step = Steps(Samples([shards], encode_contrastive, tokenizer, TokenContract()), "contrastive", 6, None, seed=0)[0]
    assert step["samples"] == 6 and step["targets"] == 6, "each query has its positive and the other reply"


def test_a_teacher_that_is_none_is_told_with_its_key(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, said in (
        (["--teacher", "Storytellers"], "teacher.backend is 'Storytellers', and no installed plug-in is called so; did you mean `Storyteller`?"),
        (["--teacher.backend", "speedlit_example.teacher.Nobody"], "teacher.backend speedlit_example.teacher.Nobody can't be imported"),
        (["--teacher.backend", "Storyteller", "--teacher.mode", "batch"], "teacher.mode is batch"),
        (["--teacher.backend", "Storyteller", "--teacher.base_url", "http://a/v1"], "leave one of them out"),
        (["--teacher.settings", "{refuses: 1}"], "teacher.settings are those of a teacher.backend"),
        (["--prompts", "dialogue"], "nor a plug-in"),
    ):
        with pytest.raises(UsageError, match=re.escape(said)):
            load_all(words)


def test_its_teacher_in_one_word(installed: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    for text, words in (("teacher: Storyteller", []), ("name: x", ["--teacher", "Storyteller"]), ("name: x", ["--teacher=Storyteller"])):
        own.write_text(text)
        assert parse(str(own), words).teacher.backend == "Storyteller"
    own.write_text("name: x\nteacher: Storytelle")
    with pytest.raises(UsageError, match=f"{own}:2: teacher.backend is 'Storytelle', .* did you mean `Storyteller`"):
        parse(str(own))


def load_all(words: list[str]) -> None:
    from speedlit.synthesis.templates import load_set

    load_set(parse("smoke", words).prompts)


def test_settings_and_answers_that_a_teacher_can_t_have(installed: Path) -> None:
    from speedlit.context import Request, Sampling
    from speedlit.errors import SpeedlitError
    from speedlit.synthesis.client import HTTPBackend
    from speedlit.synthesis.plugged import Plugged, open_teacher

    with pytest.raises(UsageError, match=r"teacher\.settings don't fit speedlit_example\.teacher\.Storyteller: .*'refusals'"):
        open_teacher("Storyteller", {"refusals": 1}, 1.0, 1)
    with pytest.raises(UsageError, match="has no method `answer`"):
        open_teacher("Margins", {}, 1.0, 1)

    class Flaky:
        """Loses its connection at first; then answers with its ``found``."""

        def __init__(self, found: Any) -> None:
            self.found, self.asked = found, 0

        def answer(self, body: Any) -> Any:
            self.asked += 1
            if self.asked == 1:
                raise ConnectionResetError("gone")
            return self.found

    def ask(teacher: Flaky) -> Any:
        backend = HTTPBackend("m", wire=Plugged(teacher, "Flaky", 5.0, 2), backoff=0.01)
        try:
            return next(backend.generate([Request("1", [{"role": "user", "content": "Hello"}], Sampling())]))
        finally:
            backend.close()

    whole = {"choices": [{"message": {"content": "Good day"}}], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    reply = ask(Flaky(whole))
    assert (reply.text, reply.tokens_in, reply.tokens_out, reply.error) == ("Good day", 3, 2, "")
    reply = ask(Flaky("Guten Tag, Jörg"))
    assert (reply.text, reply.tokens_in, reply.tokens_out) == ("Guten Tag, Jörg", 2, 4), "`Hello` has 5 bytes, the answer 16: a token for every four"
    with pytest.raises(SpeedlitError, match="Flaky answered with list"):
        ask(Flaky(["Good day"]))


@pytest.mark.parametrize(("text", "said"), [("x = 1\ny = x / 0\n", "ZeroDivisionError in {}:2: division by zero"), ("def f(:\n", "SyntaxError in {}:1")])
def test_code_that_fails_on_import_is_told_with_its_line(text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / f"broken_{len(text)}.py"
    own.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match=re.escape(said.format(own))):
        load(f"{own.stem}.Teacher", "teacher.backend")
    assert said.format(own) in "".join(_block({"class_path": f"{own.stem}.Module"}, "model"))


def test_a_module_that_takes_no_optimizer_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import lightning as L\n\n\nclass Plain(L.LightningModule):\n    def __init__(self, size: int = 1):\n        pass\n"
    (tmp_path / "plain_module.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    (line,) = _block({"class_path": "plain_module.Plain", "init_args": {"size": 2, "optimizer": {"class_path": "torch.optim.SGD"}}}, "model")
    assert "`optimizer` is for nobody: plain_module.Plain takes no such argument; leave the section out" in line
