"""What a training step takes on 1, 8, 64, 512 devices: arithmetic on shapes, message sizes and link speeds.

    step = max(products, reading the weights) + update + what of the exchange is not hidden behind the products

    products    samples of the busiest rank x tokens x seconds of a token on one device (``measured.py``)
    reading     passes x bytes of the weights / memory bandwidth: a floor for few tokens a pass
    update      gradients and the optimizer's two moments are read with the weights, and all but the gradients written, once a step
    exchange    ddp: trained parameters x 4 bytes, all-reduced once a step: each rank sends and receives 2 (g - 1) / g of them
                fsdp: weights gathered for the forward and for the backward pass of every micro-batch, trained ones reduced
                contrastive: the vectors of the whole batch are gathered, and their gradients reduced; nothing hides that
    hidden      ddp: behind the backward pass, half of the products; fsdp: behind all of them, layer by layer

A rank's share of a global batch is a whole number of samples, so a batch of 16 keeps at most 16 devices busy. The same batch on more
devices is `strong` scaling, which changes nothing of the training; `weak` gives each device what the fullest one has at g = 1 and
therefore trains with larger batches, another recipe. Link speeds are per device and direction. The FSDP volumes are those of ZeRO-3
(arXiv 1910.02054, section 7), the ring's 2 (g - 1) / g is Patarasuk and Yuan 2009.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from speedlit.pipeline.config import Assumed
from speedlit.planning.footprint import BYTES, NF4, Fit, Shape, memory, trained
from speedlit.planning.measured import Measured, token_seconds

GRADIENT = 4  # bytes: adapters have 32 bits, and sharded gradients are reduced in 32


@dataclass(frozen=True)
class Step:
    """One optimizer step on so many devices.

    Attributes:
        gpus: devices.
        busy: of them with samples.
        way: ``single``, ``ddp`` or ``fsdp``: fsdp where the whole model does not fit into one device.
        tokens_per_second: of all devices.
        efficiency: per device against one device.
        seconds: of a step; ``products``, ``reading``, ``update``, ``exchange`` (hidden or not) and ``exposed`` of it.
        limit: what most of the lost time goes to.
        memory: bytes on one device.
        fits: within the device's memory.
    """

    gpus: int
    busy: int
    way: str
    tokens_per_second: float
    efficiency: float
    seconds: float
    products: float
    reading: float
    update: float
    exchange: float
    exposed: float
    limit: str
    memory: float
    fits: bool


def steps(
    shape: Shape, fit: Fit, tokens: float, gpus: Sequence[int], assumed: Assumed, weak: bool = False, measured: Measured | None = None, stage: str = ""
) -> list[Step]:
    """The steps of one fit.

    Args:
        shape: of the network.
        fit: its recipe.
        tokens: of a sample, all its texts together.
        gpus: numbers of devices.
        assumed: peak, utilisation, memory and links.
        weak: the batch grows with the devices.
        measured: what the seconds of a token rest on; None: the assumed utilisation, or what is shipped.
        stage: the fit's name.
    """
    seconds = token_seconds(shape, fit, tokens, assumed, measured, stage)
    one = step(shape, fit, tokens, 1, assumed, seconds)
    found = [step(shape, replace(fit, batch=fit.batch * g) if weak else fit, tokens, g, assumed, seconds) for g in gpus]
    return [replace(s, efficiency=s.tokens_per_second / s.gpus / one.tokens_per_second) for s in found]


def step(shape: Shape, fit: Fit, tokens: float, gpus: int, assumed: Assumed, seconds_each: float | None = None) -> Step:
    """One step, of tokens that take one device ``seconds_each``; its efficiency is filled in by ``steps``."""
    share = math.ceil(fit.batch / gpus)
    passes = math.ceil(share * (fit.sequences if fit.contrastive else 1) / fit.micro)
    whole = memory(shape, fit)["total"]
    sharded = gpus > 1 and whole > assumed.memory_gb * 1e9
    products = share * tokens * (token_seconds(shape, fit, tokens, assumed, None) if seconds_each is None else seconds_each)
    weights = shape.parameters * (NF4 if fit.quantized else BYTES[fit.dtype])
    reads = 2 + fit.recompute + fit.cached + (fit.reference == "each")
    reading = passes * reads * weights / (assumed.memory_gb_s * 1e9)
    work = max(products, reading)
    exchange, hidden = traffic(shape, fit, gpus, passes, sharded, weights, assumed), work if sharded else work / 2
    vectors = gathered(shape, fit, gpus, assumed)
    exposed = max(0.0, exchange - hidden) + vectors
    parts = memory(shape, fit)
    update = (3 * parts["gradients"] + 2 * parts["optimizer"]) / (gpus if sharded else 1) / (assumed.memory_gb_s * 1e9)  # weights are as large as gradients
    seconds = work + update + exposed
    held = spread(shape, fit, gpus) if sharded else whole
    busy = min(gpus, math.ceil(fit.batch / share))
    idle = work * (1 - fit.batch / (share * gpus))
    losses = {"batch": idle, "memory bandwidth": work - products, "update": update, "exchange": exposed}
    worst = max(losses, key=lambda name: losses[name])
    limit = worst if losses[worst] > 0.02 * seconds else "products"
    way = "single" if gpus == 1 else "fsdp" if sharded else "ddp"
    rate = fit.batch * tokens / seconds
    fits = held <= assumed.memory_gb * 1e9
    return Step(gpus, busy, way, rate, 1.0, seconds, products, reading, update, exchange + vectors, exposed, limit, held, fits)


def bandwidth(gpus: int, assumed: Assumed) -> float:
    """Bytes per second at which a ring passes a message on. It leaves a node once, and as many rings as the node has adapters share the message."""
    return 1e9 * (assumed.link_gb_s if gpus <= assumed.gpus_per_node else min(assumed.link_gb_s, assumed.network_gb_s * assumed.gpus_per_node))


def delay(gpus: int, assumed: Assumed) -> float:
    """Seconds that a collective takes however small it is: a tree over the devices."""
    return math.ceil(math.log2(gpus)) * assumed.latency_us * 1e-6 if gpus > 1 else 0.0


def traffic(shape: Shape, fit: Fit, gpus: int, passes: int, sharded: bool, weights: float, assumed: Assumed) -> float:
    """Seconds that weights and gradients are on the links in a step."""
    if gpus == 1:
        return 0.0
    part, gradients = (gpus - 1) / gpus / bandwidth(gpus, assumed), trained(shape, fit) * GRADIENT
    if not sharded:
        return 2 * gradients * part + delay(gpus, assumed)
    gathers = 2 + (fit.reference == "each")  # one for each pass; a recomputed layer is there already
    return passes * (gathers * weights + gradients) * part + passes * (gathers + 1) * shape.layers * delay(gpus, assumed)


def gathered(shape: Shape, fit: Fit, gpus: int, assumed: Assumed) -> float:
    """Seconds for a contrastive batch's vectors, there and back."""
    if gpus == 1 or not fit.contrastive:
        return 0.0
    size = fit.batch * fit.sequences * shape.hidden * 4
    return 2 * size * (gpus - 1) / gpus / bandwidth(gpus, assumed) + 2 * delay(gpus, assumed)


