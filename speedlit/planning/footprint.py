"""What a network costs by its shape: parameters, training FLOPs, memory. Arithmetic on config.json; nothing is loaded.

FLOPs follow the usual count of 2 per parameter and token for the forward pass: 6 N T for full fine-tuning (forward, and gradients of
activations and of weights), 4 N T for adapters (frozen weights need no gradient; 6 per adapter parameter come on top), 2 N T more where
activations are recomputed, 2 N T for a forward pass of a reference or of a generator. Attention's quadratic term is left out: at 8B and
2,048 tokens it is about 3 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
NF4 = 0.52  # bytes per weight in 4 bits, its doubly quantized scales included
LAYER = 34  # bytes of activations per token and hidden unit that a layer keeps for its backward pass, in 16 bits (arXiv 2205.05198, without the score matrix)
LOGITS = 1 << 25  # most logits made at once (losses.logprobs)
MLP = ("gate_proj", "up_proj", "down_proj")

# Public shapes, for models that are not on the disk: hidden, intermediate, layers, heads, key-value heads, vocabulary, tied, bias of q, k, v.
KNOWN: dict[str, tuple[int, int, int, int, int, int, bool, bool]] = {
    "meta-llama-3-8b": (4096, 14336, 32, 32, 8, 128256, False, False),
    "llama-3.1-8b": (4096, 14336, 32, 32, 8, 128256, False, False),
    "llama-3.2-1b": (2048, 8192, 16, 32, 8, 128256, True, False),
    "llama-2-7b-hf": (4096, 11008, 32, 32, 32, 32000, False, False),
    "mistral-7b-v0.1": (4096, 14336, 32, 32, 8, 32000, False, False),
    "qwen2.5-7b": (3584, 18944, 28, 28, 4, 152064, False, True),
    "qwen2.5-1.5b": (1536, 8960, 28, 12, 2, 151936, True, True),
    "qwen2.5-0.5b": (896, 4864, 24, 14, 2, 151936, True, True),
}


@dataclass(frozen=True)
class Shape:
    """A transformer's sizes. ``gated``: the MLP has three matrices (decoders) rather than two (BERT and its kin)."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    head_dim: int
    tied: bool = False
    bias: bool = False
    gated: bool = True
    positions: int = 0

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """In and out of the linear layers of one block by the names that adapters use."""
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = {"q_proj": (self.hidden, wide), "k_proj": (self.hidden, narrow), "v_proj": (self.hidden, narrow), "o_proj": (wide, self.hidden)}
        up = {"gate_proj": (self.hidden, self.intermediate)} if self.gated else {}
        return {**attention, **up, "up_proj": (self.hidden, self.intermediate), "down_proj": (self.intermediate, self.hidden)}

    @property
    def parameters(self) -> int:
        """All of them."""
        block = sum(a * b for a, b in self.linear.values())
        if self.gated:
            wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
            block += 2 * self.hidden + (wide + 2 * narrow if self.bias else 0)
            ends = self.hidden
        else:
            block += sum(b for _, b in self.linear.values()) + 4 * self.hidden
            ends = (self.positions + 2) * self.hidden + 2 * self.hidden  # positions, two segments, a norm
        return self.vocabulary * self.hidden * (1 if self.tied or not self.gated else 2) + self.layers * block + ends

    def adapter(self, rank: int, targets: Sequence[str] | str) -> int:
        """Parameters of a LoRA on ``targets`` (or ``all-linear``)."""
        names = list(self.linear) if targets == "all-linear" else [targets] if isinstance(targets, str) else list(targets)
        return self.layers * sum(rank * sum(self.linear[name]) for name in names if name in self.linear)


