"""Shards to optimizer steps. One item of a training loader is one whole optimizer step of this rank, cut into micro-batches.

Because a step is one item, its token counts are known before its first forward pass, a checkpoint always lies between two
steps, and resuming needs one integer. What the texts look like as ids comes from the module that trains: its ``tokenizer``
and its ``tokens`` (the token contract).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Union

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from speedlit.data import collate, packing, plan, tables
from speedlit.data.shards import ShardSet
from speedlit.data.tokens import TokenContract
from speedlit.errors import SpeedlitError, UsageError
from speedlit.files import content_id
from speedlit.progress import say

OVERHEAD = {"cpu": 128, "cuda": 4096}  # tokens that one more pass is worth: a GPU wants large passes
MICRO_TOKENS = {"cpu": 1536, "cuda": None}  # larger passes are no faster on a CPU and need more memory (docs/benchmarks.md)
CHARACTERS = 4  # of a token, about
Encode = Callable[[Any, TokenContract, list[dict[str, Any]]], list[collate.Sample]]
Places = Union[str, list[Union[str, dict[str, Any]]]]  # noqa: UP007 - evaluated at run time on Python 3.10 as well


@dataclass(frozen=True)
class Source:
    """A shard set in a mixture.

    Attributes:
        path: its folder.
        weight: how often an epoch goes through it: 0.1 takes a tenth of it, another one each time; 2 takes each sample twice.
        cap: samples of an epoch at most.
    """

    path: str
    weight: float = 1.0
    cap: int | None = None

    @classmethod
    def of(cls, value: str | dict[str, Any]) -> Source:
        """From an entry of ``data.shards``.

        Raises:
            UsageError: an unknown key, no path, or a weight or cap that takes nothing.
        """
        entry: dict[str, Any] = {"path": value} if isinstance(value, (str, Path)) else dict(value)
        if strange := sorted(set(entry) - {"path", "weight", "cap"}):
            raise UsageError(f"data.shards has an entry with {', '.join(strange)}; it knows path, weight and cap")
        if not entry.get("path"):
            raise UsageError(f"data.shards has an entry without path: {entry}")
        found = cls(str(entry["path"]), float(entry.get("weight", 1.0)), entry.get("cap"))
        if not 0 < found.weight < float("inf") or (found.cap is not None and found.cap < 1):
            raise UsageError(f"data.shards: weight {found.weight} and cap {found.cap} of {found.path} take nothing; leave the set out, or raise them above 0")
        return found

    def take(self, count: int) -> int:
        """Samples of an epoch, of a set of ``count``."""
        return max(1, min(round(self.weight * count), self.cap or sys.maxsize))


def sources(places: Places | list[str]) -> list[Source]:
    """The entries of ``data.shards``."""
    return [Source.of(place) for place in (places if isinstance(places, list) else [places])]


class Samples:
    """The samples of one or more shard sets, by index: encoded when they are asked for, and what the plan knows of each before that.

    Attributes:
        widths: characters per sample, a measure of its work.
        documents: of contrastive samples, the positive counted; else None.
        kinds: task kind per sample as a number, or None.
        starts: where each set begins, and how many samples there are.
        chunks: likewise of the chunks; None where all sets are kept in memory.
    """

    def __init__(self, sets: list[ShardSet], encode: Encode, tokenizer: Any, tokens: TokenContract) -> None:
        self.sets, self.encode, self.tokenizer, self.tokens = sets, encode, tokenizer, tokens
        self.starts = np.cumsum([0, *map(len, sets)])
        self.small = all(found.small for found in sets)
        self.chunks = None if self.small else np.unique(np.concatenate([s.starts + start for s, start in zip(sets, self.starts, strict=False)]))
        self._kept: dict[int, collate.Sample] = {}
        tables = [found.table() for found in sets]
        self.widths = np.concatenate([sum(column.astype(np.int64) for name, column in t.items() if name not in ("documents", "kind")) for t in tables])
        contrastive = sets[0].shape == "contrastive"
        self.documents = np.concatenate([table["documents"] for table in tables]) if contrastive else None
        self.kinds = np.concatenate([_kind_numbers(s)[table["kind"]] for s, table in zip(sets, tables, strict=True)]) if contrastive else None

    def __len__(self) -> int:
        return int(self.starts[-1])

    def take(self, places: np.ndarray) -> list[collate.Sample]:
        """The samples at ``places``, in their order; those of small sets are encoded once."""
        missing = np.asarray([place for place in np.unique(places).tolist() if place not in self._kept], dtype=np.int64)
        rows = [row for number, found in enumerate(self.sets) for row in found.take(self._of(number, missing))]
        made = dict(zip(missing.tolist(), self.encode(self.tokenizer, self.tokens, rows), strict=True)) if rows else {}
        if self.small:
            self._kept.update({place: _compact(sample) for place, sample in made.items()})
            made = self._kept
        return [made[place] for place in places.tolist()]

    def _of(self, number: int, places: np.ndarray) -> np.ndarray:
        """Which of the ascending ``places`` lie in a set, counted from its beginning."""
        first, last = np.searchsorted(places, self.starts[number : number + 2])
        found: np.ndarray = places[first:last] - self.starts[number]
        return found

    def tables(self, name: str) -> list[Path]:
        """Per shard set, the file of a table about its samples as they are now: rows, token contract and tokenizer."""
        tokenizer = self.tokenizer.backend_tokenizer.to_str() if getattr(self.tokenizer, "is_fast", False) else repr(self.tokenizer)
        read = [self.tokens.to_json(), tokenizer]
        return [s.path / f"{name}-{content_id([[c['sha256'] for c in s.manifest.chunks], read])}.npz" for s in self.sets]


def _kind_numbers(found: ShardSet) -> np.ndarray:
    """A number for each task kind of a set, the same in every set."""
    return np.asarray([collate.text_hash(kind) & 0x7FFFFFFF for kind in sorted(found.manifest.kinds)], dtype=np.int64)


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
        samples: of the shard sets.
        shape: of the shard sets.
        batch_size: samples of a step over all ranks.
        micro_batch: samples (contrastive: texts) in one forward pass at most; None: no bound.
        seed: of the batch plan.
        rank: of this process; ``world`` is the number of processes.
        shuffle: False keeps the order of the shards (validation).
        drop_last: leave out the last, smaller batch (contrastive: of each kind).
        overhead: what one more forward and backward pass costs, in padded tokens.
        micro_tokens: padded tokens in one forward pass at most; None: no bound.
        layout: puts samples into rows of several sequences; None: each sequence has a row.
        mix: how much of each shard set an epoch takes; None: all of all.
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
        micro_tokens: int | None = None,
        layout: packing.Layout | None = None,
        mix: list[Source] | None = None,
    ) -> None:
        self.overhead, self.micro_tokens, self.layout = overhead, micro_tokens, layout
        self.samples, self.shape, self.batch_size, self.micro_batch, self.seed = samples, shape, batch_size, micro_batch, seed
        self.rank, self.world, self.shuffle, self.drop_last = rank, world, shuffle, drop_last
        sizes = list(map(len, samples.sets))
        self.takes = [source.take(size) for source, size in zip(mix, sizes, strict=True)] if mix and shuffle else sizes
        self.pad = samples.tokenizer.pad_token_id or 0
        self._epoch, self._batches = -1, list[np.ndarray]()
        self.per_epoch = len(self.batches(0))

    def batches(self, epoch: int) -> list[np.ndarray]:
        """The global batches of an epoch; they don't depend on the number of ranks."""
        if epoch != self._epoch:
            self._batches, self._epoch = self._plan(epoch), epoch
        return self._batches

    def _plan(self, epoch: int) -> list[np.ndarray]:
        samples, size = self.samples, self.batch_size
        if self.shuffle:
            keep = not self.drop_last
            return plan.global_batches(len(samples), size, self.seed, epoch, samples.kinds, keep, self._members(epoch), samples.chunks)
        places = np.arange(len(samples))
        groups = [places] if samples.kinds is None else [places[samples.kinds == kind] for kind in np.unique(samples.kinds)]
        return [group[start : start + size] for group in groups for start in range(0, len(group), size)]

    def _members(self, epoch: int) -> np.ndarray | None:
        """The samples that an epoch takes, where it doesn't take all of them once."""
        samples = self.samples
        if self.takes == list(map(len, samples.sets)):
            return None
        parts = []
        for number, take in enumerate(self.takes):
            places = np.arange(samples.starts[number], samples.starts[number + 1])
            kinds = np.zeros(len(places)) if samples.kinds is None else samples.kinds[places]
            groups = [places[kinds == kind] for kind in np.unique(kinds)]
            parts.append(places if take == len(places) else plan.share(groups, take, [self.seed & 0xFFFFFFFF, number], epoch))
        return np.concatenate(parts)

    def left_out(self) -> int:
        """Samples of an epoch that no batch holds."""
        return sum(self.takes) - sum(map(len, self.batches(0)))

    def identity(self) -> str:
        """What the sequence of global batches depends on."""
        sets = [[found.manifest.index, found.manifest.lengths] for found in self.samples.sets]
        return content_id([sets, self.takes, self.batch_size, self.seed, self.shuffle, self.drop_last])

    def __len__(self) -> int:
        return self.per_epoch

    def __getitem__(self, number: int) -> dict[str, Any]:
        """The step: its micro-batches, and over all ranks the number of samples and of target tokens."""
        epoch, index = divmod(number, self.per_epoch)
        batch = self.batches(epoch)[index]
        made = self._contrastive(batch) if self.shape == "contrastive" else self._rows(batch)
        return {**made, "samples": len(batch), "number": number}

    def _contrastive(self, batch: np.ndarray) -> dict[str, Any]:
        """One micro-batch: the loss needs all vectors. Ranks have equally many places; those that are left over stay empty."""
        documents = self.samples.documents
        assert documents is not None
        part = plan.rank_slice(batch, self.samples.widths, self.rank, self.world)
        samples, places = self.samples.take(part), -(-len(batch) // self.world)
        micro = collate.collate_contrastive(samples, self.pad, int(documents[batch].max()), self.micro_batch, self.overhead, places, self.micro_tokens)
        if not samples:
            micro["kind"] = self.samples.take(batch[:1])[0]["kind"]
        return {"micro": [micro], "targets": int((documents[batch] - 1).sum()), "tokens": sum(int(sample["width"]) for sample in samples)}

    def _rows(self, batch: np.ndarray) -> dict[str, Any]:
        """Micro-batches of similar length. Every rank encodes the whole batch, to know how many target tokens it has."""
        samples = self.samples.take(batch)
        widths = np.asarray([sample["width"] for sample in samples])
        part = plan.rank_slice(np.arange(len(batch)), widths, self.rank, self.world)
        if len(part):
            micro = self.micro([samples[i] for i in part], batch[part], widths[part])
        else:  # more ranks than samples: this one goes along without adding anything
            micro = [{**self.rows(batch[:1]), "idle": True}]
        return {"micro": micro, "targets": sum(sample["targets"] for sample in samples), "tokens": int(widths[part].sum())}

    def micro(self, samples: list[collate.Sample], places: np.ndarray, widths: np.ndarray) -> list[dict[str, Any]]:
        """The micro-batches of a rank's slice (sft, preference)."""
        if self.layout is not None:
            found = packing.micro_batches(self.layout(samples), self.micro_batch, self.overhead, self.micro_tokens)
            return [self._units(cut, samples, places) for cut in found]
        cuts = plan.micro_batches(np.arange(len(places)), widths, self.micro_batch, self.overhead, self.micro_tokens)
        return [self._apart([samples[i] for i in cut], places[cut]) for cut in cuts]

    def rows(self, places: np.ndarray) -> dict[str, Any]:
        """One micro-batch of the samples at ``places`` (sft, preference)."""
        samples = self.samples.take(places)
        return self._apart(samples, places) if self.layout is None else self._units(self.layout(samples), samples, places)

    def _apart(self, samples: list[collate.Sample], places: np.ndarray) -> dict[str, Any]:
        return {**collate.collate_rows(samples, self.pad), "places": torch.from_numpy(places)}

    def _units(self, units: list[packing.Unit], samples: list[collate.Sample], places: np.ndarray) -> dict[str, Any]:
        batch = packing.collate_units(units, samples, self.pad)
        members = batch.pop("members")
        return {**batch, "places": torch.from_numpy(places[members])}

    def sweep(self) -> Iterator[dict[str, Any]]:
        """Every sample of the set once over all ranks, in micro-batches that depend on nothing but lengths."""
        order = np.argsort(self.samples.widths, kind="stable")
        size = min(self.micro_batch or self.batch_size, self.batch_size)
        for start, end in plan.cuts(self.samples.widths[order], size, self.overhead * CHARACTERS)[self.rank :: self.world]:
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
        if self.workers:  # they are threads enough, and tokenizers warn of their own in forked processes
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        loader = DataLoader(
            self.steps, batch_size=None, sampler=range(self.done, end), num_workers=self.workers, pin_memory=self.pin,
            generator=torch.Generator(),  # or else each epoch would draw from the global one, and a resumed run once more
        )  # fmt: skip
        for step in loader:
            self.done += 1
            yield step

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: steps handed out, how many make an epoch, and which plan they follow."""
        return {"done": self.done, "per_epoch": len(self), "plan": self.steps.identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after so many steps.

        Raises:
            UsageError: the data or the batch size is another one.
        """
        if state["per_epoch"] != len(self):
            raise UsageError(
                f"the checkpoint was written with {state['per_epoch']} steps per epoch, now there are {len(self)}: "
                "the shards or data.batch_size changed; start in another folder or put them back"
            )
        if state.get("plan", self.steps.identity()) != self.steps.identity():
            raise UsageError(
                "the checkpoint was written with other data: the shards, their weights or caps, data.batch_size, data.drop_last or the seed changed, "
                "so its batches can't go on; start in another folder or put them back"
            )
        self.done = state["done"]


class ShardData(L.LightningDataModule):
    """What the three data modules share."""

    shape = ""
    encode: Encode

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
        world = trainer.world_size
        gpu = trainer.strategy.root_device.type == "cuda"
        device = "cuda" if gpu else "cpu"
        steps = Steps(
            samples, self.shape, self.batch_size, self.micro_batch, self.seed, trainer.global_rank, world, shuffle, shuffle and self.drop_last,
            overhead=OVERHEAD[device], micro_tokens=self.micro_tokens or MICRO_TOKENS[device], layout=self.layout(samples) if shuffle else None, mix=mix,
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
        micro_tokens: padded tokens in one forward pass at most (a longer sample goes alone); null: 1,536 on a CPU, no bound on a GPU.
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