def spread(shape: Shape, fit: Fit, gpus: int) -> float:
    """Bytes on one device with weights, gradients and optimizer sharded; two layers are whole at a time."""
    parts = memory(shape, fit)
    layer = sum(a * b for a, b in shape.linear.values()) * BYTES[fit.dtype]
    return (parts["weights"] + parts["gradients"] + parts["optimizer"]) / gpus + parts["activations"] + 2 * layer


def table(
    fits: dict[str, tuple[Shape, Fit, float, float]], gpus: Sequence[int], assumed: Assumed, measured: Measured | None = None
) -> list[dict[str, Any]]:
    """Rows of several fits: stage, the step's figures, its efficiency with growing batches, hours and USD of the whole stage.

    Args:
        fits: stage -> shape, recipe, tokens of a sample, trained tokens of the stage (all its fits).
        gpus: numbers of devices.
        assumed: of the devices.
        measured: what the seconds of a token rest on; None: the assumed utilisation, or what is shipped.
    """
    out = []
    for stage, (shape, fit, tokens, all_tokens) in fits.items():
        grown = steps(shape, fit, tokens, gpus, assumed, True, measured, stage)
        for found, weak in zip(steps(shape, fit, tokens, gpus, assumed, False, measured, stage), grown, strict=True):
            hours = all_tokens / found.tokens_per_second / 3600
            usd = None if assumed.usd_per_hour is None else hours * found.gpus * assumed.usd_per_hour
            out.append({"stage": stage, **asdict(found), "weak_efficiency": weak.efficiency, "weak_limit": weak.limit, "hours": hours, "usd": usd})
    return out
