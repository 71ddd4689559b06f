"""`speedlit fit` and `speedlit shard`: recipes parse, mistakes are answered in a line each, fits resume."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from speedlit.cli import main
from speedlit.errors import UsageError
from speedlit.pipeline.recipe import Checker, make, override
from speedlit.pipeline.yamlfiles import find_recipe, read_recipe, read_yaml, shipped
from tests.helpers import sft_rows, tiny_llama

FITS = sorted(name for name in shipped() if name.startswith(("fit/", "examples/")))


@pytest.mark.parametrize("name", FITS)
def test_every_shipped_recipe_goes_through_the_real_parser(name: str) -> None:
    made = make(read_recipe(name), Checker)
    arguments = made.config["model"]["init_args"]
    assert arguments["optimizer"]["init_args"]["lr"] > 0
    assert made.config["data"]["init_args"]["batch_size"] >= 8


@pytest.mark.parametrize("part", sorted(name for name in shipped() if name.startswith(("trainer/", "adapter/"))))
def test_every_shipped_part_fits_into_a_recipe(part: str) -> None:
    kind = part.split("/")[0]
    words = [f"--{kind}" if kind == "trainer" else "--model.adapter", f"{part}.yaml"]
    made = make(override(read_recipe("fit/junior"), words), Checker)
    if part == "adapter/none":
        assert made.config["model"]["init_args"]["adapter"] is None
    if part == "trainer/ddp":
        assert made.config["trainer"]["strategy"] == "ddp"


def test_recipes_of_the_paper_hold_its_numbers() -> None:
    """Appendix B."""
    expected = {"junior": (1e-4, 16), "senior": (1e-5, 16), "revisor": (5e-6, 24), "embedder": (1e-4, 1536)}
    for name, (rate, batch) in expected.items():
        made = make(read_recipe(f"fit/{name}"), Checker)
        assert made.config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == rate
        assert made.config["data"]["init_args"]["batch_size"] == batch


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a shard set and a recipe that uses them, with its trainer in a file beside it."""
    root = tmp_path_factory.mktemp("cli")
    tiny_llama(root / "base")
    (root / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in sft_rows(20)))
    assert main(["shard", str(root / "rows.jsonl"), "--to", str(root / "shards")]) == 0
    recipe = {
        "model": {"class_path": "SFTModule", "init_args": {"backbone": {"name": str(root / "base")}, "adapter": {"class_path": "LoRA"}}},
        "optimizer": {"class_path": "AdamW", "init_args": {"lr": "1e-3"}},
        "data": {"class_path": "SFTData", "init_args": {"shards": str(root / "shards"), "batch_size": 8}},
        "trainer": "parts/short.yaml",
    }
    (root / "parts").mkdir()
    (root / "parts" / "short.yaml").write_text("max_epochs: 1\naccelerator: cpu\n")
    (root / "fit.yaml").write_text(yaml.safe_dump(recipe))
    return root


