"""Prompt sets: knobs, weights, determinism, one-file kinds, and errors that name file and key."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml

from speedlit.errors import UsageError
from speedlit.synthesis.templates import PACKAGED, derived_random, fill, load_set

SETS = sorted(p.name for p in PACKAGED.iterdir() if p.is_dir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PACKAGED / "paper", tmp_path / "own"))


def change(path: Path, **keys: object) -> None:
    data = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({k: v for k, v in {**data, **keys}.items() if v != "DELETE"}))


@pytest.mark.parametrize("name", SETS)
def test_every_kind_of_every_set_renders_without_a_placeholder_left(name: str) -> None:
    prompts = load_set(name)
    assert set(prompts) == {"retrieval", "classification", "sts", "s2s", "p2p"}
    for kind in prompts:
        for index in range(30):
            messages, knobs = prompts[kind].render("Find {braces} in a haystack.", "Arts/Movies", derived_random(0, kind, index))
            text = messages[-1]["content"]
            assert not [knob for knob in prompts[kind].knobs if "{" + knob + "}" in text] and "{lines}" not in text
            assert all(knobs[knob] in prompts[kind].knobs[knob].values for knob in knobs)
            assert ("Topic: Arts/Movies" if prompts[kind].input == "topic" else "Task: Find {braces} in a haystack.") in text
    for kind in prompts:
        if prompts[kind].input == "task":
            text = prompts.roles["brainstorm"].brainstorm(kind, "Arts/Movies", derived_random(1))[-1]["content"]
            assert f"Kind: {kind}" in text and "Topic: Arts/Movies" in text


def test_the_paper_set_has_the_papers_kinds_keys_and_weights() -> None:
    prompts = load_set("paper")
    assert prompts.shares(23) == {"classification": 7, "retrieval": 7, "sts": 7, "p2p": 1, "s2s": 1}
    assert sum(prompts.shares(1000).values()) == 1000
    assert prompts.keys("retrieval") == ["user_query", "positive_document", "hard_negative_document"]
    assert prompts["s2s"].key_of("negative") is None
    assert prompts["sts"].instruction_for("anything") == "Retrieve semantically similar text" and prompts["sts"].symmetric
    drawn = Counter()
    for index in range(4000):
        _, knobs = prompts["retrieval"].render("t", "p", derived_random(index))
        drawn.update([knobs["query_type"], "education" if "education" in knobs else "none"])
    assert abs(drawn["long-tail"] / 4000 - 0.5) < 0.03 and abs(drawn["common"] / 4000 - 0.1) < 0.02 and abs(drawn["education"] / 4000 - 0.5) < 0.03
    shown = Counter("education" in prompts["classification"].render("t", "p", derived_random(i))[0][-1]["content"] for i in range(2000))
    assert abs(shown[True] / 2000 - 0.5) < 0.05, "clarity and education share one line with probability one half"


def test_a_prompt_depends_on_its_own_key_alone() -> None:
    template = load_set("paper")["retrieval"]
    first = [template.render("t", "p", derived_random(0, "task", "seed", i)) for i in range(20)]
    again = [template.render("t", "p", derived_random(0, "task", "seed", i)) for i in reversed(range(20))]
    assert first == again[::-1]
    assert len({messages[-1]["content"] for messages, _ in first}) > 15
    orders = {tuple(line[:12] for line in messages[-1]["content"].splitlines() if line.startswith("- The")) for messages, _ in first}
    assert len(orders) > 3, "guidelines are shuffled"


def test_values_are_put_in_once() -> None:
    assert fill('{a} {b} {"json": 1} {c}', {"a": "{b}", "b": 2}) == '{b} 2 {"json": 1} {c}'


def test_judge_and_revision_prompts_number_and_quote() -> None:
    roles = load_set("paper").roles
    text = roles["judge"].judge("the {order}", ["first", "second", "third"])[-1]["content"]
    assert "<candidate 0>\nfirst\n</candidate 0>" in text and "<candidate 2>\nthird" in text and "from 0 to 2" in text and "the {order}" in text
    for form, key in (("edits", '"edits"'), ("full", '"revision"')):
        assert key in roles["critique"].revision("p", "{}", form)[-1]["content"]


def test_a_new_kind_is_one_file(folder: Path) -> None:
    (folder / "dialogue.yaml").write_text(
        "kind: dialogue\nshare: 3\ninput: topic\nfields: {question: query, reply: positive}\ntext: |\n  Topic: {topic}\n  Write question and reply as JSON.\n"
    )
    prompts = load_set(str(folder))
    assert prompts.keys("dialogue") == ["question", "reply"] and prompts.shares(26)["dialogue"] == 3
    assert prompts["dialogue"].ref == "own/dialogue@1"


def test_a_kind_that_is_brainstormed_says_in_its_own_file_how(folder: Path) -> None:
    text = "kind: dialogue\nfields: {question: query, reply: positive}\ntext: 'Task: {task}'\n"
    (folder / "dialogue.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"kinds lacks 'dialogue'.*brainstorm: \{what, rule, examples\}.*dialogue.yaml"):
        load_set(str(folder))
    (folder / "dialogue.yaml").write_text(text + "brainstorm: {what: dialogues, rule: Name the speakers., examples: [A pilot asks the tower.]}\n")
    load_set.cache_clear()
    asked = load_set(str(folder)).roles["brainstorm"].brainstorm("dialogue", "Arts", derived_random(0))[-1]["content"]
    assert "dialogues" in asked and "Name the speakers." in asked and "- A pilot asks the tower." in asked


def test_a_folder_can_be_laid_over_a_set(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    shutil.copy(PACKAGED / "mini" / "retrieval.yaml", tmp_path / "own")
    prompts = load_set(f"paper+{tmp_path / 'own'}")
    assert prompts["retrieval"].ref == "own/retrieval@1" and prompts["sts"].ref == "paper/sts@1"
    assert prompts.name == "paper+own" and len(list(prompts)) == 5
    with pytest.raises(UsageError, match="'nowhere' is neither"):
        load_set("paper+nowhere")


@pytest.mark.parametrize("base", [0, 1])
def test_the_judges_prompt_states_where_its_numbers_begin(base: int, folder: Path) -> None:
    change(folder / "judge.yaml", index_base=base)
    text = load_set(str(folder)).roles["judge"].judge("order", ["a", "b", "c"])[-1]["content"]
    assert f"numbered from {base} to {base + 2}" in text and f"<candidate {base}>\na\n" in text and f"<candidate {base + 2}>\nc\n" in text


def test_a_set_without_roles_uses_the_packaged_ones(folder: Path) -> None:
    for name in ("judge", "critique", "revise"):
        (folder / f"{name}.yaml").unlink()
    assert load_set(str(folder)).roles["judge"].ref == "paper/judge@1"


@pytest.mark.parametrize(
    ("file", "keys", "message"),
    [
        ("retrieval", {"kind": "search"}, "kind is 'search'.*retrieval.yaml"),
        ("retrieval", {"text": "DELETE"}, "key text is missing"),
        ("retrieval", {"knob": {}}, "unknown key knob"),
        ("retrieval", {"fields": {"a": "query"}}, "fields must map"),
        ("retrieval", {"input": "page"}, "input must be task or topic"),
        ("retrieval", {"text": "{taks}"}, r"placeholder \{taks\}"),
        ("retrieval", {"share": "many"}, "share must be int or float"),
        ("sts", {"knobs": {"unit": {"values": []}}}, "knobs.unit.values must be"),
        ("sts", {"knobs": {"unit": {"values": [1, 2], "weights": [1]}}}, "knobs.unit.weights must be a list of 2"),
        ("judge", {"text": "{candidate}"}, r"unknown placeholder \{candidate\}"),
        ("brainstorm", {"kinds": {}}, "brainstorm.yaml: kinds lacks 'classification'"),
        ("brainstorm", {"kinds": {"s2s": {"wat": "x"}}}, "key kinds.s2s.what is missing"),
        ("sts", {"brainstorm": {"what": "x", "examples": "one"}}, "brainstorm.examples must be list"),
    ],
)
def test_mistakes_name_file_and_key(folder: Path, file: str, keys: dict, message: str) -> None:
    change(folder / f"{file}.yaml", **keys)
    with pytest.raises(UsageError, match=message) as caught:
        load_set(str(folder))
    assert str(folder / file) in str(caught.value) or file == "brainstorm"


def test_no_such_set_and_broken_yaml(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"'nothing' is neither a packaged prompt set \(mini, paper\) nor a folder"):
        load_set("nothing")
    (folder / "sts.yaml").write_text("kind: [sts")
    with pytest.raises(UsageError, match="sts.yaml is not valid YAML"):
        load_set(str(folder))
