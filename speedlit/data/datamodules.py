"""Shards for the trainer: three data modules, one per shape of the samples.

What the texts look like as ids comes from the module that trains: its ``tokenizer`` and its ``tokens`` (the token contract).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import lightning as L
import numpy as np

from speedlit.data import collate, packing, tables
from speedlit.data.mixture import Places, sources
from speedlit.data.samples import Encode, Samples
from speedlit.data.shards import ShardSet
from speedlit.data.steps import StepLoader, Steps
from speedlit.errors import SpeedlitError, UsageError
from speedlit.progress import say
from speedlit.strategies import data_ranks

OVERHEAD = {"cpu": 128, "cuda": 4096}  # tokens that one more pass is worth: a GPU wants large passes


class ShardData(L.LightningDataModule):
    """What the three data modules share."""

    shape = ""
    encode: Encode

    cpu_tokens = 1536  # padded tokens of a pass on a CPU: larger ones are no faster and need more memory (docs/benchmarks.md)

    def __init__(
        self,
        shards: Places,
        batch_size: int = 16,
        micro_batch: int | None = None,
        micro_tokens: int | None = None,
        workers: int = 0,
        seed: int | None = None,
        validation: str | list[str] | None = None,
        drop_last: bool = False,
    ) -> None:
        super().__init__()
        self.shards, self.validation = shards, validation
        self.batch_size, self.micro_batch, self.micro_tokens = batch_size, micro_batch, micro_tokens
        self.workers, self.drop_last = workers, drop_last
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        for name, value in (("batch_size", batch_size), ("micro_batch", micro_batch), ("micro_tokens", micro_tokens)):
            if value is not None and value < 1:
                raise UsageError(f"data.{name} is {value}; it must be at least 1")
        self.train: StepLoader | None = None
        self._other: dict[str, StepLoader] = {}

    def setup(self, stage: str) -> None:
        """Open, verify and plan; needs the module's tokenizer and token contract.

        Raises:
            UsageError: shards that are missing, damaged or of another shape.
        """
        if stage == "fit" and self.train is None:
            self.train = self.loader(self.shards, shuffle=True)
            left = self.train.steps.left_out()
            if left and self.rank == 0:
                say(f"data: {left} of {sum(self.train.steps.takes)} samples of an epoch don't fill a batch and are left out")
        if stage != "fit" or self.validation:
            place = self.validation if self.validation and stage in ("fit", "validate") else self.shards
            self._other[stage] = self.loader(place, shuffle=False)

    def state_dict(self) -> dict[str, Any]:
        """Where the training loader stands. Lightning's own loader state is lost when something asks for the number of steps before it is read."""
        return self.train.state_dict() if self.train else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on there."""
        if self.train and state_dict:
            self.train.load_state_dict(state_dict)

    @property
    def rank(self) -> int:
        """Of this process."""
        return self.trainer.global_rank if self.trainer else 0

    def loader(self, places: Places | list[str], shuffle: bool) -> StepLoader:
        """A loader over shard sets."""
        mix = sources(places)
        sets = [ShardSet(source.path) for source in mix]
        sets = [found.verify() if found.small else found.check() for found in sets]
        for found in sets:
            if found.shape != self.shape:
                raise UsageError(f"shards {found.path} are of shape {found.shape}; {type(self).__name__} reads {self.shape}: use the data module of that shape")
        trainer = self.trainer
        assert trainer is not None
        module: Any = trainer.lightning_module
        if not hasattr(module, "tokenizer") or not hasattr(module, "tokens"):
            raise UsageError(f"{type(self).__name__} needs a module with `tokenizer` and `tokens`, and {type(module).__name__} has none")
        samples = Samples(sets, type(self).encode, module.tokenizer, module.tokens)
        rank, world = data_ranks(trainer)
        gpu = trainer.strategy.root_device.type == "cuda"
        device, most = ("cuda", None) if gpu else ("cpu", self.cpu_tokens)
        steps = Steps(
            samples, self.shape, self.batch_size, self.micro_batch, self.seed, rank, world, shuffle, shuffle and self.drop_last,
            overhead=OVERHEAD[device], micro_tokens=self.micro_tokens or most, layout=self.layout(samples) if shuffle else None, mix=mix,
        )  # fmt: skip
        return StepLoader(steps, self.workers, pin=gpu)

    def layout(self, samples: Samples) -> packing.Layout | None:
        """How training rows are made of several sequences; None: a row per sequence."""
        return None

    @property
    def several(self) -> bool:
        """Whether a training row holds several sequences."""
        return self.train is not None and self.train.steps.layout is not None

    def apart(self, reason: str) -> None:
        """What happens when a model can't keep the sequences of a row apart.

        Raises:
            SpeedlitError: always, where a config asks for such rows.
        """
        raise SpeedlitError(reason)

    def train_dataloader(self) -> StepLoader:
        """Optimizer steps."""
        assert self.train is not None
        return self.train

    def sweep(self) -> tuple[int, Iterator[dict[str, Any]]]:
        """How many training samples there are, and this rank's share of them in micro-batches, once and in a fixed order."""
        assert self.train is not None
        return len(self.train.steps.samples), self.train.steps.sweep()

    def load_table(self, name: str, columns: int) -> np.ndarray | None:
        """Numbers per training sample that ``save_table`` has put beside the shards; None where they, or a part of them, are not there."""
        assert self.train is not None
        samples = self.train.steps.samples
        parts = [tables.load(place, (len(shards), columns)) for place, shards in zip(samples.tables(name), samples.sets, strict=True)]
        whole = [part for part in parts if part is not None]
        return np.concatenate(whole) if len(whole) == len(parts) else None

    def save_table(self, name: str, table: np.ndarray) -> None:
        """Keep numbers per training sample (samples, columns) beside the shards; read-only shards keep nothing."""
        assert self.train is not None
        samples = self.train.steps.samples
        for place, part in zip(samples.tables(name), np.split(table, samples.starts[1:-1]), strict=True):
            tables.save(place, part)

    def val_dataloader(self) -> StepLoader | list[Any]:
        """Validation steps in the order of the shards; empty without ``validation``."""
        return self._other.get("fit") or self._other.get("validate") or []

    def test_dataloader(self) -> StepLoader:
        """Steps over ``shards`` in their order."""
        return self._other["test"]

    def predict_dataloader(self) -> StepLoader:
        """Steps over ``shards`` in their order."""
        return self._other["predict"]