def test_fit_trains_resumes_and_leaves_a_model(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "--config", str(place / "fit.yaml"), "--trainer.default_root_dir", str(tmp_path / "run"), "--trainer.max_epochs=2"]
    assert main([*words, "--trainer.callbacks+=Throughput", "--trainer.max_steps", "3"]) == 0
    assert re.search(r"3 steps in \d+ s, loss [\d.]+ at the end; model in", capsys.readouterr().err)
    assert main([*words]) == 0
    err = capsys.readouterr().err
    assert "going on from" in err
    assert "6 steps in " in err
    assert "srun" not in err
    assert (tmp_path / "run" / "model" / "speedlit.json").is_file()
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 7
    events = b"".join(path.read_bytes() for path in (tmp_path / "run" / "curves").glob("events.out.*"))
    assert b"loss" in events and b"grad_norm" in events
    assert main(["validate", *words[1:], "--data.validation", str(place / "shards")]) == 0
    assert "val_loss: " in capsys.readouterr().out
    assert main(["test", *words[1:]]) == 0
    assert main(["predict", *words[1:]]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert {row["id"] for row in rows} == {f"s{i}" for i in range(20)}


def test_two_fits_in_one_folder_do_not_mix(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They would write over each other's checkpoints and figures without a word."""
    root = tmp_path / "run"
    root.mkdir()
    hold = "import fcntl, sys; lock = open(sys.argv[1], 'w'); fcntl.lockf(lock, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold, str(root / ".fit.lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert main(["fit", "--config", str(place / "fit.yaml"), "--trainer.default_root_dir", str(root), "--trainer.max_steps", "1"]) == 1
        other.communicate()
    assert f"error: another `speedlit fit` is at work in {root}; wait for it, or give this one another" in capsys.readouterr().err
    assert [path.name for path in root.iterdir()] == [".fit.lock"]


def test_a_clock_time_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("max_time: 1:12:00:00\nratio: 1.5\ncount: 1_000\nday: -1:30\n")
    assert read_yaml(tmp_path / "a.yaml") == {"max_time": "1:12:00:00", "ratio": 1.5, "count": 1000, "day": "-1:30"}
    assert override({}, ["--trainer.max_time", "12:00:00"]) == {"trainer": {"max_time": "12:00:00"}}


def test_a_printed_recipe_follows_its_root_folder(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its curves go to the root folder chosen later; a pass without training leaves no logger's folder."""
    words = ["--trainer.default_root_dir", str(tmp_path / "old"), "--trainer.max_steps", "1"]
    assert main(["fit", "--config", str(place / "fit.yaml"), *words, "--print_config"]) == 0
    (place / "printed.yaml").write_text(capsys.readouterr().out)
    words = ["--config", str(place / "printed.yaml"), "--trainer.default_root_dir", str(tmp_path / "new")]
    assert main(["fit", *words]) == 0
    assert main(["validate", *words, "--data.validation", str(place / "shards")]) == 0
    assert not (tmp_path / "old").exists()
    assert list((tmp_path / "new" / "curves").glob("events.out.*"))
    assert not (tmp_path / "new" / "lightning_logs").exists()


def test_later_configs_and_words_win(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "over.yaml").write_text("model: {init_args: {clip: 0.5}}\ntrainer: {max_steps: 7}\n")
    words = ["fit", "--config", str(place / "fit.yaml"), "--config", str(tmp_path / "over.yaml"), "--model.adapter.r", "3", "--print_config"]
    assert main(words) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["trainer"]["max_steps"], shown["trainer"]["max_epochs"]) == (7, 1)
    assert shown["model"]["init_args"]["clip"] == 0.5
    assert shown["model"]["init_args"]["adapter"]["r"] == 3
    assert shown["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 1e-3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.backbne.name", "x"], ["model.init_args.backbne", "did you mean `model.init_args.backbone`"]),
        (["--trainer.max_step", "3", "--data.shrds", "x"], ["`trainer.max_steps`", "`data.init_args.shards`"]),
        (["--model", "SFTModul"], ["did you mean `SFTModule`"]),
        (["--data", "no.such.Class"], ["can't be imported", "beside the recipe"]),
        (["--optimizer.lr", "fast"], ["optimizer.lr is fast; expected float"]),
        (["--data.batch_size", "many"], ["data.batch_size is many; expected int"]),
        (["--model.backbone.dtype", "float8"], ["backbone.dtype is 'float8'"]),
        (["--model.backbone.name", "./nowhere"], ["./nowhere: no such folder"]),
        (["--model.adapter.targets", "[w1]"], ["no linear layer is called w1"]),
        (["--data.shards", "./nowhere"], ["nowhere: no such folder", "speedlit shard"]),
        (["--data", "PreferenceData"], ["data.init_args.shards is missing"]),
        (["--data", "{class_path: PreferenceData, init_args: {shards: SHARDS}}"], ["are of shape sft"]),
        (["--trainer.accumulate_grad_batches", "4"], ["data.init_args.micro_batch"]),
        (["--trainer.gradient_clip_val", "1.0"], ["model.init_args.clip"]),
        (["--trainer.strategy", "deepspeed_stage_3"], ["doesn't support; use fsdp"]),
        (["--trainer.strategy", "{name: fsdp, tensor_parallel_size: 0}"], ["tensor_parallel_size is 0; give the number of processes", "1: none do"]),
        (["--trainer.strategy", "{name: fsdp, tensor_parallel_size: 2}"], ["size is 2, but 1 processes don't fall into groups of 2; set it to 1"]),
        (["--trainer.strategy", "{name: ddp, checkpoint: full}"], ["strategy.checkpoint is unknown with ddp"]),
        (["--ckpt_path", "nowhere.ckpt"], ["nowhere.ckpt: no such file"]),
        (["--model.tokens.pooling", "max"], ["choose among last, mean"]),
        (["stray"], ["is no option"]),
        (["--trainer.max_steps"], ["needs a value"]),
    ],
)
def test_mistakes_are_answered_in_a_line_each(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word.replace("SHARDS", str(place / "shards")) for word in words]
    assert main(["fit", "--config", str(place / "fit.yaml"), *words]) == 2
    err = capsys.readouterr().err
    assert all(part in err for part in said), err
    assert "Traceback" not in err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert 1 <= len(errors) <= 2
    assert all(len(line) < 500 for line in errors)


