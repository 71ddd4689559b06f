"""The one mteb encoder of the house: a live module, one of our folders, or a sentence-transformers folder.

Texts become token ids through the token contract, the same object that training used. They are sorted by length, cut
into batches by a budget of padded tokens, and their vectors come back in the order of the texts. Nothing about the model
is left changed: every submodule's train or eval mode and the state of all random generators are put back. Where several processes work together, each
computes every n-th batch and all of them get all vectors.

Instructions follow the paper: queries carry the instruction, documents none, and symmetric tasks (STS, classification,
clustering ...) carry it on both sides. Whether an instruction has any effect is for the contract's query template to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from speedlit.data.collate import pad_ids
from speedlit.evaluation import ranks
from speedlit.evaluation.state import evaluating, same_randomness
from speedlit.models.threads import side_by_side

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models.model_meta import ModelMeta

    from speedlit.data.tokens import TokenContract

Embed = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices in batches, longest first, each of at most ``budget`` padded tokens (one text at least)."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    start = 0
    while start < len(order):
        size = max(1, budget // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


class Encoder:
    """Texts to vectors, and what mteb asks of a model.

    Args:
        model: the network; only its mode is touched, and only for the time of a call.
        embed: input ids and attention mask, both (B, T), to vectors (B, D), pooled and normalised as the contract says.
        tokenizer: turns text into ids; supplies the padding id.
        tokens: the token contract.
        name: what the results are filed under, ``organisation/model``; ``revision`` tells checkpoints of one run apart.
        token_budget: padded tokens per forward pass.
        instructions: in place of the tasks' own; keys are those of mteb's prompt tables (``Task-query``, ``Task``, ``Type-query``,
            ``Type``, ``query``, ``document``); an empty text means none.
        instruct: False leaves the tasks' own instructions away.
        autocast: a dtype to compute in, such as torch.bfloat16; None keeps the model's own.
        spread: share the texts out over all ranks; every rank must then encode the same ones. False: this rank computes alone.
        together: how many neighbouring ranks compute each forward pass together, and so must have the same texts.
        side_by_side: on a CPU, as many passes at a time as there are threads; the network must allow that (nothing in it may change).
    """

    def __init__(
        self,
        model: torch.nn.Module,
        embed: Embed,
        tokenizer: Any,
        tokens: TokenContract,
        *,
        name: str = "speedlit/model",
        revision: str = "unknown",
        token_budget: int = 4096,
        instructions: Mapping[str, str] | None = None,
        instruct: bool = True,
        autocast: torch.dtype | None = None,
        spread: bool = True,
        together: int = 1,
        side_by_side: bool = False,
    ) -> None:
        self.model, self.embed, self.tokenizer, self.tokens = model, embed, tokenizer, tokens
        self.name, self.revision, self.token_budget = name, revision, token_budget
        self.instructions, self.instruct, self.autocast = dict(instructions or {}), instruct, autocast
        self.spread, self.together, self.side_by_side = spread, together, side_by_side
        self._meta: ModelMeta | None = None

    def vectors(self, texts: Sequence[str], instruction: str | None = None) -> np.ndarray:
        """Encode texts: float32, shape (len(texts), D), in the order given. Equal texts are computed once."""
        if not texts:
            raise ValueError("there is nothing to encode")
        place: dict[str, int] = {}
        rows = [place.setdefault(text, len(place)) for text in texts]
        ids = self.tokens.encode_texts(self.tokenizer, list(place), [instruction] * len(place))
        with same_randomness(), evaluating(self.model):
            return self._encode_ids(ids)[rows]

    def _encode_ids(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Vectors of token ids; each rank computes its share in equally many forward passes, which sharded weights need."""
        everything = list(batches([len(row) for row in ids], self.token_budget))
        world = ranks.size() // self.together if self.spread else 1
        if world == 1:
            return self._share(ids, everything)
        own = everything[ranks.number() // self.together :: world]
        idle = -(-len(everything) // world) - len(own)
        rows, error = None, None
        try:
            rows = self._share(ids, own or everything[-1:], idle if own else idle - 1)
        except Exception as found:  # noqa: BLE001 - raised again below, once the others know of it
            error = found
        ranks.together(error)
        assert rows is not None
        if not own:
            rows[everything[-1]] = 0
        if ranks.number() % self.together:
            rows[:] = 0  # the first of those who have computed them brings them
        return ranks.filled(rows, next(self.model.parameters()).device)

    def _share(self, ids: Sequence[Sequence[int]], own: Sequence[Sequence[int]], idle: int = 0) -> np.ndarray:
        """Vectors of the texts of some batches, 0 for all others; ``idle`` further passes are made for the company only."""
        device = next(self.model.parameters()).device
        pad = self.tokenizer.pad_token_id
        out: np.ndarray | None = None

        def block_of(chosen: Sequence[int]) -> np.ndarray:
            input_ids, mask = pad_ids([ids[index] for index in chosen], 0 if pad is None else pad)
            with torch.autocast(device.type, dtype=self.autocast, enabled=self.autocast is not None):
                return self.embed(input_ids.to(device), mask.to(device)).float().cpu().numpy()

        passes = [*own, *([own[-1][:1]] * idle)]
        jobs = [partial(block_of, chosen) for chosen in passes]
        blocks = side_by_side(jobs) if self.side_by_side and device.type == "cpu" else (job() for job in jobs)
        for place, (chosen, block) in enumerate(zip(passes, blocks, strict=True)):
            if out is None:
                out = np.zeros((len(ids), block.shape[1]), dtype=np.float32)
            if place < len(own):
                out[chosen] = block
        assert out is not None
        return out

    def instruction_for(self, task: TaskMetadata, prompt_type: Any | None) -> str | None:
        """The instruction of one side of a task, or None. The table comes first, then the task's own; documents stay bare."""
        side = getattr(prompt_type, "value", prompt_type)
        keys = [task.name, task.type] if side is None else [f"{task.name}-{side}", f"{task.type}-{side}", side]
        if side == "query":
            keys[1:1] = [task.name]
        for key in keys:
            if key in self.instructions:
                return self.instructions[key] or None
        if not self.instruct or side == "document":
            return None
        prompt = task.prompt
        if isinstance(prompt, dict):
            prompt = prompt.get("query")
        return prompt or _usual_prompt(task)

    # -- what mteb calls ------------------------------------------------------------------------------------------

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, task_metadata: TaskMetadata, hf_split: str, hf_subset: str, prompt_type: Any | None = None, **_: Any
    ) -> np.ndarray:
        """Encode the batches of mteb's loader; its batch size is ignored in favour of the token budget."""
        texts = [text for batch in inputs for text in batch["text"]]
        return self.vectors(texts, self.instruction_for(task_metadata, prompt_type))

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine of every vector of the one with every vector of the other, shape (N1, N2)."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine of the vectors of the same row, shape (N,)."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """Name and revision of this very checkpoint; without them mteb files all local models under one name."""
        if self._meta is None:
            from mteb.models.model_meta import ModelMeta, ScoringFunction

            fields = {
                "name": self.name if "/" in self.name else f"speedlit/{self.name}",
                "revision": self.revision,
                "max_tokens": self.tokens.max_length,
                "n_parameters": sum(parameter.numel() for parameter in self.model.parameters()),
                "similarity_fn_name": ScoringFunction.COSINE,
                "use_instructions": self.instruct and "{instruction}" in self.tokens.query_template,
                "framework": ["PyTorch"],
            }
            self._meta = ModelMeta.create_empty(fields)
        return self._meta


def _usual_prompt(task: TaskMetadata) -> str | None:
    """mteb's instruction for the task's type, where the task has none of its own."""
    from mteb import abstasks

    from speedlit.evaluation.tasks import KINDS

    kind = KINDS.get(task.type)
    return getattr(abstasks, kind.base).abstask_prompt if kind else None
