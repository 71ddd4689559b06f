"""The token contract: how text becomes token ids, alike in training, generation, evaluation and export.

BOS and EOS are ids put around the text after truncation; what a tokenizer's own flags say is not asked (recent versions
of transformers ignore ``add_eos_token`` in a tokenizer's config, and setting it in code loses BOS).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from speedlit.errors import UsageError
from speedlit.labels import IGNORE

POOLINGS = ("last", "mean", "weighted_mean", "cls")


@dataclass(frozen=True)
class TokenContract:
    """What a model reads.

    Args:
        template: how a generator's prompt is wrapped; ``{prompt}`` stands for it.
        bos: put the tokenizer's BOS (or [CLS]) first; null does so if it has one.
        eos: put the tokenizer's EOS (or [SEP]) last.
        max_length: longest sequence in tokens, BOS and EOS included.
        pooling: last, mean, weighted_mean or cls: how an embedder makes one vector of a text.
        normalize: vectors have length 1.
        query_template: a text with an instruction; knows ``{instruction}`` and ``{text}``.
        document_template: a text without; knows ``{text}``.
    """

    template: str = "{prompt}"
    bos: bool | None = None
    eos: bool = True
    max_length: int = 512
    pooling: str = "last"
    normalize: bool = True
    query_template: str = "Instruct: {instruction}\nQuery: {text}"
    document_template: str = "{text}"

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise UsageError(f"tokens.pooling is {self.pooling!r}; choose among {', '.join(POOLINGS)}")
        if self.max_length < 4:
            raise UsageError(f"tokens.max_length is {self.max_length}; it must be at least 4")
        for name, slot in (("template", "{prompt}"), ("query_template", "{text}"), ("document_template", "{text}")):
            if slot not in getattr(self, name):
                raise UsageError(f"tokens.{name} is {getattr(self, name)!r}; it must hold {slot}")

    def to_json(self) -> dict[str, Any]:
        """Plain fields, for ``speedlit.json`` and checkpoints."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> TokenContract:
        """Rebuild a contract; keys of later versions are passed over."""
        return cls(**{f.name: value[f.name] for f in fields(cls) if f.name in value})

    def bos_id(self, tokenizer: Any) -> int | None:
        """The id in front, or None.

        Raises:
            UsageError: BOS is asked for and the tokenizer has none.
        """
        if self.bos is False:
            return None
        found: int | None = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
        if found is None and self.bos:
            raise UsageError("tokens.bos is true, but the tokenizer has neither a BOS nor a CLS token; set it to null")
        return found

    def eos_id(self, tokenizer: Any) -> int | None:
        """The id at the end, or None.

        Raises:
            UsageError: EOS is asked for and the tokenizer has none.
        """
        if not self.eos:
            return None
        found: int | None = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        if found is None:
            raise UsageError("tokens.eos is true, but the tokenizer has neither an EOS nor a SEP token; set it to false")
        return found

    def encode_prompt(self, tokenizer: Any, prompt: str) -> list[int]:
        """Ids of one prompt as a generator reads it before it writes: BOS + template, no EOS; its end is kept when it is too long."""
        bos, ids = self.bos_id(tokenizer), plain_ids(tokenizer, [self.template.replace("{prompt}", prompt)])[0]
        return _front(bos, _keep_end(_without(ids, bos), self.max_length - (bos is not None)))

    def chat_template(self) -> str:
        """``template`` for a server that takes chat messages: the last one's text, as :meth:`encode_prompt` reads it."""
        before, _, after = (json.dumps(part, ensure_ascii=False) for part in self.template.partition("{prompt}"))
        bos = "" if self.bos is False else "{{ bos_token }}"
        content = 'messages[-1]["content"]'  # a text, or a list of parts
        text = f"{{% if {content} is string %}}{{{{ {content} }}}}{{% else %}}{{% for part in {content} %}}{{{{ part.text }}}}{{% endfor %}}{{% endif %}}"
        return f"{bos}{{{{ {before} }}}}{text}{{{{ {after} }}}}"

    def encode_pair(self, tokenizer: Any, prompt: str, completion: str) -> tuple[list[int], list[int]]:
        """Ids and labels of one prompt with its completion; see :meth:`encode_pairs`."""
        return self.encode_pairs(tokenizer, [prompt], [completion])[0]

    def encode_pairs(self, tokenizer: Any, prompts: Sequence[str], completions: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """Ids and labels, equally long; the prompt's labels are -100.

        When both don't fit, the completion keeps at least half of the room (its beginning) and the prompt what is left (its end).
        """
        bos, eos = self.bos_id(tokenizer), self.eos_id(tokenizer)
        rows = plain_ids(tokenizer, [self.template.replace("{prompt}", prompt) for prompt in prompts] + list(completions))
        return [self._join(p, c, bos, eos) for p, c in zip(rows[: len(prompts)], rows[len(prompts) :], strict=True)]

    def _join(self, prompt: list[int], completion: list[int], bos: int | None, eos: int | None) -> tuple[list[int], list[int]]:
        prompt = _without(prompt, bos)
        if completion and completion[-1] == eos:  # a chat template may have written it
            completion = completion[:-1]
        room = self.max_length - (bos is not None) - (eos is not None)
        completion = completion[: max(room - len(prompt), room // 2)]
        head = _front(bos, _keep_end(prompt, room - len(completion)))
        tail = completion + ([eos] if eos is not None else [])
        return head + tail, [IGNORE] * len(head) + tail

    def encode_text(self, tokenizer: Any, text: str, instruction: str | None = None) -> list[int]:
        """Ids of one text as an embedder reads it; see :meth:`encode_texts`."""
        return self.encode_texts(tokenizer, [text], [instruction])[0]

    def encode_texts(self, tokenizer: Any, texts: Sequence[str], instructions: Sequence[str | None]) -> list[list[int]]:
        """BOS + text cut to fit + EOS; an instruction (even an empty one) puts the text into the query template."""
        bos, eos = self.bos_id(tokenizer), self.eos_id(tokenizer)
        room = self.max_length - (bos is not None) - (eos is not None)
        filled = [self.fill(text, instruction) for text, instruction in zip(texts, instructions, strict=True)]
        return [_front(bos, _without(ids, bos)[:room]) + ([eos] if eos is not None else []) for ids in plain_ids(tokenizer, filled)]

    def fill(self, text: str, instruction: str | None) -> str:
        """The text in its template."""
        if instruction is None:
            return self.document_template.replace("{text}", text)
        before, _, after = self.query_template.partition("{text}")  # an instruction that holds "{text}" stays as it is
        return before.replace("{instruction}", instruction) + text + after.replace("{instruction}", instruction)


def plain_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of several texts without any special tokens of the tokenizer's own making."""
    if not texts:
        return []
    found: list[list[int]] = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )["input_ids"]  # fmt: skip
    return found


def _front(bos: int | None, ids: list[int]) -> list[int]:
    return ids if bos is None else [bos, *ids]


def _without(ids: list[int], bos: int | None) -> list[int]:
    return ids[1:] if bos is not None and ids[:1] == [bos] else ids  # a chat template may have written it


def _keep_end(ids: list[int], room: int) -> list[int]:
    return ids[max(len(ids) - room, 0) :]
