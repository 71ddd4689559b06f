"""Keeping a local model's answer to a JSON schema: at each step, only tokens that can go on a valid answer may be drawn.

The schema becomes a grammar of our own spelling (one line, ``", "`` and ``": "`` between the parts, keys in their order), which is how
writers are trained to write; xgrammar (extra ``structured``) turns the grammar into masks. Strings hold no raw control characters and
no ``\\u`` escapes, so no half of a surrogate pair can come out; strings of an object begin with something else than a blank.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from speedlit.errors import SpeedlitError, UsageError
from speedlit.files import canonical_json

RULES = r"""
words ::= "\"" ([^"\\\x00-\x20] | "\\" ["\\/]) rest "\""
string ::= "\"" rest "\""
rest ::= ([^"\\\x00-\x1f] | "\\" ["\\/bfnrt])*
number ::= "-"? ("0" | [1-9] [0-9]*) ("." [0-9]+)?
"""
COMMA = ' ", " '


def grammar(schema: Mapping[str, Any]) -> str:
    """A JSON schema (the part that ``synthesis/schemas.py`` uses) as a grammar in xgrammar's notation.

    Raises:
        UsageError: the schema has something else in it.
    """
    return f'root ::= " "? {rule(schema, "words")}\n{RULES}'


def rule(schema: Mapping[str, Any], text: str) -> str:
    """One value's expression; ``text`` is the rule for a string in this place."""
    kind = schema.get("type")
    if "enum" in schema:
        return f"({' | '.join(literal(json.dumps(value, ensure_ascii=False)) for value in schema['enum'])})"
    if kind == "object":
        pairs = [f"{literal(json.dumps(key, ensure_ascii=False) + ': ')} {rule(value, 'words')}" for key, value in schema["properties"].items()]
        return f'"{{" {COMMA.join(pairs)} "}}"'
    if kind == "array":
        item, count = rule(schema["items"], "string"), schema.get("minItems")
        return f'"[" ({item} (", " {item})*)? "]"' if count is None else f'"[" {COMMA.join([item] * count)} "]"'
    if kind in ("string", "number"):
        return text if kind == "string" else "number"
    raise UsageError(f"no grammar for the JSON schema {canonical_json(schema)}: use objects, arrays, strings, numbers and enum")


def literal(text: str) -> str:
    """A text as it is quoted in a grammar."""
    return json.dumps(text)


class Grammars:
    """Compiled grammars of one tokenizer.

    Args:
        tokenizer: of the model.
        size: columns of the model's logits.
        stops: tokens that end an answer.

    Raises:
        UsageError: xgrammar is not installed.
    """

    def __init__(self, tokenizer: Any, size: int, stops: Sequence[int]) -> None:
        try:
            import xgrammar
        except ImportError as error:
            raise UsageError("sampling.structured needs xgrammar: pip install 'speedlit[structured]', or set it to false") from error
        self._xgrammar, self.tokenizer, self.size = xgrammar, tokenizer, size
        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=size, stop_token_ids=list(stops))
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1)
        self._words = xgrammar.allocate_token_bitmask(1, size)[0].fill_(-1)  # all but padding and the like, whose spelling would do as text
        for token in set(tokenizer.all_special_ids) - set(stops):
            self._words[token // 32] &= ~_bit(token % 32)
        self._compiled: dict[str, Any] = {}

    def matcher(self, schema: Mapping[str, Any]) -> Any:
        """What follows one answer token by token."""
        key = canonical_json(schema)  # the list of needed keys keeps their order
        if key not in self._compiled:
            self._compiled[key] = self._compiler.compile_grammar(grammar(schema))
        return self._xgrammar.GrammarMatcher(self._compiled[key])

    def constraint(self, schemas: Sequence[Mapping[str, Any] | None]) -> Constraint | None:
        """The masks of one batch, or None where no row has a schema."""
        matchers = [None if schema is None else self.matcher(schema) for schema in schemas]
        return Constraint(self._xgrammar, matchers, self._words, self.size) if any(matchers) else None


class Constraint:
    """Where the rows of one batch stand in their grammars.

    Args:
        xgrammar: the library.
        matchers: one per row; None draws freely.
        words: bits of the tokens that are no control tokens.
        size: columns of the logits.
    """

    def __init__(self, xgrammar: Any, matchers: Sequence[Any], words: torch.Tensor, size: int) -> None:
        self._xgrammar, self._matchers, self._words = xgrammar, matchers, words
        self._bits = xgrammar.allocate_token_bitmask(len(matchers), size)

    def mask(self, logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """Logits [places, vocabulary] with -inf at every token that would spoil the answer; ``rows`` is which row stands in each place."""
        bits = self._bits[: len(rows)].fill_(-1)
        for place, row in enumerate(rows):
            matcher = self._matchers[row]
            if matcher is not None and not matcher.is_terminated():
                matcher.fill_next_token_bitmask(bits, place)
                bits[place] &= self._words
        self._xgrammar.apply_token_bitmask_inplace(logits, bits.to(logits.device))
        return logits

    def take(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Go on with the tokens that were drawn.

        Raises:
            SpeedlitError: no token of the vocabulary can go on with an answer.
        """
        for row, token in zip(rows, tokens, strict=True):
            matcher = self._matchers[row]
            if matcher is not None and not matcher.accept_token(token):
                raise SpeedlitError("sampling.structured: this model's tokenizer has no tokens that spell the JSON asked for: set sampling.structured to false")


def _bit(place: int) -> int:
    """One bit of 32 as a signed number."""
    return 1 << place if place < 31 else -(1 << 31)
