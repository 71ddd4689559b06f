"""How long a token takes in training: from measured shares of a device's large products, or from a fit's own steps.

``scripts/bench/layer.py`` measures one decoder layer and a head of the real shape: what share of the rate of a large matrix product
they reach, forward, with LoRA, and with all weights trained. ``layer.json`` beside this file is such a measurement, and what a plan
rests on unless ``--measured`` names another. A network's time is that of its layers and its head, and each pass counts for itself:

    layer = (4 P + 6 A) / share(LoRA), or 6 P / share(full), and 2 P / share(forward) for each pass more (recomputed, chunks again, reference)
    head  = 4 V D / share(LoRA), or 6 V D / share(full), and 2 V D / share(forward) for a reference; none where vectors are trained
    a token's seconds = (layers x layer + head) / the rate of a large product

P are the weights of a layer's matrices, A those of its adapter, V x D those of the head, which is counted for every token. The rate of
a large product is the measured one where the file is the device's own, else ``plan.tflops`` x ``plan.product``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from speedlit.errors import UsageError
from speedlit.files import read_object
from speedlit.pipeline.config import Assumed
from speedlit.planning.footprint import Fit, Shape, per_token, trained

SHIPPED = Path(__file__).with_name("layer.json")
MAKE = "make it with python -m scripts.bench.layer --json FILE"
WORKS = ("forward", "lora", "full")
LEAST, MOST = 1e-12, 1e9  # seconds of a token or a step: no device is faster, nobody waits longer
PARTS = (*(("generator", "layer", work) for work in WORKS), *(("embedder", "layer", work) for work in WORKS), *(("generator", "head", work) for work in WORKS))


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        shares: use, part and work -> share of a large product's rate.
        device: where.
        rate: FLOP/s of a large product on that device, if plans are to be made for it; None: they are for ``plan.tflops``.
        steps: stage -> seconds of one step on one device.
        tokens: stage -> seconds of a token on one device.
    """

    shares: Mapping[tuple[str, str, str], float]
    device: str
    rate: float | None = None
    steps: Mapping[str, float] = field(default_factory=dict)
    tokens: Mapping[str, float] = field(default_factory=dict)


@lru_cache
def shipped() -> Measured:
    """The measurement that comes with the package."""
    shares, device, _, _ = read_layer(SHIPPED)
    return Measured(shares, device)


def read_layer(path: Path) -> tuple[dict[tuple[str, str, str], float], str, float, str]:
    """Shares, device, rate of a large product and kind of device out of a file of ``scripts/bench/layer.py``.

    Raises:
        UsageError: something is missing, or no number above 0.
    """
    found = read_object(path, "machine", "gemm_tflops", "rows")
    try:
        shares = {(row["use"], row["part"], row["work"]): float(row["share"]) for row in found["rows"]}
        device, kind, rate = str(found["machine"]["device"]), str(found["machine"]["kind"]), float(found["gemm_tflops"]) * 1e12
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is no measurement of a layer ({type(error).__name__}: {error}); {MAKE}") from error
    missing = [" ".join(part) for part in PARTS if not 1e-6 < shares.get(part, 0) < 100]
    if missing or not 0 < rate < math.inf:
        raise UsageError(f"{path} has no share above 0 and below 100 of {', '.join(missing) or 'a large product'}; {MAKE}")
    return shares, device, rate, kind


def read_measured(words: Sequence[str], stages: Sequence[str]) -> Measured | None:
    """What ``--measured`` names; None: nothing.

    Args:
        words: each a file of ``scripts/bench/layer.py``, ``STAGE=SECONDS`` of a step on one device, or ``STAGE=FILE``, a fit's throughput.json.
        stages: that train.

    Raises:
        UsageError: a word that is none of these, or a file that can't be read so.
    """
    if not words:
        return None
    own = shipped()
    shares, device, rate = own.shares, own.device, own.rate
    steps: dict[str, float] = {}
    tokens: dict[str, float] = {}
    for word in words:
        stage, mark, value = word.partition("=")
        if not mark:
            shares, device, peak, kind = read_layer(Path(word))
            rate = None if kind == "cpu" else peak
        elif stage not in stages:
            raise UsageError(f"--measured {word}: no stage is called {stage}; choose among {', '.join(stages)}")
        elif value.isascii() and value.replace(".", "", 1).isdigit():
            steps[stage] = positive(word, float(value))
        else:
            tokens[stage] = positive(word, of_fit(word, Path(value)))
    return Measured(shares, device, rate, steps, tokens)


