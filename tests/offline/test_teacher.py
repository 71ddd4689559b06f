"""The teacher's roles and their noise, and the checker that sees each planted defect."""

import json
import random

import pytest

from speedlit.offline.checker import WEIGHTS, check, fields_of
from speedlit.offline.lexicon import KEYS, TOPICS
from speedlit.offline.mending import DEFECTS, differences
from speedlit.offline.teacher import Noise, Teacher, apply, dump
from speedlit.offline.world import World, read_prompt
from speedlit.synthesis.templates import derived_random, load_set

WORLD = World()
EXACT = Teacher(WORLD, Noise(0, 0, 0))


def ask(teacher, text, seed=0, index=0):
    return teacher.answer([{"role": "user", "content": text}], seed, index)


def spoilt(name, prompt, seed=0):
    rng = random.Random(f"{name}{prompt}{seed}")
    order = EXACT.complete(rng, read_prompt(prompt))
    return DEFECTS[name](WORLD, rng, order, EXACT.record(rng, order))


def test_without_noise_every_record_is_good(prompts):
    for kind, prompt in prompts:
        answer = ask(EXACT, prompt, seed=7)
        found = check(WORLD, prompt, answer)
        assert found["good"] == 1 and found["score"] == sum(WEIGHTS.values()) == 9.5, (prompt, answer, found)
        assert list(json.loads(answer)) == list(KEYS[kind])


def test_records_are_short(prompts):
    words = [len(ask(EXACT, prompt).split()) for _, prompt in prompts]
    assert sum(words) / len(words) < 30


@pytest.mark.parametrize("name", DEFECTS)
def test_each_planted_defect_is_caught(prompts, name):
    for kind, prompt in prompts[::3]:
        found = check(WORLD, prompt, spoilt(name, prompt))
        expected = "relevant" if name in ("hn_ok", "hn_hard") and len(KEYS[kind]) == 2 else name  # matching has no hard negative
        assert found[expected] == 0 and found["good"] == 0, (prompt, name, found)


@pytest.mark.parametrize("name", [n for n in DEFECTS if n != "valid"])
def test_the_critic_mends_each_defect_in_few_words(prompts, name):
    critique = load_set("mini").roles["critique"]
    for kind, prompt in prompts[::5]:
        broken = spoilt(name, prompt)
        edits = json.loads(ask(EXACT, critique.revision(prompt, broken, "edits")[-1]["content"]))["edits"]
        fields = fields_of(kind, broken)
        assert edits and all(find and find in fields[key] for key, find, _ in edits[:1])
        assert check(WORLD, prompt, json.dumps(apply(fields, edits)))["good"] == 1
        full = json.loads(ask(EXACT, critique.revision(prompt, broken, "full")[-1]["content"]))["revision"]
        assert check(WORLD, prompt, json.dumps(full))["good"] == 1


def test_the_critic_leaves_a_good_record_alone_unless_noisy(prompts):
    critique, noisy = load_set("mini").roles["critique"], Teacher(WORLD, Noise(0, 0, 1.0))
    for _, prompt in prompts[::20]:
        text = critique.revision(prompt, ask(EXACT, prompt), "edits")[-1]["content"]
        assert json.loads(ask(EXACT, text))["edits"] == []
        assert len(json.loads(ask(noisy, text))["edits"]) == 1


def test_differences_are_small():
    assert differences("a crimson boat", "a scarlet boat") == [[" crimson", " scarlet"]]
    assert differences("There is a boat.", "There is a boat near the cave.")[0][0] == " boat"
    assert differences("same", "same") == []


def test_the_judge_ranks_and_errs_when_told(prompts):
    judge, noisy = load_set("mini").roles["judge"], Teacher(WORLD, Noise(0, 1.0, 0))
    differing = 0
    for _, prompt in prompts[::20]:
        candidates = [spoilt("plausible", prompt), ask(EXACT, prompt), spoilt("valid", prompt), spoilt("nocopy", prompt)]
        text = judge.judge(prompt, candidates)[-1]["content"]
        said = json.loads(ask(EXACT, text))
        assert (said["best"], said["worst"]) == (1, 2) and len(said["scores"]) == 4 and said["scores"][1] == 10
        differing += json.loads(ask(noisy, text))["scores"] != said["scores"]
    assert differing > 20


def test_writer_noise_spoils_its_share(prompts):
    for share in (0.0, 0.2, 1.0):
        teacher = Teacher(WORLD, Noise(share, 0, 0))
        bad = sum(1 - check(WORLD, prompt, ask(teacher, prompt, seed))["good"] for seed in (1, 2) for _, prompt in prompts)
        assert abs(bad / (2 * len(prompts)) - share) < 0.04


def test_answers_depend_on_messages_seed_and_index(prompts):
    prompt = prompts[0][1]
    assert ask(EXACT, prompt, 1, 0) == ask(EXACT, prompt, 1, 0)
    assert len({ask(EXACT, prompt, seed, index) for seed in range(3) for index in range(3)}) > 3


def test_brainstorming_known_and_unknown_topics():
    role = load_set("mini").roles["brainstorm"]
    for kind in KEYS:
        tasks = json.loads(ask(EXACT, role.brainstorm(kind, TOPICS["boat"], derived_random(0))[-1]["content"]))
        assert len(set(tasks)) == 6 and all("boats" in task for task in tasks)
        (generic,) = json.loads(ask(EXACT, role.brainstorm(kind, "Top/Arts/Stop-Motion_Films", derived_random(0))[-1]["content"]))
        assert "Stop-Motion Films" in generic


@pytest.mark.parametrize("name", ["mini", "paper"])
def test_both_prompt_sets_are_understood(name):
    prompts, task = load_set(name), {"sts": "compare boats by colour", "p2p": "match notes on boats by colour"}
    for kind in prompts:
        text = prompts[kind].render(task.get(kind, "match boats by colour"), TOPICS["boat"], derived_random(kind))[0][-1]["content"]
        assert read_prompt(text).kind == kind and read_prompt(text).topic == "boat"
        answer = ask(EXACT, text)
        assert check(WORLD, text, answer)["good"] == 1
        edits = prompts.roles["critique"].revision(text, spoilt("nocopy", text), "edits")[-1]["content"]
        assert json.loads(ask(EXACT, edits))["edits"]
        judged = json.loads(ask(EXACT, prompts.roles["judge"].judge(text, [answer, "no json"])[-1]["content"]))
        assert (judged["best"], judged["worst"]) == (0, 1)
        assert json.loads(ask(EXACT, prompts.roles["brainstorm"].brainstorm("retrieval", TOPICS["boat"], derived_random(0))[-1]["content"]))


def test_dump_keeps_the_kinds_order():
    rng = random.Random(0)
    order = EXACT.complete(rng, read_prompt("Task: find boats by owner.\nWrite user_query, positive_document and hard_negative_document as JSON."))
    assert list(json.loads(dump("retrieval", EXACT.record(rng, order)))) == ["user_query", "positive_document", "hard_negative_document"]
