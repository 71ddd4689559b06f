"""Measures of synthetic data: each planted defect is alarmed at 5 % of otherwise clean records, and clean records raise nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from speedlit.offline.teacher import Noise, Teacher
from speedlit.records import Generation, Preference, Record
from speedlit.synthesis.filters import words
from speedlit.synthesis.parsing import Rejected
from speedlit.synthesis.quality import Answers, JudgeMeasures, Levels, Measures, Trend, fault_of, measure, merge
from speedlit.synthesis.quality.alarms import RULES, lines
from speedlit.synthesis.quality.collapse import self_bleu
from speedlit.synthesis.quality.faults import alike
from speedlit.synthesis.quality.orders import bounds, branches, not_english
from speedlit.synthesis.stages.common import to_record
from speedlit.synthesis.stages.inspection import inspect
from speedlit.synthesis.templates import load_set
from tests.synthesis.natural import Row, natural_rows, world_rows
from tests.synthesis.scripted import context
from tests.synthesis.server import Server

SHARE = 0.05
REFUSAL = "I'm sorry, but I can't assist with that request."
SPANISH = "El perro de la vecina no quiere salir porque hace mucho frío y todavía no ha comido nada en toda la mañana según dicen"


@pytest.fixture(scope="module")
def world() -> list[Row]:
    return world_rows()


@pytest.fixture(scope="module")
def natural() -> list[Row]:
    return natural_rows()


def measured(rows: list[Row], **levels: Any) -> dict[str, Any]:
    measures = Measures(levels)
    for record, prompt in rows:
        measures.add(record, prompt)
    return measures.result()


def rewritten(record: Record, query: str | None = None, positive: str | None = None, negative: str | None = None) -> Record:
    """Other texts in the same places."""
    new = {record.query: query, record.positive: positive, **{n: negative for n in record.negatives}}
    fields = {key: new[text] or text for key, text in record.fields.items()}
    negatives = [negative or n for n in record.negatives]
    return replace(record, fields=fields, query=query or record.query, positive=positive or record.positive, negatives=negatives)


def like(record: Record, other: Record, more: str = "") -> Record:
    """The texts of another record of the same kind."""
    return rewritten(record, other.query, other.positive + more, other.negatives[0] if other.negatives else None)


def turned(text: str) -> str:
    tokens = text.rstrip(".").split()
    return " ".join(tokens[len(tokens) // 2 :] + tokens[: len(tokens) // 2])


def in_spanish(text: str) -> str:
    """As long as ``text``."""
    size = len(text.split())
    return " ".join((SPANISH.split() * (size // 20 + 1))[:size])


def elsewhere(row: Row, others: list[Row]) -> Record:
    return next(record for record, prompt in others if prompt.kind == row[1].kind and prompt.topic != row[1].topic)


def alongside(row: Row, others: list[Row]) -> Record:
    return next(record for record, prompt in others if prompt.kind == row[1].kind and prompt.topic == row[1].topic)


def opened(record: Record) -> Record:
    return rewritten(record, f"In the heart of the old town, {record.query}")


# what is wrong, in which records: alarm -> (which records can have it, the spoilt record; ``others`` are clean records in a random order)
DEFECTS: dict[str, tuple[Callable[[Record], bool], Callable[[Row, list[Row]], Record]]] = {
    "label_leak": (lambda r: r.kind == "classification", lambda row, _: rewritten(row[0], f"{row[0].query} So {row[0].positive.split()[-1].upper()}!")),
    "negative_like_positive": (lambda r: r.kind in ("retrieval", "sts"), lambda row, _: rewritten(row[0], negative=turned(row[0].positive))),
    "copied_query": (
        lambda r: r.kind == "retrieval" and len(r.query.split()) > 4,
        lambda row, _: rewritten(row[0], positive=f"Asked: {row[0].query} {row[0].positive}"),
    ),
    "top_opening": (lambda r: True, lambda row, _: opened(row[0])),
    "meta_text": (lambda r: r.kind != "classification", lambda row, _: rewritten(row[0], positive=REFUSAL)),
    "off_topic": (lambda r: r.kind == "retrieval", lambda row, others: like(row[0], elsewhere(row, others))),
    "off_length": (lambda r: r.kind == "retrieval", lambda row, _: rewritten(row[0], positive=" ".join(row[0].positive.split()[:2]))),
    "other_language": (lambda r: r.kind == "retrieval", lambda row, _: rewritten(row[0], positive=in_spanish(row[0].positive))),
    "duplicates": (lambda r: r.kind == "sts", lambda row, others: like(row[0], alongside(row, others))),
    "near_duplicates": (lambda r: r.kind == "retrieval", lambda row, others: like(row[0], alongside(row, others), " too")),
}
ALSO = {
    "meta_text": {"top_opening"},  # a refusal is always the same
    **dict.fromkeys(("off_topic", "duplicates", "near_duplicates"), {"off_length"}),  # texts under a prompt that asked for another length
}


def plant(rows: list[Row], names: list[str]) -> list[Row]:
    """The rows in a random order, with each defect in 5 % of them that have no other."""
    rng = random.Random("-".join(names))
    clean = rng.sample(rows, len(rows))
    out, free = list(clean), set(range(len(rows)))
    for name in names:
        fits, spoil = DEFECTS[name]
        chosen = [i for i in sorted(free) if fits(clean[i][0])][: round(SHARE * len(rows))]
        assert len(chosen) == round(SHARE * len(rows))
        free -= set(chosen)
        for k, i in enumerate(chosen):
            others = chosen[k + 1 :] + chosen[:k] if name == "off_topic" else rng.sample(sorted(free), len(free))  # topics are exchanged
            out[i] = (spoil(clean[i], [clean[j] for j in others]), clean[i][1])
    return out


def test_clean_records_raise_no_alarm(world: list[Row], natural: list[Row]) -> None:
    for rows in (world, natural):
        found = measured(rows)
        assert found["alarms"] == [], found
        assert {*RULES} - {*found} <= {name for name in RULES if name.startswith("judge_")} | {
            "collapse", "removed", "false_negatives", "dropped", "truncated", "unanswered", "other_language", "one_label_tasks",
        }, "every other measure has a base"  # fmt: skip
    assert "other_language" in found


@pytest.mark.parametrize("name", [name for name in DEFECTS if name != "other_language"])
def test_a_planted_defect_raises_its_alarm_and_no_other(name: str, world: list[Row]) -> None:
    found = measured(plant(world, [name]))
    assert name in found["alarms"] and set(found["alarms"]) <= {name, *ALSO.get(name, ())}, found


@pytest.mark.parametrize("half", [0, 1])
def test_several_defects_at_once_are_told_apart(half: int, natural: list[Row]) -> None:
    names = list(DEFECTS)[half::2]
    found = measured(plant(natural, names))
    also = {name for name in names for name in ALSO.get(name, ())}
    assert set(names) <= set(found["alarms"]) and set(found["alarms"]) <= {*names, *also}, found
    assert [line.split()[0] for line in lines(found)] == found["alarms"]


def test_a_few_records_raise_no_alarm_by_chance(world: list[Row]) -> None:
    rows = random.Random(3).sample(world, 12)
    spoilt = [(DEFECTS["label_leak"][1](row, rows), row[1]) if i == next(j for j, r in enumerate(rows) if r[0].kind == "classification") else row
              for i, row in enumerate(rows)]  # fmt: skip
    found = measured(spoilt, label_leak=0.1)
    assert found["label_leak"] > 0.1 and found["alarms"] == []
    assert measure([]) == {"records": 0, "alarms": []}


def test_levels_are_the_users(world: list[Row]) -> None:
    rows = plant(random.Random(6).sample(world, 700), ["top_opening"])
    assert measured(rows, top_opening=None)["alarms"] == measured(rows, top_opening=0.2)["alarms"] == []
    assert set(RULES) == set(Levels.__dataclass_fields__), "each level has its rule"
    assert all(f"        {name}: " in (Levels.__doc__ or "") for name in RULES), "and its line of help"


def test_trivial_scorers_must_not_solve_the_triplets(world: list[Row]) -> None:
    pairs = [(record, prompt) for record, prompt in world if record.kind == "retrieval"]
    longer = [(rewritten(r, positive=r.positive + " or so it was", negative=r.negatives[0]), p) for r, p in pairs]
    assert "length_auc" in measured(longer)["alarms"]
    far = [(rewritten(r, negative=elsewhere((r, p), pairs[::-1]).negatives[0]), p) for r, p in pairs]
    assert "bm25_auc" in measured(far)["alarms"], "negatives of other topics"
    found = measured([(rewritten(r, f"{r.query} {i}x {i}y", f"{r.positive} {i}x {i}y"), p) for i, (r, p) in enumerate(pairs)])
    assert {"own_positive_first", "bm25_auc"} <= set(found["alarms"]), "each query holds a word that only its own positive has"
    # opposite faults of two kinds do not cancel out
    mixed = [(rewritten(r, negative=r.negatives[0] + " or so it was"), p) if r.kind == "sts" else (r, p) for r, p in world if r.kind == "sts"] + longer
    assert "length_auc" in measured(mixed)["alarms"]


def test_too_few_instructions_and_labels(world: list[Row]) -> None:
    rows = [(r, p) for r, p in world if r.kind == "classification"]
    few = [(replace(r, instruction=f"tell {i % 15}"), replace(p, task=f"tell {i % 15}")) for i, (r, p) in enumerate(rows)]
    assert "instructions" in measured(few)["alarms"]
    same = [(rewritten(r, positive=f"kind {i % 4}", negative="none"), p) for i, (r, p) in enumerate(few)]
    assert "top_label" in measured(same)["alarms"]
    single = [(rewritten(r, positive=r.instruction, negative="none"), p) for r, p in few]
    assert "one_label_tasks" in measured(single)["alarms"]
    assert not {"instructions", "top_label", "one_label_tasks"} & set(measured(rows)["alarms"])


def spoilt_answers(share: float, broken: list[tuple[str, str]]) -> Answers:
    """What parsing makes of 2,000 answers of two kinds."""
    templates, answers = load_set("mini"), Answers()
    for i in range(2000):
        record, prompt = WORLD[i % len(WORLD)]
        text, reason = '{"user_query": "a", "positive_document": "b", "hard_negative_document": "c"}', "stop"
        if i < share * 2000:
            text, reason = broken[i % len(broken)]
        try:
            outcome = to_record(prompt, Generation(prompt.id, "s", i, text, reason), templates[prompt.kind]).parsed_by
        except Rejected as rejection:
            outcome = str(rejection)
        answers.add(prompt.kind, "m", outcome)
    return answers


WORLD = [row for row in world_rows(22) if row[1].kind == "retrieval"][:4]
BROKEN = {
    "dropped": [("no record at all", "stop"), ('{"user_query": "a"}', "stop"), ("I'm sorry, no.", "stop")],
    "repaired": [("{'user_query': 'a', positive_document: 'b', 'hard_negative_document': 'c',}", "stop")],
    "truncated": [('{"user_query": "a", "positive_document": "b', "length")],
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_answers(name: str) -> None:
    assert spoilt_answers(0, []).result()["alarms"] == []
    found = spoilt_answers(SHARE, BROKEN[name]).result()
    assert found["alarms"] == [name] and found[name] == SHARE
    assert sum(found["answers"]["retrieval, m"].values()) == 2000
    if name == "dropped":
        assert {key: found["answers"]["retrieval, m"][key] for key in ("parse", "schema", "refusal")} == {"parse": 34, "schema": 33, "refusal": 33}


def judgements(rng: random.Random, best: Callable[[int, list[Record]], int], index_errors: float = 0.0, grades: int = 0) -> JudgeMeasures:
    """2,000 rankings of five candidates. ``best`` names the winner, the loser is another one at random; with ``grades`` the first of the best
    and the first of the worst are named."""
    measures, pool = JudgeMeasures(), [record for record, _ in world_rows(44)]
    for i in range(2000):
        if i < index_errors * 2000:
            measures.reject("index_out_of_range")
            continue
        shown = rng.sample(pool, 5)
        scores = [float(rng.randrange(grades)) for _ in shown] if grades else []
        if grades and max(scores) == min(scores):
            measures.reject("tie")
            continue
        winner = scores.index(max(scores)) if grades else best(i, shown)
        loser = scores.index(min(scores)) if grades else rng.choice([j for j in range(5) if j != winner])
        measures.add(Preference("p", shown[winner].id, shown[loser].id, [r.id for r in shown], scores), shown)
    return measures


def test_a_noisy_judge() -> None:
    rng = random.Random(5)
    fair: Callable[[int, list[Record]], int] = lambda i, shown: rng.randrange(5)  # noqa: E731
    assert judgements(rng, fair).result({"checked": 2000, "flipped": 100})["alarms"] == []
    assert judgements(rng, fair, index_errors=SHARE).result()["alarms"] == ["judge_index_errors"]
    assert judgements(rng, fair).result({"checked": 2000, "flipped": 260})["alarms"] == ["judge_flips"]
    first = judgements(rng, lambda i, shown: 0 if i % 20 < 2 else rng.randrange(5)).result()
    assert first["alarms"] == ["judge_position"] and first["places"]["best"][0] > 480
    longest = judgements(rng, lambda i, shown: max(range(5), key=lambda j: sum(map(len, shown[j].fields.values()))))
    assert "judge_longer" in longest.result()["alarms"]
    assert judgements(rng, fair, grades=3).result()["alarms"] == [], "among candidates of equal score the first is as good as any"


def trend(before: list[Record], after: list[Record]) -> dict[str, Any]:
    found = Trend()
    for name, records in (("before", before), ("after", after)):
        for record in records:
            found.add(name, record)
    return found.result("before", "after")


def test_collapse_from_one_generator_to_the_next(world: list[Row], natural: list[Row]) -> None:
    for rows in (world, natural):
        mixed = [record for record, _ in random.Random(1).sample(rows, 1000)]
        before, others = [replace(r, prompt_id=f"{i:03}") for i, r in enumerate(mixed[:500])], mixed[500:]
        same = trend(before, [replace(record, prompt_id=before[i].prompt_id) for i, record in enumerate(others)])
        assert same["alarms"] == [] and same["prompts"] == 500, "another draw of the same writer"
        few = trend(before, [replace(others[i % 25], prompt_id=record.prompt_id) for i, record in enumerate(before)])
        assert few["alarms"] == ["collapse"] and few["collapse"] > 0.1, few
    assert trend(before, [replace(record, prompt_id="x" + record.prompt_id) for record in before]) == {"alarms": []}, "no prompt in common"
    again = trend(before, before[::-1] + [replace(others[0], prompt_id=record.prompt_id, index=1) for record in before])
    assert again["collapse"] == 0.0, "of several answers to a prompt the first is compared"


def test_the_trend_keeps_the_smallest_ids_in_any_order() -> None:
    rows = [Record("g", f"{i:04}", "sts", "do", {}, f"a b c {i}", "d", []) for i in range(3000)]
    assert trend(rows, rows[::-1])["prompts"] == 2500


def test_self_bleu_by_hand() -> None:
    assert self_bleu([["a", "b", "c", "d", "e"]] * 3) == pytest.approx(1.0)
    # against the other text: 2 of 5 words; 1 of 4 pairs; no triple, no run of four: half a hit each
    assert self_bleu([list("abxyz"), list("abuvw")]) == pytest.approx((2 / 5 * 1 / 4 * 0.5 / 3 * 0.5 / 2) ** 0.25)


def test_a_merged_result_keeps_the_last_figure_and_every_alarm() -> None:
    first, second = {"records": 3, "repaired": 0.5, "alarms": ["repaired", "label_leak"]}, {"repaired": 0.0, "dropped": 0.3, "alarms": ["dropped"]}
    assert merge(first, second) == {"records": 3, "repaired": 0.0, "dropped": 0.3, "alarms": ["label_leak", "dropped"]}


def test_asked_lengths_are_read_from_the_knobs() -> None:
    inf = float("inf")
    asked = {"fewer than 10": (0, 10), "at least 50": (50, inf), "5 to 15 words": (5, 15), "3 facts": None, "English": None, 300: (300, inf), True: None}
    assert {value: bounds(value) for value in asked} == asked


@pytest.mark.parametrize("text", ["Это предложение написано по-русски.", SPANISH, "我们今天不去上学，因为下雨。"])
def test_another_language_is_told_by_script_and_small_words(text: str) -> None:
    assert not_english(text)
    assert not not_english("Café, naïve and Zürich: the words of others are in it, and it is English for all that they say of us.")
    assert not not_english("red wooden boat"), "too short to tell"


def test_branches_of_topics() -> None:
    topics = [f"Arts/Music/{i}" for i in range(8)] + ["Arts/Film/1", "Home/Garden"]
    assert branches(topics) == ["Arts/Music"] * 8 + ["Arts", "Home"]


def test_short_texts_may_differ_by_a_word() -> None:
    red, blue = (words(f"there is a {colour} boat near the woods") for colour in ("red", "blue"))
    assert not alike(red, blue, 0.8) and alike(red, red[::-1], 0.8)
    long = [f"w{i}" for i in range(40)]
    assert alike(long, [*long[:38], "x", "y"], 0.8) and not alike(long, [*long[:30], *"abcdefghij"], 0.8)


def test_the_sample_is_bounded_and_the_share_of_copies_exact_in_the_mean(world: list[Row]) -> None:
    rows = [record for record, _ in world[:1500]]
    rows += rows[:150]
    whole, small = Measures(), Measures(sample=500)
    for row in rows:
        whole.add(row)
    for row in random.Random(1).sample(rows, len(rows)):
        small.add(row)
    found = small.result()
    assert whole.result()["duplicates"] == round(150 / 1650, 4)
    assert found["records"] == 1650 and found["duplicates"] == pytest.approx(150 / 1650, abs=0.04) and found["alarms"] == ["duplicates"]
    again = Measures(sample=500)
    for row in rows:
        again.add(row)
    assert again.result() == found, "the figures do not depend on the order"


GATED = {
    "meta_text": (True, "positive", "I'm sorry, but I cannot help with that request."),
    "label_leak": (True, "query", "so it is kaba, all told"),
    "negative_like_positive": (0.8, "negatives", ["one two three four five six seven eight nine ten and eleven"]),
    "copied_query": (0.5, "positive", "they say: do wide rivers freeze last? in the north where it is cold"),
}


@pytest.mark.parametrize("gate", GATED)
def test_a_gate_drops_what_its_measure_counts(gate: str) -> None:
    limit, name, value = GATED[gate]
    kind = "classification" if gate == "label_leak" else "retrieval"
    positive = "kaba" if kind == "classification" else "one two three four five six seven eight nine ten eleven"
    clean = Record("g", "p", kind, "do", {"q": "do wide rivers freeze last"}, "do wide rivers freeze last", positive, ["lodor"])
    spoilt = replace(clean, **{name: value})
    spoilt = replace(spoilt, fields={"q": spoilt.query, "p": spoilt.positive})
    assert fault_of(clean, {gate: limit}) == ""
    assert fault_of(spoilt, {gate: limit}) == gate
    assert fault_of(spoilt, {}) == fault_of(spoilt, {gate: None}) == "", "gates are open unless the config closes them"


def test_a_negative_that_is_the_positive_never_passes() -> None:
    row = Record("g", "p", "retrieval", "do", {"q": "a", "p": "b"}, "a", "b", ["c"])
    assert fault_of(replace(row, negatives=[row.positive]), {}) == "negative_equals_positive"


@pytest.mark.parametrize("noise, alarms", [(0.0, []), (0.2, ["false_negatives"])])
def test_the_judge_is_asked_whether_the_positive_is_the_better_one(noise: float, alarms: list[str], world: list[Row], tmp_path: Path) -> None:
    """The embedded judge, without noise, over records of which some have positive and negative exchanged."""
    teacher = Teacher(noise=Noise(0, 0, 0))
    triples = [row for row in random.Random(4).sample(world, 300) if row[0].negatives][:200]
    spoilt = [(rewritten(r, positive=r.negatives[0], negative=r.positive) if i < noise * len(triples) else r, p) for i, (r, p) in enumerate(triples)]
    with Server(lambda body, n: teacher.answer(body["messages"], body.get("seed"))) as server:
        ctx = context("dataset", tmp_path, server, prompts="mini")
        found = inspect(ctx, spoilt, len(spoilt))
    assert found["alarms"] == alarms and found["inspected"] == len(spoilt) and found["unusable"] == 0
    assert found["false_negatives"] == noise and found["false_negatives_95"][0] <= noise <= found["false_negatives_95"][1]
    assert ctx.ledger.calls == len(spoilt)
