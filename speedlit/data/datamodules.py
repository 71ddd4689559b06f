"""Shards to optimizer steps. One item of a training loader is one whole optimizer step of this rank, cut into micro-batches.

Because a step is one item, its token counts are known before its first forward pass, a checkpoint always lies between two
steps, and resuming needs one integer. What the texts look like as ids comes from the module that trains: its ``tokenizer``
and its ``tokens`` (the token contract).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from speedlit.data import collate, packing, plan, tables
from speedlit.data.shards import ShardSet
from speedlit.data.tokens import TokenContract
from speedlit.errors import SpeedlitError, UsageError
from speedlit.files import content_id

OVERHEAD = {"cpu": 128, "cuda": 4096}  # tokens that one more pass is worth: a GPU wants large passes
Encode = Callable[[Any, TokenContract, list[dict[str, Any]]], list[collate.Sample]]


class Samples:
    """The encoded samples of one or more shard sets, by index, and what the plan must know of each.

    Small sets are encoded once and kept; of large ones only a table of sizes is kept (and cached beside the shards).

    Attributes:
        widths: tokens per sample.
        targets: target tokens (sft, preference) or hard negatives (contrastive) per sample.
        kinds: task kind per sample as a number, or None.
    """

    def __init__(self, sets: list[ShardSet], encode: Encode, tokenizer: Any, tokens: TokenContract) -> None:
        self.sets, self.encode, self.tokenizer, self.tokens = sets, encode, tokenizer, tokens
        self.starts = np.cumsum([0, *map(len, sets)])
        self._kept: list[collate.Sample] | None = [] if all(s.small for s in sets) else None
        table = np.concatenate([self._table(s) for s in sets])
        self.widths, self.targets = table[:, 0], table[:, 1]
        self.kinds = table[:, 2] if sets[0].shape == "contrastive" else None

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> collate.Sample:
        if self._kept is not None:
            return self._kept[index]
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.encode(self.tokenizer, self.tokens, [self.sets[number][int(index - self.starts[number])]])[0]

    def _table(self, shards: ShardSet) -> np.ndarray:
        """Width, targets and kind of every sample: shape (rows, 3)."""
        cache = shards.path / f"tokens-{self._key(shards)}.npy"
        if self._kept is None and cache.is_file():
            return np.asarray(np.load(cache))
        kinds = {kind: collate.text_hash(kind) & 0x7FFFFFFF for kind in shards.manifest.kinds}
        rows: list[tuple[int, int, int]] = []
        stream = iter(shards)
        while block := list(islice(stream, 1024)):
            samples = self.encode(self.tokenizer, self.tokens, block)
            rows += [(s["width"], s["targets"], kinds[s["kind"]] if "kind" in s else 0) for s in samples]
            if self._kept is not None:
                self._kept += [_compact(sample) for sample in samples]
        table = np.asarray(rows, dtype=np.int64)
        if self._kept is None:
            self._save(cache, table)
        return table

    def _key(self, shards: ShardSet) -> str:
        tokenizer = self.tokenizer.backend_tokenizer.to_str() if getattr(self.tokenizer, "is_fast", False) else repr(self.tokenizer)
        return content_id([shards.manifest.lengths, self.tokens.to_json(), tokenizer])

    def tables(self, name: str) -> list[Path]:
        """Per shard set, the file of a table about its samples as they are now: rows, token contract and tokenizer."""
        return [s.path / f"{name}-{content_id([[c['sha256'] for c in s.manifest.chunks], self._key(s)])}.npz" for s in self.sets]

    def _save(self, cache: Path, table: np.ndarray) -> None:
        temporary = cache.with_name(f".{cache.stem}.{os.getpid()}.npy")
        try:
            np.save(temporary, table)
            temporary.replace(cache)
        except OSError:  # a read-only folder: the table is made again next time
            temporary.unlink(missing_ok=True)


def _compact(value: Any) -> Any:
    """Lists of ids as arrays: a seventh of the memory."""
    if isinstance(value, dict):
        return {key: item if key == "texts" else _compact(item) for key, item in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], int):
        return np.asarray(value, dtype=np.int32)
    if isinstance(value, (list, tuple)):
        return [_compact(item) for item in value]
    return value


class Steps(Dataset[dict[str, Any]]):
    """Optimizer steps of one rank by number, counted over all epochs.

    Args:
        samples: the encoded samples.
        shape: of the shard sets.
        batch_size: samples of a step over all ranks.
        micro_batch: samples (contrastive: texts) in one forward pass at most; None: no bound.
        seed: of the batch plan.
        rank: of this process; ``world`` is the number of processes.
        shuffle: False keeps the order of the shards (validation).
        drop_last: leave out the last, smaller batch (contrastive: of each kind).
        overhead: what one more forward and backward pass costs, in padded tokens.
        layout: puts samples into rows of several sequences; None: each sequence has a row.
    """

    def __init__(
        self,
        samples: Samples,
        shape: str,
        batch_size: int,
        micro_batch: int | None,
        seed: int,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
        drop_last: bool = False,
        overhead: int = 256,
        layout: packing.Layout | None = None,
    ) -> None:
        self.overhead, self.layout = overhead, layout
        self.samples, self.shape, self.batch_size, self.micro_batch, self.seed = samples, shape, batch_size, micro_batch, seed
        self.rank, self.world, self.shuffle, self.drop_last = rank, world, shuffle, drop_last
        self.pad = samples.tokenizer.pad_token_id or 0
        self._epoch, self._batches = -1, list[np.ndarray]()
        self.per_epoch = len(self.batches(0))

    def batches(self, epoch: int) -> list[np.ndarray]:
        """The global batches of an epoch."""
        if epoch != self._epoch:
            self._batches, self._epoch = self._plan(epoch), epoch
        return self._batches

    def _plan(self, epoch: int) -> list[np.ndarray]:
        samples = self.samples
        if self.shuffle:
            found = plan.global_batches(len(samples), self.batch_size, self.seed, epoch, samples.kinds, keep_rest=not self.drop_last)
        else:
            places = np.arange(len(samples))
            groups = [places] if samples.kinds is None else [places[samples.kinds == kind] for kind in np.unique(samples.kinds)]
            found = [group[start : start + self.batch_size] for group in groups for start in range(0, len(group), self.batch_size)]
        if self.world == 1:
            return found
        if self.shape == "contrastive":
            return plan.equal_parts(found, self.world)[0]
        return [batch for batch in found if len(batch) >= self.world]  # no rank may be without work

    def left_out(self) -> int:
        """Samples of an epoch that no batch holds."""
        return len(self.samples) - sum(map(len, self.batches(0)))

    def __len__(self) -> int:
        return self.per_epoch

    def __getitem__(self, number: int) -> dict[str, Any]:
        """The step: its micro-batches, and over all ranks the number of samples and of target tokens."""
        epoch, index = divmod(number, self.per_epoch)
        batch = self.batches(epoch)[index]
        part = plan.rank_slice(batch, self.samples.widths, self.rank, self.world)
        targets = self.samples.targets
        if self.shape == "contrastive":
            slots = 1 + int(targets[batch].max())
            micro = [collate.collate_contrastive([self.samples[i] for i in part], self.pad, slots, self.micro_batch, self.overhead)]
        else:
            micro = self.micro(part)
        return {"micro": micro, "samples": len(batch), "targets": int(targets[batch].sum()), "tokens": int(self.samples.widths[part].sum()), "number": number}

    def micro(self, part: np.ndarray) -> list[dict[str, Any]]:
        """The micro-batches of a rank's slice (sft, preference)."""
        if self.layout is None:
            return [self.rows(cut) for cut in plan.micro_batches(part, self.samples.widths, self.micro_batch, self.overhead)]
        samples = [self.samples[i] for i in part]
        return [self._units(cut, samples, part) for cut in packing.micro_batches(self.layout(samples), self.micro_batch, self.overhead)]

    def rows(self, places: np.ndarray) -> dict[str, Any]:
        """One micro-batch of the samples at ``places`` (sft, preference)."""
        samples = [self.samples[i] for i in places]
        if self.layout is not None:
            return self._units(self.layout(samples), samples, places)
        return {**collate.collate_rows(samples, self.pad), "places": torch.from_numpy(places)}

    def _units(self, units: list[packing.Unit], samples: list[collate.Sample], places: np.ndarray) -> dict[str, Any]:
        batch = packing.collate_units(units, samples, self.pad)
        members = batch.pop("members")
        return {**batch, "places": torch.from_numpy(places[members])}

    def sweep(self) -> Iterator[dict[str, Any]]:
        """Every sample of the set once over all ranks, in micro-batches that depend on nothing but lengths."""
        order = np.argsort(self.samples.widths, kind="stable")
        size = min(self.micro_batch or self.batch_size, self.batch_size)
        for start, end in plan.cuts(self.samples.widths[order], size, self.overhead)[self.rank :: self.world]:
            yield self.rows(order[start:end])