def shape_of(config: Mapping[str, Any]) -> Shape:
    """The shape that a config.json describes."""
    heads = int(config["num_attention_heads"])
    hidden = int(config["hidden_size"])
    encoder = "intermediate_size" in config and "position_embedding_type" in config or config.get("model_type") in ("bert", "roberta", "xlm-roberta", "electra")
    bias = bool(config.get("attention_bias")) or config.get("model_type") == "qwen2"
    return Shape(
        hidden, int(config["intermediate_size"]), int(config["num_hidden_layers"]), heads, int(config.get("num_key_value_heads") or heads),
        int(config["vocab_size"]), int(config.get("head_dim") or hidden // heads), bool(config.get("tie_word_embeddings", encoder)), bias, not encoder,
        int(config.get("max_position_embeddings") or 0),
    )  # fmt: skip


def known_shape(name: str) -> Shape | None:
    """The public shape of a model by the last part of its hub id, or None."""
    found = KNOWN.get(name.rstrip("/").rsplit("/", 1)[-1].lower().removesuffix("-instruct"))
    if found is None:
        return None
    hidden, intermediate, layers, heads, kv_heads, vocabulary, tied, bias = found
    return Shape(hidden, intermediate, layers, heads, kv_heads, vocabulary, hidden // heads, tied, bias)


@dataclass(frozen=True)
class Fit:
    """What of a fit recipe decides its cost.

    Attributes:
        rank: of the LoRA; None trains all weights.
        quantized: the base lies in 4 bits.
        recompute: activations of the layers are made again in the backward pass.
        sequences: per sample: 1 for SFT, 2 for a pair; the texts of a triplet for an embedder.
        reference: how DPO reads its reference: "", ``each`` step or ``once``; ``copy`` holds the frozen weights beside.
        steps: most optimizer steps, or None.
    """

    rank: int | None
    targets: Sequence[str] | str
    quantized: bool
    dtype: str
    recompute: bool
    cached: bool
    batch: int
    micro: int
    length: int
    epochs: float
    steps: int | None
    sequences: int = 1
    reference: str = ""
    copy: bool = False
    optimizer: str = "AdamW"
    contrastive: bool = False

    def steps_for(self, samples: int) -> int:
        """Optimizer steps over ``samples``."""
        steps = int(-(-samples * self.epochs // self.batch)) if samples else 0
        return steps if self.steps is None else min(steps, self.steps)

    @property
    def formula(self) -> str:
        """The FLOPs of the fit in words."""
        words = "4NT + 6AT" if self.rank else "6NT"
        words += " + 2NT (recomputed)" if self.recompute else ""
        words += " + 2NT (chunks again)" if self.cached else ""
        return words + {"": "", "each": " + 2NT (reference)", "once": " + 2NT once (reference)"}[self.reference]


def trained(shape: Shape, fit: Fit) -> int:
    """Parameters that get a gradient."""
    return shape.adapter(fit.rank, fit.targets) if fit.rank else shape.parameters


def flops(shape: Shape, fit: Fit, tokens: float, once: float) -> float:
    """Of a whole fit over ``tokens`` (all epochs), one epoch of which has ``once``."""
    n = shape.parameters
    per_token = (4 * n + 6 * trained(shape, fit) if fit.rank else 6 * n) + 2 * n * (fit.recompute + fit.cached)
    reference = {"": 0.0, "each": 2 * n * tokens, "once": 2 * n * once}[fit.reference]
    return per_token * tokens + reference


def per_token(shape: Shape, fit: Fit) -> float:
    """FLOPs of a trained token, those of a reference that is read in each step included."""
    n = shape.parameters
    work = 4 * n + 6 * trained(shape, fit) if fit.rank else 6 * n
    return float(work + 2 * n * (fit.recompute + fit.cached + (fit.reference == "each")))


def memory(shape: Shape, fit: Fit) -> dict[str, float]:
    """Bytes on one device that holds the whole model: weights, gradients, optimizer, activations, and their sum."""
    size, count = BYTES[fit.dtype], trained(shape, fit)
    own = 4 if fit.rank else size  # adapters are kept in 32 bits
    weights = shape.parameters * (NF4 if fit.quantized else size) + (count * own if fit.rank else 0) + (shape.parameters * size if fit.copy else 0)
    parts = {
        "weights": weights,
        "gradients": float(count * own),
        "optimizer": count * (2.0 if fit.optimizer.endswith("8bit") else 2.0 * own),
        "activations": activations(shape, fit, size),
    }
    return {**parts, "total": sum(parts.values())}


def activations(shape: Shape, fit: Fit, size: int) -> float:
    """Of one micro-batch at full length (an upper bound: batches are cut by length), logits included."""
    texts = fit.micro if fit.cached or not fit.contrastive else max(fit.micro, fit.batch * fit.sequences)
    tokens = texts * fit.length * (1 if fit.contrastive else fit.sequences)
    layer = LAYER * size / 2 * shape.hidden
    kept = (shape.layers * shape.hidden * size + layer) if fit.recompute else shape.layers * layer
    logits = 0.0 if fit.contrastive else 8.0 * min(tokens * shape.vocabulary, LOGITS)
    return tokens * kept + logits
