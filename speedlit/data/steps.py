"""One item is one whole optimizer step of this rank, cut into micro-batches.

Because a step is one item, its token counts are known before its first forward pass, a checkpoint always lies between two
steps, and resuming needs one integer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from speedlit.data import collate, packing, plan
from speedlit.data.mixture import Source
from speedlit.data.samples import Samples
from speedlit.errors import UsageError
from speedlit.files import content_id

CHARACTERS = 4  # of a token, about


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
