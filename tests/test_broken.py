"""Forty broken configs and inputs: each is answered with its key or file and a remedy, none with a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from speedlit.cli import main
from speedlit.pipeline.loop import stages

RUN = [  # a run's YAML -> what must be said
    ("nme: x", [":1: unknown key `nme`", "did you mean `name`"]),
    ("name: x\ncounts:\n  sede: 3", [":3: unknown key `counts.sede`", "counts.seed"]),
    ("teacher: {embedded: {writer_nois: 0}}", [":1: unknown key `teacher.embedded.writer_nois`", "writer_noise"]),
    ("counts: {seed: many}", [":1: counts.seed is many", "int"]),
    ("counts: {seed: [1]}", ["counts.seed", "int"]),
    ("seed: {a: 1}", [":1: seed", "int"]),
    ("control: perhaps", ["control is perhaps", "bool"]),
    ("counts: 3", [":1: counts is 3; expected keys and values"]),
    ("tasks: {test: 0.6, validation: 0.6}", ["tasks.test and tasks.validation together", "lower one"]),
    ("tasks: {test: .nan}", ["tasks.test is nan", "finite"]),
    ("counts: {candidates: 1}", ["counts.candidates is 1; it must be at least 2"]),
    ("teacher: {mode: bach}", ["teacher.mode is 'bach'; choose live or batch"]),
    ("judge_swap: maybe", ["judge_swap is 'maybe'; choose drop or keep or null"]),
    ("sampling: {top_p: 1.5}", ["sampling.top_p is 1.5; it must be at most 1"]),
    ("budget: {usd: 3}", ["budget.usd needs a price", "add `"]),
    ("base: ''", ["base is empty; give a name"]),
    ("topics: null", [":1: topics is None; expected keys and values"]),
    ("a: b: c", [":1:5 is not valid YAML"]),
    ("seed: 1\nseed: 2", [":2:1 is not valid YAML: key `seed` stands there twice; keep one"]),
    ("'just words'", ["holds str, not a mapping"]),
]
FIT = [  # words after `speedlit fit --config fit/senior --data.shards s`
    (["--trainer.max_stepz", "3"], ["`trainer.max_stepz`", "did you mean `trainer.max_steps`"]),
    (["--model.bta", "3"], ["`model.init_args.bta`", "did you mean `model.init_args.beta`"]),
    (["--model.backbone.nmae", "x"], ["`model.init_args.backbone.nmae`", "backbone.name"]),
    (["--optimizer.lrr", "1"], ["`optimizer.init_args.lrr`", "optimizer.init_args.lr"]),
    (["--model.adapter.rr", "1"], ["rr`", "model.init_args.adapter."]),
    (["--model.beta", "much"], ["model.beta is much; expected float"]),
    (["--trainer.max_steps", "many"], ["trainer.max_steps is many; expected int"]),
    (["--model.class_path", "DPOModul"], ["DPOModul", "did you mean `DPOModule`"]),
    (["--model.class_path", "nowhere.Module"], ["model.class_path nowhere.Module can't be imported"]),
    (["--model.class_path", "speedlit.losses.preference.ipo"], ["class_path speedlit.losses.preference.ipo is a function; it has to be a class"]),
    (["--trainer.callbacks+", "SFTModule"], ["trainer.callbacks[0].class_path speedlit.modules.sft.SFTModule is no Callback"]),
    (["--trainer.accumulate_grad_batches", "4"], ["trainer.accumulate_grad_batches has no effect here; set data.init_args.micro_batch"]),
    (["--trainer.gradient_clip_val", "4"], ["set model.init_args.clip"]),
    (["--trainer.strategy", "dpd"], ["trainer.strategy is dpd", "did you mean `ddp`"]),
    (["--ckpt_path", "gone.ckpt"], ["--ckpt_path gone.ckpt: no such file"]),
    (["stray"], ["'stray' is no option; write --key value"]),
    (["--trainer.max_steps"], ["--trainer.max_steps needs a value"]),
]
WORDS = [  # whole command lines
    (["fti"], ["did you mean `speedlit fit`"]),
    (["fit"], ["usage: speedlit"]),
    (["fit", "--config", "fit/juniorr"], ["no shipped recipe of that name; near it: fit/junior"]),
    (["run", "--config", "."], ["is a folder; name a YAML file"]),
    (["shard", "absent.jsonl", "--to", "s"], ["absent.jsonl"]),
    (["shard", "empty.jsonl", "--to", "s"], ["empty.jsonl"]),
    (["shard", "broken.jsonl", "--to", "s"], ["broken.jsonl", "1"]),
    (["evaluate", "absent", "--tasks", "Banking77Classification"], ["absent"]),
    (["export", "absent", "--to", "out"], ["absent"]),
    (["report", "absent"], ["absent is not the root of a run", "--root"]),
]


def told(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What standard error says to a command line that has to fail in words."""
    code = main(words)
    shown = capsys.readouterr()
    assert code in (1, 2), words
    assert "Traceback" not in shown.err
    return shown.err + shown.out


