"""Steps on many devices by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from speedlit.cli import main
from speedlit.pipeline.config import Assumed
from speedlit.planning.footprint import Fit, known_shape, memory, per_token, trained
from speedlit.planning.scaling import step, steps, table

LLAMA = known_shape("meta-llama-3-8b")
assert LLAMA is not None
LORA = Fit(16, "all-linear", False, "bfloat16", True, False, batch=16, micro=4, length=2048, epochs=1.0, steps=None)
FULL = replace(LORA, rank=None)
CLUSTER = Assumed(tflops=300.0, utilisation=0.5, memory_gb_s=2000.0, link_gb_s=300.0, network_gb_s=25.0, latency_us=10.0)


def test_one_device_has_nothing_to_exchange() -> None:
    found = step(LLAMA, LORA, 400, 1, CLUSTER)
    assert found.exchange == found.exposed == 0
    assert found.products == pytest.approx(16 * 400 * per_token(LLAMA, LORA) / 150e12)
    assert found.update == pytest.approx(7 * 4 * trained(LLAMA, LORA) / 2000e9)  # weight, gradient, two moments read; three of them written
    assert found.seconds == found.products + found.update
    assert (found.way, found.limit, found.busy) == ("single", "products", 1)


def test_a_batch_keeps_no_more_devices_busy_than_it_has_samples() -> None:
    found = steps(LLAMA, LORA, 400, [1, 8, 16, 64, 512], CLUSTER)
    assert [s.busy for s in found] == [1, 8, 16, 16, 16]
    assert found[-1].efficiency == pytest.approx(found[2].efficiency / 32, rel=0.01)
    assert found[-1].limit == "batch"
    grown = steps(LLAMA, LORA, 400, [1, 64, 512], CLUSTER, weak=True)
    assert all(s.efficiency > 0.95 for s in grown)  # 168 MB of gradients hide behind the backward pass


def test_ddp_reduces_the_trained_weights_over_the_slowest_link() -> None:
    slow = replace(CLUSTER, network_gb_s=0.001)
    found = step(LLAMA, LORA, 400, 16, slow)
    reduced = 2 * 15 / 16 * LLAMA.adapter(16, "all-linear") * 4 / (8 * 0.001e9) + 4 * 10e-6
    assert found.exchange == pytest.approx(reduced)
    assert found.exposed == pytest.approx(reduced - found.products / 2)
    assert found.limit == "exchange"
    assert step(LLAMA, LORA, 400, 8, slow).exposed == 0  # within a node


def test_what_does_not_fit_is_sharded() -> None:
    small = replace(CLUSTER, memory_gb=60.0)
    assert memory(LLAMA, FULL)["total"] > 60e9
    found = step(LLAMA, FULL, 400, 8, small)
    assert found.way == "fsdp"
    assert found.fits
    weights = LLAMA.parameters * 2
    moved = 7 / 8 * (2 * weights + 4 * LLAMA.parameters) / 300e9  # one micro-batch: gathered twice, reduced once
    assert found.exchange == pytest.approx(moved + 3 * 32 * 3 * 10e-6)
    assert found.update == pytest.approx(7 * weights / 2000e9 / 8)
    assert not step(LLAMA, FULL, 400, 1, small).fits


def test_few_tokens_a_pass_are_bound_by_reading_the_weights() -> None:
    found = step(LLAMA, replace(LORA, batch=1), 4, 1, CLUSTER)
    assert found.seconds - found.update == found.reading > found.products
    assert found.limit == "memory bandwidth"


def test_hours_follow_the_speed_and_the_command_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    rows = table({"junior": (LLAMA, LORA, 400, 1e6)}, [1, 8], replace(CLUSTER, usd_per_hour=2.0))
    assert rows[0]["hours"] == pytest.approx(1e6 / rows[0]["tokens_per_second"] / 3600)
    assert rows[1]["usd"] == pytest.approx(rows[1]["hours"] * 16)
    assert main(["plan", "--config", "speed", "--gpus", "1,64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {(row["stage"], row["gpus"]) for row in found["scaling"]} == {(s, g) for s in ("junior", "senior", "revisor", "embedder") for g in (1, 64)}
    assert found["whole"][0]["hours"] == pytest.approx(found["total"]["device_hours"], rel=0.05)


@pytest.mark.parametrize("text", ["", "0", "8,x", "-1", "1.5", "\u00b2", "9" * 5000])
def test_numbers_of_devices_are_checked(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", "speed", f"--gpus={text}"]) == 2
    assert "--gpus" in capsys.readouterr().err
