"""What a plan of training's speed rests on: measured shares by hand, words of --measured, and a fit's own figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.bench import layer
from scripts.docs import scaling
from speedlit.cli import main
from speedlit.errors import UsageError
from speedlit.pipeline.config import Assumed
from speedlit.planning.footprint import Fit, known_shape, per_token
from speedlit.planning.measured import PARTS, Measured, read_layer, read_measured, shipped, token_seconds
from speedlit.planning.scaling import step, steps

LLAMA = known_shape("meta-llama-3-8b")
assert LLAMA is not None
LORA = Fit(16, "all-linear", False, "bfloat16", True, False, batch=16, micro=4, length=2048, epochs=1.0, steps=None)
PAIRS = replace(LORA, rank=None, reference="each", recompute=False)
VECTORS = replace(LORA, contrastive=True, cached=True, sequences=3)
HALF = Assumed(tflops=200.0, product=0.5)
SHARES = {part: 0.5 for part in PARTS} | {("generator", "layer", "lora"): 0.8, ("generator", "head", "full"): 0.25, ("embedder", "layer", "forward"): 0.4}
STAGES = ("junior", "senior")


def layer_file(path: Path, kind: str = "cpu", **machine: str) -> Path:
    rows = [{"use": use, "part": part, "work": work, "share": SHARES[use, part, work]} for use, part, work in PARTS]
    path.write_text(json.dumps({"machine": {"device": "a device", "kind": kind, **machine}, "gemm_tflops": 250.0, "rows": rows}))
    return path


def test_a_token_takes_its_layers_and_its_head_each_at_its_own_share() -> None:
    block, head, low = 32 * 218_103_808, 128256 * 4096, 41_943_040
    measured = Measured(SHARES, "a device")
    found = token_seconds(LLAMA, LORA, 400, HALF, measured)
    assert found == pytest.approx(((4 * block + 6 * low) / 0.8 + 2 * block / 0.5 + 4 * head / 0.5) / 100e12)
    found = token_seconds(LLAMA, PAIRS, 400, HALF, measured)
    assert found == pytest.approx((6 * block / 0.5 + 2 * block / 0.5 + 6 * head / 0.25 + 2 * head / 0.5) / 100e12)
    found = token_seconds(LLAMA, VECTORS, 400, HALF, measured)
    assert found == pytest.approx(((4 * block + 6 * low) / 0.5 + 2 * 2 * block / 0.4) / 100e12)  # no head; chunks again, and recomputed
    assert token_seconds(LLAMA, LORA, 400, HALF, replace(measured, rate=50e12)) == pytest.approx(2 * token_seconds(LLAMA, LORA, 400, HALF, measured))


def test_what_is_measured_on_purpose_comes_before_what_is_assumed_and_that_before_what_is_shipped() -> None:
    assumed = replace(HALF, utilisation=0.3)
    assert token_seconds(LLAMA, LORA, 400, assumed, None) == pytest.approx(per_token(LLAMA, LORA) / 60e12)
    own = Measured(SHARES, "a device")
    assert token_seconds(LLAMA, LORA, 400, assumed, own) == token_seconds(LLAMA, LORA, 400, HALF, own)
    assert token_seconds(LLAMA, LORA, 400, HALF, None) == token_seconds(LLAMA, LORA, 400, HALF, shipped())


def test_the_shipped_measurement_is_one() -> None:
    found = shipped()
    assert set(found.shares) >= set(PARTS)
    assert all(0.1 < found.shares[part] <= 1.1 for part in PARTS)
    assert found.rate is None and found.device


def test_the_bench_writes_what_the_plan_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a layer as small as layers get."""
    for name, value in {"HIDDEN": 64, "INSIDE": 128, "HEADS": 4, "KV_HEADS": 2, "VOCABULARY": 96, "PRODUCT": {"cpu": 64, "cuda": 64}}.items():
        monkeypatch.setattr(layer, name, value)
    monkeypatch.setattr(layer, "TEXTS", {"generator": ("causal", 1, 9), "embedder": ("bidirectional", 2, 5)})
    monkeypatch.setattr("sys.argv", ["layer", "--rounds", "1", "--json", str(tmp_path / "own.json")])
    assert layer.main() == 0
    shares, device, rate, kind = read_layer(tmp_path / "own.json")
    assert set(shares) == set(PARTS) and rate > 0 and kind in ("cpu", "cuda") and device
    rows = {(row["use"], row["part"], row["work"]): row["flops"] for row in json.loads((tmp_path / "own.json").read_text())["rows"]}
    block, low = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 128, 16 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))
    assert rows["generator", "layer", "lora"] == 9 * (4 * block + 6 * low)
    assert rows["embedder", "layer", "forward"] == 10 * 2 * block
    assert rows["generator", "head", "full"] == layer.PLACES * 6 * 96 * 64