def test_they_are_forty() -> None:
    assert len(RUN) + len(FIT) + len(WORDS) >= 40


@pytest.mark.parametrize(("text", "said"), RUN)
def test_a_broken_run_config(text: str, said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text + "\n")
    answer = told(["run", "--config", str(path)], capsys)
    assert str(path) in answer
    assert len(answer.splitlines()) <= 3
    for part in said:
        assert part in answer


@pytest.mark.parametrize(("words", "said"), FIT)
def test_a_broken_fit(words: list[str], said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answer = told(["fit", "--config", "fit/senior", "--data.shards", "s", *words], capsys)
    assert len(answer.splitlines()) <= 3
    for part in said:
        assert part in answer


@pytest.mark.parametrize(("words", "said"), WORDS)
def test_a_broken_command_line(words: list[str], said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").write_text("")
    Path("broken.jsonl").write_text('{"prompt": "a"\n')
    answer = told(words, capsys)
    for part in said:
        assert part in answer


def test_all_mistakes_of_a_run_config_are_told_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("sed: 1\ncounts:\n  seed: many\n  root: some\n  synthesis: 0\nbase: null\nrevision: half\nfilters: 3\nteacher:\n  embedded: {judge: 1}\n")
    answer = told(["run", "--config", str(path), "--sampling.top_p", "7", "--counts.candidates", "few"], capsys)
    for line, key in enumerate(["sed", "counts.seed is", "counts.root is", "counts.synthesis is", "base is", "revision is", "filters is"]):
        at = line + 1 if line == 0 else line + 2
        assert any(row.startswith(f"error: {path}:{at}: ") and key in row for row in answer.splitlines()), (key, answer)
    assert f"{path}:10: unknown key `teacher.embedded.judge`" in answer
    assert "command line: sampling.top_p is 7" in answer
    assert "command line: counts.candidates is few; expected int" in answer
    assert len(answer.splitlines()) == 10


def test_all_mistakes_of_a_fit_are_told_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model.beta", "much", "--trainer.max_steps", "many", "--data.batch_size", "x", "--optimizer.lr", "fast", "--model.bta", "1"]
    answer = told(["fit", "--config", "fit/senior", "--data.shards", "s", *words], capsys)
    for key in ("model.init_args.bta", "model.beta is much", "trainer.max_steps is many", "data.batch_size is x", "model.optimizer.lr is fast"):
        assert key in answer
    assert len(answer.splitlines()) == 5


def test_help_plan_and_completion_need_no_torch(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("Arts/Movies/Titles\n")
    code = f"""
import sys
from speedlit.cli import COMMANDS, main
for words in [*([name, "--help"] for name in COMMANDS), ["completion", "bash"], ["plan", "--config", "speed", "--topics", {str(tmp_path / "t.txt")!r}]]:
    try:
        main(words)
    except SystemExit:
        pass
    heavy = [m for m in ("torch", "lightning", "transformers") if m in sys.modules]
    assert not heavy, (words, heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_completion_knows_commands_recipes_and_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out

    def complete(*words: str) -> list[str]:
        call = f"{script}\nCOMP_WORDS=({' '.join(repr(w) for w in words)}); COMP_CWORD={len(words) - 1}; _speedlit; echo ${{COMPREPLY[@]}}"
        return subprocess.run(["bash", "-c", call], capture_output=True, text=True, check=True).stdout.split()

    assert complete("speedlit", "ev") == ["evaluate"]
    assert complete("speedlit", "run", "--config", "dem") == ["demo"]
    assert complete("speedlit", "run", "--counts.se") == ["--counts.seed"]
    assert complete("speedlit", "run", "--until", "jun") == ["junior"]
    assert complete("speedlit", "run", "--from", "") == list(stages())


def test_fit_help_all_shows_every_key_of_the_named_classes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--help-all", "--config", "fit/senior"]) == 0
    out = capsys.readouterr().out
    for key in ("--model.beta", "--model.backbone.name", "--data.batch_size", "--trainer.max_steps", "--optimizer.lr"):
        assert key in out
