"""Every row begins with BOS and ends with EOS, also after truncation."""

from __future__ import annotations

from pathlib import Path

import pytest

from speedlit.data.tokens import TokenContract
from speedlit.errors import UsageError
from speedlit.labels import IGNORE
from tests.helpers import sentence, tiny_tokenizer


@pytest.mark.parametrize("style", ["llama", "bert"])
@pytest.mark.parametrize("words", [1, 8, 60, 200])
def test_rows_begin_with_bos_and_end_with_eos_after_truncation(tmp_path: Path, style: str, words: int) -> None:
    tokenizer = tiny_tokenizer(tmp_path, style)
    tokens = TokenContract(max_length=48)
    text = sentence(3, words)
    rows = [tokens.encode_text(tokenizer, text, instruction) for instruction in (None, "find it")]
    rows.append(tokens.encode_pair(tokenizer, text, " " + sentence(5, words))[0])
    for ids in rows:
        assert ids[0] == 1
        assert ids[-1] == 2
        assert ids.count(1) == ids.count(2) == 1
        assert len(ids) <= 48
    assert (len(rows[0]) == 48) == (words >= 60)
    prompt = tokens.encode_prompt(tokenizer, text)
    assert prompt[0] == 1
    assert 2 not in prompt
    assert len(prompt) <= 48


def test_a_prompt_alone_and_with_its_completion_begin_alike(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    tokens = TokenContract(template="{prompt} [/INST]")
    prompt = tokens.encode_prompt(tokenizer, sentence(1))
    ids, labels = tokens.encode_pair(tokenizer, sentence(1), " " + sentence(2))
    assert ids[: len(prompt)] == prompt
    assert labels[: len(prompt)] == [IGNORE] * len(prompt)
    assert labels[len(prompt) :] == ids[len(prompt) :]
    assert tokenizer.decode(prompt[1:]) == sentence(1) + " [/INST]"


def test_a_long_pair_keeps_the_prompts_end_and_the_completions_beginning(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    tokens = TokenContract(max_length=42)
    prompt, completion = sentence(1, 100), " " + sentence(2, 100)
    ids, labels = tokens.encode_pair(tokenizer, prompt, completion)
    plain = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, completion)]
    assert ids == [1, *plain[0][-20:], *plain[1][:20], 2]
    assert sum(label != IGNORE for label in labels) == 21


def test_templates_and_special_tokens_of_a_chat_template(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    tokens = TokenContract()
    assert tokens.fill("a {text} b", "do {text}") == "Instruct: do {text}\nQuery: a {text} b"
    assert tokens.fill("a", None) == "a"
    ids, _ = tokens.encode_pair(tokenizer, "<s>blue", " whale</s>")  # what a chat template wrote is not doubled
    assert (ids.count(1), ids.count(2)) == (1, 1)
    without = TokenContract(bos=False, eos=False)
    assert not {1, 2} & set(without.encode_text(tokenizer, "blue whale"))


def test_contracts_go_through_json_and_refuse_nonsense(tmp_path: Path) -> None:
    tokens = TokenContract(pooling="mean", bos=False, max_length=99)
    assert TokenContract.from_json({**tokens.to_json(), "of_a_later_version": 1}) == tokens
    for wrong in ({"pooling": "max"}, {"max_length": 2}, {"template": "no slot"}, {"query_template": "{instruction}"}):
        with pytest.raises(UsageError, match="tokens."):
            TokenContract(**wrong)
    tokenizer = tiny_tokenizer(tmp_path)
    tokenizer.bos_token = tokenizer.eos_token = None
    assert TokenContract(eos=False).encode_text(tokenizer, "blue")
    with pytest.raises(UsageError, match="EOS"):
        TokenContract().encode_text(tokenizer, "blue")
    with pytest.raises(UsageError, match="BOS"):
        TokenContract(bos=True, eos=False).encode_text(tokenizer, "blue")


@pytest.mark.parametrize("template", ["{prompt}", '[INST] "{prompt}"\n\\ [/INST]'])
@pytest.mark.parametrize("bos", [None, False])
def test_a_server_of_chat_messages_reads_a_prompt_as_we_do(tmp_path: Path, template: str, bos: bool | None) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    tokens = TokenContract(template=template, bos=bos, max_length=200)
    messages = [{"role": "user", "content": sentence(4) + "\n"}]
    ids = tokenizer.apply_chat_template(messages, chat_template=tokens.chat_template(), return_dict=False)
    assert ids == tokens.encode_prompt(tokenizer, messages[0]["content"])