class SFTData(ShardData):
    """Prompts with completions.

    Args:
        shards: shard set, or several that are mixed: paths, or entries of path, weight (how often an epoch goes through the set,
            such as 0.1 or 2) and cap (samples of an epoch at most).
        batch_size: samples of an optimizer step over all ranks and micro-batches.
        micro_batch: samples (packed: rows) in one forward pass at most, a bound for memory; within it, a step is cut so that little is padding.
        micro_tokens: padded tokens in one forward pass at most (a longer sample goes alone); null: 1,536 on a CPU, no bound on a GPU.
        workers: loader processes; the data don't depend on it.
        seed: of the batch plan; null: ``seed_everything``.
        validation: shard set for validation.
        drop_last: leave out an epoch's last, smaller batch.
        pack: fill rows of ``tokens.max_length`` with several samples that don't see each other: the same loss with less padding,
            for a dense attention mask. On a CPU the cut by length alone is as fast.
    """

    shape = "sft"
    encode = staticmethod(collate.encode_sft)

    def __init__(
        self,
        shards: Places,
        batch_size: int = 16,
        micro_batch: int | None = None,
        micro_tokens: int | None = None,
        workers: int = 0,
        seed: int | None = None,
        validation: str | list[str] | None = None,
        drop_last: bool = False,
        pack: bool = False,
    ) -> None:
        super().__init__(shards, batch_size, micro_batch, micro_tokens, workers, seed, validation, drop_last)
        self.pack = pack

    def layout(self, samples: Samples) -> packing.Layout | None:
        """Packed, where asked."""
        return partial(packing.packed, room=samples.tokens.max_length) if self.pack else None