def test_the_page_shows_what_the_plan_says(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["scaling"])
    assert scaling.main() == 0
    page = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()
    for line in filter(None, capsys.readouterr().out.splitlines()):
        assert line in page, "docs/scaling.md is not what python -m scripts.docs.scaling says; put its tables there"


def test_a_measured_step_is_shared_out(tmp_path: Path) -> None:
    (tmp_path / "throughput.json").write_text(json.dumps({"tokens": 64000, "seconds": 20.0, "ranks": 1}))
    measured = read_measured(["junior=8", f"senior={tmp_path / 'throughput.json'}", str(layer_file(tmp_path / "layer.json", "cuda"))], STAGES)
    assert measured is not None
    one, eight = steps(LLAMA, LORA, 400, [1, 8], HALF, measured=measured, stage="junior")
    assert (one.products, eight.products) == (pytest.approx(8.0), pytest.approx(1.0))
    assert steps(LLAMA, LORA, 400, [1], HALF, measured=measured, stage="senior")[0].products == pytest.approx(16 * 400 * 20 / 64000)
    other = steps(LLAMA, LORA, 400, [1], HALF, measured=measured, stage="revisor")[0]
    assert other.products == step(LLAMA, LORA, 400, 1, HALF, token_seconds(LLAMA, LORA, 400, HALF, Measured(SHARES, "", 250e12))).products


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("none.json", "none.json"),
        ("writer=3", "no stage is called writer; choose among junior, senior"),
        ("junior=0", "above 0"),
        ("junior=gone.json", "no file gone.json; give seconds of a step"),
        ("junior=two.json", "is of 2 ranks.*give that of a fit on one device"),
        ("junior=\u00b2", "no file \u00b2; give seconds"),
        ("junior=" + "9" * 60, "no more than a fit can take"),
        ("junior=words.json", "has 'x' seconds and 5 tokens, not numbers above 0; give that of a fit that ran"),
        ("junior=below.json", "has -5 seconds and -5 tokens"),
        ("junior=endless.json", "no more than a fit can take"),
        ("boundless.json", "no share above 0 .*of a large product"),
        ("holes.json", "no share above 0 and below 100 of generator head full"),
        ("wrong.json", "is no measurement of a layer .*scripts.bench.layer"),
    ],
)
def test_a_word_that_measures_nothing_is_named(word: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("two.json").write_text(json.dumps({"tokens": 1, "seconds": 1.0, "ranks": 2}))
    for name, seconds, tokens in (("words", "x", 5), ("below", -5, -5), ("endless", float("inf"), 5)):
        Path(f"{name}.json").write_text(json.dumps({"tokens": tokens, "seconds": seconds, "ranks": 1}))
    found = json.loads(layer_file(Path("holes.json")).read_text())
    Path("holes.json").write_text(json.dumps({**found, "rows": [row for row in found["rows"] if (row["part"], row["work"]) != ("head", "full")]}))
    Path("boundless.json").write_text(json.dumps({**found, "gemm_tflops": float("inf")}))
    Path("wrong.json").write_text(json.dumps({**found, "rows": [{"share": 1}]}))
    with pytest.raises(UsageError, match=said):
        read_measured([word], STAGES)


def test_the_plan_takes_measured_speed_and_says_where_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def planned(*words: str) -> dict[str, float]:
        assert main(["plan", "--config", "speed", "--gpus", "8", "--json", *words]) == 0
        found = json.loads(capsys.readouterr().out)
        said.append(" ".join(found["assumed"]))
        assert found["whole"][0]["hours"] == pytest.approx(found["total"]["hours"], rel=0.1)  # the plan has 8 devices, too
        return {row["stage"]: row["seconds"] for row in found["scaling"]}

    said: list[str] = []
    shares = planned()
    own = planned("--measured", str(layer_file(tmp_path / "layer.json")), "--measured", "junior=800")
    assert own["junior"] == pytest.approx(100, rel=0.01)
    assert own["senior"] != shares["senior"]
    assert planned("--plan.utilisation", "0.2")["senior"] == pytest.approx(2 * planned("--plan.utilisation", "0.4")["senior"], rel=0.01)
    assert "measured on" in said[0] and "a device" in said[1] and "junior by its own steps" in said[1] and "20% of the peak in training" in said[2]
