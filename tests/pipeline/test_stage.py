"""Skipped, resumed, redone: the state of a stage's folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from speedlit.context import Context
from speedlit.errors import SpeedlitError, UsageError
from speedlit.files import read_json
from speedlit.pipeline.config import Embedded, RunConfig, Teacher
from speedlit.pipeline.loop import outcome, owned, perform
from speedlit.pipeline.services import Services
from speedlit.pipeline.stage import Stage


class Loop:
    """Three stages a -> b, c; each writes what it read."""

    def __init__(self, root: Path) -> None:
        self.root, self.ran, self.said = root, [], []
        self.config = {"x": 1, "y": 1}
        self.fail: set[str] = set()
        self.every = {
            "a": Stage(1, "a", (), ("x",), self.body("a")),
            "b": Stage(2, "b", ("a",), ("y",), self.body("b")),
            "c": Stage(3, "c", (), (), self.body("c")),
        }

    def body(self, name: str) -> Callable[[Context], None]:
        def run(ctx: Context) -> None:
            self.ran.append(name)
            (ctx.out / "half.txt").write_text("kept" if (ctx.out / "half.txt").exists() else "new")
            if name in self.fail:
                raise SpeedlitError("broke")
            (ctx.out / "sub").mkdir(exist_ok=True)
            (ctx.out / "sub" / "out.txt").write_text(str(ctx.config))
            ctx.ledger.accepted = 1

        return run

    def run(self) -> list[str]:
        self.ran, self.said = [], []
        services = Services(RunConfig(root=str(self.root)), self.root)
        for stage in self.every.values():
            perform(stage, self.every, self.config, self.root, services, self.said.append)
        return self.ran


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    return Loop(tmp_path)


def test_a_finished_stage_is_skipped(loop: Loop) -> None:
    assert loop.run() == ["a", "b", "c"]
    assert loop.run() == []
    assert all("already done" in line for line in loop.said)


def test_a_changed_key_redoes_its_stage_and_dependents_only(loop: Loop) -> None:
    loop.run()
    loop.config["y"] = 2
    assert loop.run() == ["b"]
    assert any("config changed" in line for line in loop.said)
    loop.config["x"] = 2
    assert loop.run() == ["a", "b"]


def test_a_deleted_folder_redoes_its_stage_and_dependents_only(loop: Loop) -> None:
    from speedlit.files import remove

    loop.run()
    remove(loop.every["a"].folder(loop.root))
    assert loop.run() == ["a", "b"]
    remove(loop.every["c"].folder(loop.root))
    assert loop.run() == ["c"]


def test_a_missing_part_is_noticed(loop: Loop) -> None:
    loop.run()
    (loop.every["b"].folder(loop.root) / "sub" / "out.txt").unlink()
    assert loop.run() == ["b"]


def test_a_changed_byte_in_a_finished_file_is_told_and_nothing_is_overwritten(loop: Loop) -> None:
    loop.run()
    part = loop.every["b"].folder(loop.root) / "sub" / "out.txt"
    mine = part.read_bytes() + b"!"
    part.write_bytes(mine)
    with pytest.raises(SpeedlitError, match=r"b: .*out\.txt is not what the stage wrote.*--from b"):
        loop.run()
    assert part.read_bytes() == mine
    services = Services(RunConfig(root=str(loop.root)), loop.root)
    perform(loop.every["b"], loop.every, loop.config, loop.root, services, loop.said.append, redo=True)
    assert loop.run() == []


@pytest.mark.parametrize("text", ["", '{"parts": 3, "config": "", "inputs": {}}', '{"parts": {}, "config": "", "inputs": []}', "[]"])
def test_a_damaged_manifest_is_told_with_its_remedy(loop: Loop, text: str) -> None:
    loop.run()
    manifest = loop.every["a"].folder(loop.root) / "manifest.json"
    manifest.write_text(text)
    with pytest.raises(UsageError, match=r"manifest\.json.*remove it"):
        loop.run()
    manifest.unlink()
    assert loop.run()[0] == "a"


def test_an_address_that_is_none_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "ht!tp")
    with pytest.raises(UsageError, match=r"OPENAI_BASE_URL.*is no address"):
        Services(RunConfig(root=str(tmp_path), teacher=Teacher(embedded=Embedded())), tmp_path).checker()


def test_a_copied_root_is_still_finished(loop: Loop) -> None:
    import os

    loop.run()
    for part in loop.root.rglob("*.txt"):
        os.utime(part, (1, 1))  # as a copy without times would have it
    assert loop.run() == []


def test_an_interrupted_stage_goes_on_in_its_folder(loop: Loop) -> None:
    loop.fail = {"b"}
    with pytest.raises(SpeedlitError):
        loop.run()
    loop.fail = set()
    assert loop.run() == ["b", "c"]
    assert (loop.every["b"].folder(loop.root) / "half.txt").read_text() == "kept"
    assert any("going on" in line for line in loop.said)


def test_an_interrupted_stage_of_another_config_starts_anew(loop: Loop) -> None:
    loop.fail = {"b"}
    with pytest.raises(SpeedlitError):
        loop.run()
    loop.fail, loop.config["y"] = set(), 3
    assert loop.run() == ["b", "c"]
    assert (loop.every["b"].folder(loop.root) / "half.txt").read_text() == "new"


def test_the_manifest_knows_parts_and_ledger(loop: Loop) -> None:
    loop.run()
    manifest = read_json(loop.every["b"].folder(loop.root) / "manifest.json")
    assert set(manifest["parts"]) == {"half.txt", "sub/out.txt"}
    assert all(len(digest) == 64 for digest in manifest["parts"].values())
    assert manifest["ledger"]["accepted"] == 1
    assert set(manifest["inputs"]) == {"a"}


def test_a_root_belongs_to_one_config(tmp_path: Path) -> None:
    mine = RunConfig(name="one").plain()
    with owned(tmp_path, mine):
        pass
    with owned(tmp_path, {**mine, "counts": {"seed": 1}}):
        pass  # another count is a change of the same run
    with pytest.raises(UsageError, match="belongs to another config.*seed"), owned(tmp_path, {**mine, "seed": 9}):
        pass


def test_two_processes_in_one_root_are_refused(tmp_path: Path) -> None:
    mine = RunConfig(name="one").plain()
    with owned(tmp_path, mine), pytest.raises(SpeedlitError, match="another speedlit process"), owned(tmp_path, mine):
        pass


def test_an_unwritable_root_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpeedlitError, match="--root"), owned(tmp_path / "file" / "root", RunConfig().plain()):
        pass


def test_outcome_counts_calls(tmp_path: Path) -> None:
    ctx = Context("seed", tmp_path, {}, {}, tmp_path, lambda role: pytest.fail(role))
    ctx.ledger.accepted, ctx.ledger.calls, ctx.ledger.cached = 3, 4, 2
    ctx.ledger.reject("not_json")
    assert outcome(ctx) == "3 accepted, 1 rejected, 4 calls (2 from the journal)"


def test_another_base_under_the_same_name_counts_as_a_change(tmp_path: Path) -> None:
    from speedlit.pipeline.stage import config_slice

    base = tmp_path / "base"
    base.mkdir()
    (base / "model.safetensors").write_bytes(b"one")
    before = config_slice({"base": str(base)}, ("base",))
    assert config_slice({"base": str(base)}, ("base",)) == before
    (base / "model.safetensors").write_bytes(b"other")
    assert config_slice({"base": str(base)}, ("base",)) != before
    assert config_slice({"base": "speedlit:base"}, ("base",))["base files"]


def test_a_changed_recipe_file_counts_as_a_change(tmp_path: Path) -> None:
    from speedlit.pipeline.stage import config_slice

    recipe = tmp_path / "fit.yaml"
    recipe.write_text("model: {class_path: A}\n")
    config = {"junior": {"recipe": str(recipe), "set": {}}}
    before = config_slice(config, ("junior",))
    recipe.write_text("model: {class_path: B}\n")
    assert config_slice(config, ("junior",)) != before
