"""Studies of a small finished run: nested subsets, nothing done twice, also after kill -9, and every mistake in a sentence."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from speedlit.cli import main
from speedlit.errors import UsageError
from speedlit.evaluation.folders import open_encoder
from speedlit.evaluation.run import evaluate
from speedlit.evaluation.tasks import load_tasks
from speedlit.files import read_json, read_jsonl, write_json, write_jsonl
from speedlit.models.backbone import Backbone
from speedlit.pipeline.config import RunConfig
from speedlit.pipeline.configure import parse
from speedlit.study.cells import subset
from speedlit.study.longtail import Tail, score_queries, terciles, write_probe
from speedlit.study.models import place
from speedlit.study.run import study
from speedlit.study.scaling import chosen_sizes
from speedlit.study.tables import tables
from tests.study.conftest import FREQUENCY, TOPICS


@pytest.fixture(scope="module")
def scaled(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """The root after an undisturbed study of scaling, and its summary."""
    root = copied(finished, tmp_path_factory.mktemp("scaled"))
    return root, study("scaling", at(finished, root))


def copied(finished: Path, folder: Path) -> Path:
    return Path(shutil.copytree(finished, folder / "root"))


def at(finished: Path, root: Path, **over: object) -> RunConfig:
    config = parse(str(finished.parent / "config.yaml"))
    return replace(config, root=str(root), study=replace(config.study, **over))


def marks(root: Path) -> dict[Path, int]:
    return {path.relative_to(root): path.stat().st_mtime_ns for path in root.glob("study/cells/*/cell.json")}


def scores(found: dict[str, object]) -> list[tuple[int, int, float]]:
    return [(cell["n"], cell["seed"], cell["score"]) for cell in found["cells"]]  # type: ignore[index,attr-defined]


def test_subsets_are_nested_and_stable(finished: Path, tmp_path: Path) -> None:
    triplets = finished / "stages/12-dataset/triplets-refined.jsonl"
    drawn = {n: [row["id"] for row in subset(triplets, n, 0)] for n in (6, 12, 48)}
    assert drawn[6] == drawn[12][:6]
    assert drawn[12] == drawn[48][:12]
    assert set(drawn[12]) != {row["id"] for row in subset(triplets, 12, 1)}, "another seed draws other subsets"
    backwards = tmp_path / "t.jsonl"
    write_jsonl(backwards, reversed(list(read_jsonl(triplets))))
    assert [row["id"] for row in subset(backwards, 12, 0)] == drawn[12], "the order of the file decides nothing"


def test_scaling_says_what_it_found(scaled: tuple[Path, dict[str, object]], capsys: pytest.CaptureFixture[str]) -> None:
    root, found = scaled
    assert found == read_json(root / "study/scaling/summary.json")
    assert [(cell["n"], cell["seed"]) for cell in found["cells"]] == [(n, s) for n in (6, 12, 48) for s in (0, 1)]
    assert all(cell["steps"] == 2 and cell["triplets"] == cell["n"] for cell in found["cells"])
    slope, intercept = np.polyfit(np.log10([c["n"] for c in found["cells"]]), [c["score"] for c in found["cells"]], 1)
    assert (found["a"], found["b"]) == pytest.approx((intercept, slope))
    low, high = found["interval"]
    assert low < found["b"] < high
    assert {"r2", "p_curvature", "verdict", "reach", "by_seed", "tasks"} <= set(found)
    rows = list(read_jsonl(root / "study/scaling/results.jsonl"))
    assert len(rows[0]["queries"]) == 12
    text = "\n".join(str(table) for table in tables(found))
    assert "b [95 %]" in text
    assert "head (12-20 per topic)" in text


def test_the_next_doubling_costs_what_the_run_paid_per_sample(scaled: tuple[Path, dict[str, object]]) -> None:
    step = scaled[1]["doubling"]
    usd = (9600 * 10 + 4800 * 20) / 1e6  # of 48 accepted samples; another 48 are wanted
    assert (step["from"], step["to"]) == (48, 96)
    assert step["average"]["usd"] == pytest.approx(usd)
    assert step["average"]["calls"] == pytest.approx(96)
    assert step["points_per_usd"] == pytest.approx(step["points"] / usd)
    assert step["growing_seconds"] == pytest.approx(18), "synthesis, refinement and dataset, 6 seconds each"


def test_a_rerun_trains_nothing_and_one_more_seed_only_itself(scaled: tuple[Path, dict[str, object]], finished: Path, tmp_path: Path) -> None:
    root = copied(scaled[0], tmp_path)
    before = marks(root)
    assert scores(study("scaling", at(finished, root))) == scores(scaled[1])
    assert marks(root) == before
    more = study("scaling", at(finished, root, seeds=3))
    assert len(more["cells"]) == 9
    after = marks(root)
    assert {path: after[path] for path in before} == before
    assert len(after) == len(before) + 3
    changed = root / "stages/12-dataset/triplets-refined.jsonl"
    write_jsonl(changed, list(read_jsonl(changed))[1:])
    study("scaling", at(finished, root, sizes=[6, 12, 24], seeds=1))
    assert len(marks(root)) == len(after) + 3, "other data are other cells"


def test_kill_9_in_the_middle_then_the_same_result(scaled: tuple[Path, dict[str, object]], finished: Path, tmp_path: Path) -> None:
    root = copied(finished, tmp_path)
    child = multiprocessing.get_context("fork").Process(target=study, args=("scaling", at(finished, root)))
    child.start()
    wait(lambda: len(marks(root)) >= 2)
    os.kill(int(child.pid or 0), signal.SIGKILL)
    child.join()
    done = marks(root)
    assert 2 <= len(done) < 6
    assert not (root / "study/scaling/summary.json").exists()
    assert scores(study("scaling", at(finished, root))) == scores(scaled[1])
    after = marks(root)
    assert {path: after[path] for path in done} == done
    assert len(after) == 6


@pytest.mark.parametrize("kind", ["ablation", "cross-model"])
def test_kill_9_in_the_studies_of_variants_then_the_same_result(kind: str, finished: Path, tmp_path: Path) -> None:
    backbones = [{"name": found_base(finished)}, {"name": "untrained:bert"}, {"name": f"half:{found_base(finished)}"}]
    whole, root = copied(finished, tmp_path / "whole"), copied(finished, tmp_path / "killed")
    expected = study(kind, at(finished, whole, seeds=1, backbones=backbones))
    settings = at(finished, root, seeds=1, backbones=backbones)
    child = multiprocessing.get_context("fork").Process(target=study, args=(kind, settings))
    child.start()
    wait(lambda: bool(marks(root)))
    os.kill(int(child.pid or 0), signal.SIGKILL)
    child.join()
    done = marks(root)
    assert 1 <= len(done) < 3
    assert not (root / "study" / kind / "summary.json").exists()
    found = study(kind, settings)
    assert [(cell["variant"], cell["score"]) for cell in found["cells"]] == [(cell["variant"], cell["score"]) for cell in expected["cells"]]
    assert found["variants"] == expected["variants"]
    after = marks(root)
    assert {path: after[path] for path in done} == done
    assert set(after) == set(marks(whole)) and len(after) == 3


def test_damage_is_named_with_what_mends_it(scaled: tuple[Path, dict[str, object]], finished: Path, tmp_path: Path) -> None:
    root = copied(scaled[0], tmp_path)
    cell = root / next(iter(marks(root)))
    found = read_json(cell)
    for damage, said in (({"score": None}, "a score is no number"), ({"tasks": []}, "a score is no number"), ({"score": float("nan")}, "a score is no number")):
        write_json(cell, {**found, **damage})
        with pytest.raises(UsageError, match=f"{cell} is damaged .{said}.; remove its folder, and the study trains this cell again"):
            study("scaling", at(finished, root))
    write_json(cell, {"id": found["id"]})
    with pytest.raises(UsageError, match=f"{cell} is damaged .no JSON object with score"):
        study("scaling", at(finished, root))
    write_json(cell, found)
    write_json(next(root.glob("study/probe-*.json")), {})
    with pytest.raises(UsageError, match="probe-.* is damaged .no JSON object with sets"):
        study("scaling", at(finished, root))
    (root / "stages/12-dataset/triplets-junior.jsonl").write_text("")
    with pytest.raises(UsageError, match="triplets-junior.jsonl holds no triplets, .* leave its variant out"):
        study("ablation", at(finished, root))
    write_json(root / "run.json", {"identity": None})
    with pytest.raises(UsageError, match="belongs to another config"):
        study("scaling", at(finished, root))


def wait(until: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_variants_are_compared_by_seed_and_share_their_cells(scaled: tuple[Path, dict[str, object]], finished: Path, tmp_path: Path) -> None:
    root = copied(scaled[0], tmp_path)
    found = study("ablation", at(finished, root, seeds=1))
    assert [row["name"] for row in found["variants"]] == ["full", "no-revisor", "junior-only"]
    full, senior = ([cell["score"] for cell in found["cells"] if cell["variant"] == name] for name in ("full", "no-revisor"))
    assert found["variants"][1]["over"]["score"]["mean"] == pytest.approx(np.mean(senior) - np.mean(full))
    assert "over" not in found["variants"][0]
    assert found["triplets"] == 48
    again = study("cross-model", at(finished, root, seeds=1, backbones=[{"name": found_base(finished)}, {"name": "untrained:bert"}]))
    assert [row["score"] for row in again["variants"]][0]["mean"] == pytest.approx(np.mean(full)), "the same cells under another name"
    assert len(marks(root)) == 6 + 3 + 1
    assert len(tables(again)) == 3


def found_base(finished: Path) -> str:
    return str(finished.parent / "base")


def test_terciles_by_frequency() -> None:
    frequency = dict(zip(TOPICS, FREQUENCY, strict=True))
    assert list(terciles(frequency, TOPICS).values()) == ["head", "head", "middle", "middle", "tail", "tail"]
    assert terciles({"b": 1, "a": 1, "c": 0}, ["b", "a", "c"]) == {"a": "head", "b": "middle", "c": "tail"}
    assert terciles({"a": 3}, ["a", "x"]) == {"a": "head", "x": "middle"}, "a topic without any triplet counts as well"


def test_groups_of_topics_by_hand() -> None:
    queries = [{"id": f"q{i}", "topic": TOPICS[i % 6], "group": f"g{i}"} for i in range(12)]
    tail = Tail({"sets": [{"name": "Own", "queries": queries}]}, dict(zip(TOPICS, FREQUENCY, strict=True)))
    level = {"head": 0.9, "middle": 0.5, "tail": 0.1}
    planted = {q["id"]: level[name] for name, group in tail.groups.items() for q in group}
    found = tail.table([planted, planted], [{name: 0.0 for name in planted}] * 2)
    assert [found[name]["mean"] for name in level] == pytest.approx([90, 50, 10])
    assert found["head"]["frequency"] == [12, 20]
    assert found["tail"]["over"]["mean"] == pytest.approx(10)
    assert found["middle"]["queries"] == 4


def test_scores_by_query_are_mtebs(finished: Path, tmp_path: Path) -> None:
    data = finished / "stages/12-dataset/evaldata"
    tasks, encoder = load_tasks(None, data), open_encoder(found_base(finished), pooling="mean")
    write_probe(tmp_path / "probe.json", data, tasks, [], 4)
    mine = score_queries(encoder, read_json(tmp_path / "probe.json"))
    assert np.mean(list(mine.values())) == pytest.approx(evaluate(encoder, tasks)["Own"], abs=1e-4)


def test_models_that_a_study_makes(tmp_path: Path, finished: Path) -> None:
    half = Backbone(place(f"half:{found_base(finished)}", tmp_path)).build(head=True)
    assert len(half.base_model.layers) == half.config.num_hidden_layers == 1
    bert = Backbone(place("untrained:bert", tmp_path), attention="bidirectional").build(head=False)
    llama = Backbone(place("untrained:llama", tmp_path)).build(head=True)
    assert bert.config.hidden_size == llama.config.hidden_size == 128
    assert place("speedlit:base", tmp_path) == "speedlit:base"
    with pytest.raises(UsageError, match="untrained:bert and untrained:llama"):
        place("untrained:gpt", tmp_path)


def test_sizes() -> None:
    assert chosen_sizes([], 1000) == [62, 125, 250, 500, 1000]
    assert chosen_sizes([30, 10, 20], 30) == [10, 20, 30]
    with pytest.raises(UsageError, match="asks for 31 triplets, and the source has 30"):
        chosen_sizes([10, 20, 31], 30)
    with pytest.raises(UsageError, match="3 different sizes"):
        chosen_sizes([10, 20], 30)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--root", "nowhere"], "holds no run to study; first run `speedlit run --config tiny --root nowhere`"),
        (["--seed", "7"], "belongs to another config (seed: 0 there, 7 here)"),
        (["--study.source", "seniors"], "no data source is called 'seniors'"),
        (["--study.sizes", "[1, 2]"], "3 different sizes"),
        (["--study.seeds", "0"], "study.seeds is 0"),
        (["--profile", "smal"], "there is no such profile; choose small"),
        (["--study.source", "control"], "needs the control, which this run has not trained"),
    ],
)
def test_mistakes_are_told(finished: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        assert main(["study", "scaling", "--config", str(finished.parent / "config.yaml"), *words]) == 2
    finally:
        os.chdir(here)
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_unknown_variants_and_unfinished_stages(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="study.variants has 'no-dop'"):
        study("ablation", at(finished, finished, variants=["full", "no-dop"]))
    with pytest.raises(UsageError, match="nothing to compare"):
        study("cross-model", at(finished, finished))
    root = copied(finished, tmp_path)
    (root / "stages/12-dataset/_SUCCESS").unlink()
    with pytest.raises(UsageError, match=r"reads the stage dataset, which is not finished .* first run `speedlit run"):
        study("scaling", at(finished, root))