def test_no_config_no_file_no_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.yaml").write_text("model: [1, 2\n")
    bad = str(tmp_path / "bad.yaml")
    for words, said in ((["--trainer.max_steps", "1"], "needs --config"), (["--config", "fit/junor"], "fit/junior"), (["--config", bad], "not valid YAML")):
        assert main(["fit", *words]) == 2
        assert said in capsys.readouterr().err
    assert main(["fit"]) == 2
    assert main(["fit", "--help"]) == 0
    assert "usage: speedlit {fit" in capsys.readouterr().out


def test_recipes_are_found_by_path_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe("fit/junior") == find_recipe("configs/fit/junior.yaml")
    (tmp_path / "configs" / "fit").mkdir(parents=True)
    (tmp_path / "configs" / "fit" / "junior.yaml").write_text("threads: 1\n")
    assert read_recipe("configs/fit/junior.yaml") == {"threads": 1}


def test_a_dotted_word_is_laid_over() -> None:
    config: dict[str, Any] = {"model": {"class_path": "A", "init_args": {"x": 1, "y": {"z": 2}}}, "trainer": {"callbacks": [{"class_path": "B"}]}}
    found = override(config, ["--model.x", "3", "--model.init_args.y.z=4", "--trainer.callbacks+=C", "--data", "D"])
    assert found["model"]["init_args"] == {"x": 3, "y": {"z": 4}}
    assert found["trainer"]["callbacks"] == [{"class_path": "B"}, {"class_path": "C"}]
    assert found["data"] == {"class_path": "D"}
    assert config["model"]["init_args"]["x"] == 1
    with pytest.raises(UsageError):
        override(config, ["x"])


def test_shard_says_what_it_wrote_and_refuses_nonsense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "texts.jsonl"
    source.write_text("\n".join(json.dumps({"text": f"{name} {i}", "label": name}) for name in "ab" for i in range(4)))
    assert main(["shard", str(source), "--to", str(tmp_path / "s"), "--label", "label", "--text", "text"]) == 0
    assert "8 contrastive rows in 1 chunk (" in capsys.readouterr().out
    from speedlit.data.shards import ShardSet

    assert ShardSet(tmp_path / "s").verify().manifest.kinds == {"classification": 8}
    (tmp_path / "empty.jsonl").write_text("")
    for words, said in (
        ([str(source), "--to", str(tmp_path / "t")], "can't tell the shape"),
        ([str(tmp_path / "absent.jsonl"), "--to", "x"], "no such file"),
        ([str(tmp_path / "empty.jsonl"), "--to", "x"], "is empty"),
        ([str(source), "--to", "x", "--label", "label"], "go together"),
        ([str(source)], "--to"),
        ([str(source), "--to", "x", "--shape", "dpo"], "invalid choice"),
    ):
        assert main(["shard", *words]) == 2, words
        assert said in capsys.readouterr().err