class PreferenceData(ShardData):
    """Prompts with a chosen and a rejected completion.

    Args:
        shards: shard set, or several that are mixed: paths, or entries of path, weight (how often an epoch goes through the set,
            such as 0.1 or 2) and cap (samples of an epoch at most).
        batch_size: pairs of an optimizer step over all ranks and micro-batches.
        micro_batch: pairs in one forward pass at most, a bound for memory; within it, a step is cut so that little is padding.
        micro_tokens: padded tokens in one forward pass at most (a longer sample goes alone); null: 1,024 on a CPU, no bound on a GPU.
        workers: loader processes; the data don't depend on it.
        seed: of the batch plan; null: ``seed_everything``.
        validation: shard set for validation.
        drop_last: leave out an epoch's last, smaller batch.
        share_prefix: compute a prompt once for its chosen and rejected completion, the same loss with fewer tokens; auto does so
            where the data have at least 1.25 times as many tokens in separate rows, and the model's attention allows it.
    """

    shape = "preference"
    encode = staticmethod(collate.encode_preference)

    cpu_tokens = 1024  # beside the policy a reference takes memory

    def __init__(
        self,
        shards: Places,
        batch_size: int = 16,
        micro_batch: int | None = None,
        micro_tokens: int | None = None,
        workers: int = 0,
        seed: int | None = None,
        validation: str | list[str] | None = None,
        drop_last: bool = False,
        share_prefix: bool | Literal["auto"] = "auto",
    ) -> None:
        super().__init__(shards, batch_size, micro_batch, micro_tokens, workers, seed, validation, drop_last)
        self.share_prefix = share_prefix

    def layout(self, samples: Samples) -> packing.Layout | None:
        """Pairs in one row, where asked or where a few dozen samples say that it pays."""
        last = len(samples) if samples.chunks is None else int(samples.chunks[1])  # of a large set, only the first chunk is read for that
        some = np.unique(np.linspace(0, last - 1, 64).astype(int))
        pays = self.share_prefix is True or self.share_prefix == "auto" and packing.sharing_pays(samples.take(some))
        return packing.shared if pays else None

    def apart(self, reason: str) -> None:
        """``auto`` goes on with separate rows.

        Raises:
            SpeedlitError: share_prefix is true.
        """
        if self.share_prefix != "auto":
            raise SpeedlitError(reason)
        if self.rank == 0:
            say(f"data: pairs have separate rows: {reason}")
        assert self.train is not None
        self.train.steps.layout = None


class ContrastiveData(ShardData):
    """Queries with a positive document and hard negatives. Every batch holds one task kind.

    Args:
        shards: shard set, or several that are mixed: paths, or entries of path, weight (how often an epoch goes through the set,
            such as 0.1 or 2) and cap (samples of an epoch at most).
        batch_size: queries of an optimizer step over all ranks; all of them are each other's negatives.
        micro_batch: texts in one forward pass at most, of similar length; the loss still sees the whole batch.
        micro_tokens: padded tokens in one forward pass at most (a longer sample goes alone); null: 1,536 on a CPU, no bound on a GPU.
        workers: loader processes; the data don't depend on it.
        seed: of the batch plan; null: ``seed_everything``.
        validation: shard set for validation.
        drop_last: leave out the last, smaller batch of each kind, as it has fewer negatives.
    """

    shape = "contrastive"
    encode = staticmethod(collate.encode_contrastive)

    def __init__(
        self,
        shards: Places,
        batch_size: int = 64,
        micro_batch: int | None = None,
        micro_tokens: int | None = None,
        workers: int = 0,
        seed: int | None = None,
        validation: str | list[str] | None = None,
        drop_last: bool = True,
    ) -> None:
        super().__init__(shards, batch_size, micro_batch, micro_tokens, workers, seed, validation, drop_last)