class StepLoader:
    """Steps in order, from where the run stands. Its state is one integer: optimizer steps that were handed out.

    A plain iterable, so that Lightning puts no sampler of its own into it.
    """

    def __init__(self, steps: Steps, workers: int = 0, pin: bool = False) -> None:
        self.steps, self.workers, self.pin = steps, workers, pin
        self.done = 0

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        end = (self.done // len(self) + 1) * len(self)
        loader = DataLoader(
            self.steps, batch_size=None, sampler=range(self.done, end), num_workers=self.workers, pin_memory=self.pin,
            generator=torch.Generator(),  # or else each epoch would draw from the global one, and a resumed run once more
        )  # fmt: skip
        for step in loader:
            self.done += 1
            yield step

    def state_dict(self) -> dict[str, int]:
        """For the checkpoint: steps handed out, and how many make an epoch."""
        return {"done": self.done, "per_epoch": len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after so many steps.

        Raises:
            UsageError: the data or the batch size is another one.
        """
        if state["per_epoch"] != len(self):
            raise UsageError(
                f"the checkpoint was written with {state['per_epoch']} steps per epoch, now there are {len(self)}: "
                "the shards or data.batch_size changed; start in another folder or put them back"
            )
        self.done = state["done"]


class ShardData(L.LightningDataModule):
    """What the three data modules share."""

    shape = ""
    encode: Encode

    def __init__(
        self,
        shards: str | list[str],
        batch_size: int = 16,
        micro_batch: int | None = None,
        workers: int = 0,
        seed: int | None = None,
        validation: str | list[str] | None = None,
        drop_last: bool = False,
    ) -> None:
        super().__init__()
        self.shards, self.validation = shards, validation
        self.batch_size, self.micro_batch, self.workers, self.drop_last = batch_size, micro_batch, workers, drop_last
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        for name, value in (("batch_size", batch_size), ("micro_batch", micro_batch)):
            if value is not None and value < 1:
                raise UsageError(f"data.{name} is {value}; it must be at least 1")
        self.train: StepLoader | None = None
        self._other: dict[str, StepLoader] = {}

    def setup(self, stage: str) -> None:
        """Open, verify and encode; needs the module's tokenizer and token contract.

        Raises:
            UsageError: shards that are missing, damaged or of another shape.
        """
        if stage == "fit" and self.train is None:
            self.train = self.loader(self.shards, shuffle=True)
            left = self.train.steps.left_out()
            if left and self.rank == 0:
                print(f"  data: {left} of {len(self.train.steps.samples)} samples of an epoch don't fill a batch and are left out", file=sys.stderr)
        if stage != "fit" or self.validation:
            place = self.validation if self.validation and stage in ("fit", "validate") else self.shards
            self._other[stage] = self.loader(place, shuffle=False)

    def state_dict(self) -> dict[str, int]:
        """Where the training loader stands. Lightning's own loader state is lost when something asks for the number of steps before it is read."""
        return self.train.state_dict() if self.train else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on there."""
        if self.train and state_dict:
            self.train.load_state_dict(state_dict)

    @property
    def rank(self) -> int:
        """Of this process."""
        return self.trainer.global_rank if self.trainer else 0

    def loader(self, places: str | list[str], shuffle: bool) -> StepLoader:
        """A loader over shard sets."""
        sets = [ShardSet(place).verify() for place in ([places] if isinstance(places, str) else places)]
        for found in sets:
            if found.shape != self.shape:
                raise UsageError(f"shards {found.path} are of shape {found.shape}; {type(self).__name__} reads {self.shape}: use the data module of that shape")
        trainer = self.trainer
        assert trainer is not None
        module: Any = trainer.lightning_module
        if not hasattr(module, "tokenizer") or not hasattr(module, "tokens"):
            raise UsageError(f"{type(self).__name__} needs a module with `tokenizer` and `tokens`, and {type(module).__name__} has none")
        samples = Samples(sets, type(self).encode, module.tokenizer, module.tokens)
        world = trainer.world_size
        if self.batch_size % world and self.shape == "contrastive":
            raise UsageError(f"data.batch_size is {self.batch_size} and there are {world} processes: a contrastive batch must divide evenly")
        gpu = trainer.strategy.root_device.type == "cuda"
        steps = Steps(
            samples, self.shape, self.batch_size, self.micro_batch, self.seed, trainer.global_rank, world, shuffle, shuffle and self.drop_last,
            overhead=OVERHEAD["cuda" if gpu else "cpu"], layout=self.layout(samples) if shuffle else None,
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
        shards: shard set, or several that are read as one.
        batch_size: samples of an optimizer step over all ranks and micro-batches.
        micro_batch: samples (packed: rows) in one forward pass at most, a bound for memory; within it, a step is cut so that little is padding.
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
        shards: str | list[str],
        batch_size: int = 16,
        micro_batch: int | None = None,
        workers: int = 0,
        seed: int | None = None,
        validation: str | list[str] | None = None,
        drop_last: bool = False,
        pack: bool = False,
    ) -> None:
        super().__init__(shards, batch_size, micro_batch, workers, seed, validation, drop_last)
        self.pack = pack

    def layout(self, samples: Samples) -> packing.Layout | None:
        """Packed, where asked."""
        return partial(packing.packed, room=samples.tokens.max_length) if self.pack else None


class PreferenceData(ShardData):
    """Prompts with a chosen and a rejected completion.

    Args:
        shards: shard set, or several that are read as one.
        batch_size: pairs of an optimizer step over all ranks and micro-batches.
        micro_batch: pairs in one forward pass at most, a bound for memory; within it, a step is cut so that little is padding.
        workers: loader processes; the data don't depend on it.
        seed: of the batch plan; null: ``seed_everything``.
        validation: shard set for validation.
        drop_last: leave out an epoch's last, smaller batch.
        share_prefix: compute a prompt once for its chosen and rejected completion, the same loss with fewer tokens; auto does so
            where the data have at least 1.25 times as many tokens in separate rows, and the model's attention allows it.
    """

    shape = "preference"
    encode = staticmethod(collate.encode_preference)

    def __init__(
        self,
        shards: str | list[str],
        batch_size: int = 16,
        micro_batch: int | None = None,
        workers: int = 0,
        seed: int | None = None,
        validation: str | list[str] | None = None,
        drop_last: bool = False,
        share_prefix: bool | Literal["auto"] = "auto",
    ) -> None:
        super().__init__(shards, batch_size, micro_batch, workers, seed, validation, drop_last)
        self.share_prefix = share_prefix

    def layout(self, samples: Samples) -> packing.Layout | None:
        """Pairs in one row, where asked or where a few dozen samples say that it pays."""
        some = np.unique(np.linspace(0, len(samples) - 1, 64).astype(int))
        pays = self.share_prefix is True or self.share_prefix == "auto" and packing.sharing_pays([samples[int(i)] for i in some])
        return packing.shared if pays else None

    def apart(self, reason: str) -> None:
        """``auto`` goes on with separate rows.

        Raises:
            SpeedlitError: share_prefix is true.
        """
        if self.share_prefix != "auto":
            raise SpeedlitError(reason)
        if self.rank == 0:
            print(f"  data: pairs have separate rows: {reason}", file=sys.stderr)
        assert self.train is not None
        self.train.steps.layout = None


class ContrastiveData(ShardData):
    """Queries with a positive document and hard negatives. Every batch holds one task kind.

    Args:
        shards: shard set, or several that are mixed.
        batch_size: queries of an optimizer step over all ranks; all of them are each other's negatives.
        micro_batch: texts in one forward pass at most, of similar length; the loss still sees the whole batch.
        workers: loader processes; the data don't depend on it.
        seed: of the batch plan; null: ``seed_everything``.
        validation: shard set for validation.
        drop_last: leave out the last, smaller batch of each kind, as it has fewer negatives.
    """

    shape = "contrastive"
    encode = staticmethod(collate.encode_contrastive)

    def __init__(
        self,
        shards: str | list[str],
        batch_size: int = 64,
        micro_batch: int | None = None,
        workers: int = 0,
        seed: int | None = None,
        validation: str | list[str] | None = None,
        drop_last: bool = True,
    ) -> None:
        super().__init__(shards, batch_size, micro_batch, workers, seed, validation, drop_last)