def of_fit(word: str, path: Path) -> float:
    """Seconds of a token out of the figures that a fit has left."""
    if not path.is_file():
        raise UsageError(f"--measured {word}: there is no file {path}; give seconds of a step, or the throughput.json of a fit")
    found = read_object(path, "tokens", "seconds", "ranks")
    if found["ranks"] != 1:
        raise UsageError(f"--measured {word}: {path} is of {found['ranks']} ranks, whose steps hold their exchange; give that of a fit on one device")
    seconds, tokens = found["seconds"], found["tokens"]
    if not all(type(figure) in (int, float) and figure > 0 for figure in (seconds, tokens)):
        raise UsageError(f"--measured {word}: {path} has {seconds!r} seconds and {tokens!r} tokens, not numbers above 0; give that of a fit that ran")
    return float(seconds / tokens)


def positive(word: str, seconds: float) -> float:
    """The seconds.

    Raises:
        UsageError: none, less, or so few or many that no rate can be told from them.
    """
    if not LEAST < seconds < MOST:
        raise UsageError(f"--measured {word}: seconds must be above 0, and no more than a fit can take; give those of a step as you have timed it")
    return seconds


def equal(shape: Shape, fit: Fit, shares: Mapping[tuple[str, str, str], float]) -> float:
    """The FLOPs of a large product that takes as long as one token of this fit."""
    use, work = "embedder" if fit.contrastive else "generator", "lora" if fit.rank else "full"
    block, head = shape.layers * sum(a * b for a, b in shape.linear.values()), shape.vocabulary * shape.hidden
    reference = fit.reference == "each"
    passes = fit.recompute + fit.cached + reference
    once = 4 * block + 6 * trained(shape, fit) if fit.rank else 6 * block
    found = once / shares[use, "layer", work] + passes * 2 * block / shares[use, "layer", "forward"]
    if not fit.contrastive:
        found += (4 if fit.rank else 6) * head / shares[use, "head", work] + reference * 2 * head / shares[use, "head", "forward"]
    return found


def token_seconds(shape: Shape, fit: Fit, tokens: float, assumed: Assumed, measured: Measured | None, stage: str = "") -> float:
    """Seconds that one token takes one device.

    Args:
        shape: of the network.
        fit: its recipe.
        tokens: of a sample, all its texts together.
        assumed: peak; its ``utilisation`` counts where nothing was measured on purpose.
        measured: what ``--measured`` has named, or None.
        stage: the fit's name.
    """
    if measured is not None and stage in measured.steps:
        return measured.steps[stage] / (fit.batch * tokens)
    if measured is not None and stage in measured.tokens:
        return measured.tokens[stage]
    if measured is None and assumed.utilisation is not None:
        return per_token(shape, fit) / (assumed.tflops * 1e12 * assumed.utilisation)
    found = measured or shipped()
    return equal(shape, fit, found.shares) / (found.rate or assumed.tflops * 1e12 * assumed.product)


def words(assumed: Assumed, measured: Measured | None) -> str:
    """What training's speed rests on."""
    if measured is None and assumed.utilisation is not None:
        return f"{assumed.utilisation:.0%} of the peak in training (plan.utilisation; assumed)"
    found: Any = measured or shipped()
    own = [f"{name} by its own steps" for name in (*found.steps, *found.tokens)]
    rate = f"its large product's {found.rate / 1e12:,.0f} TFLOP/s" if found.rate else f"{assumed.product:.0%} of the peak for a large product (plan.product)"
    shares = " and ".join(f"{found.shares['generator', 'layer', work]:.0%} {name}" for work, name in (("lora", "with LoRA"), ("full", "in full")))
    return "; ".join([f"training: shares of a large product measured on {found.device}: a layer {shares}; {rate}", *own])
