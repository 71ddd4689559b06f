"""Clean records to measure: the embedded teacher's without noise, and longer English of our own in the shape of the paper's prompt set."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from speedlit.offline.lexicon import TOPICS
from speedlit.offline.teacher import Noise, Teacher
from speedlit.offline.world import task_sentences
from speedlit.records import Generation, Prompt, Record
from speedlit.synthesis.quality.orders import asked
from speedlit.synthesis.stages.common import to_record
from speedlit.synthesis.templates import derived_random, load_set

Row = tuple[Record, Prompt]
SUBJECTS = {
    "Science/Astronomy/Telescopes": "telescope mirror lens eyepiece observatory star nebula dome tripod magnification comet aperture focus galaxy",
    "Home/Gardening/Vegetables": "garden tomato compost seedling soil greenhouse cabbage irrigation weed trellis bean fertiliser pruning harvest",
    "Recreation/Sailing": "sail mast rudder harbour keel anchor regatta skipper rope tide deck hull lighthouse buoy",
    "Arts/Music/Violins": "violin bow string orchestra concerto luthier varnish melody rehearsal sonata bridge tuning scale audience",
    "Health/Nutrition": "protein vitamin diet calorie fibre breakfast sugar appetite mineral digestion portion snack cholesterol nutrient",
    "Business/Accounting": "invoice ledger audit balance expense revenue asset liability budget receipt depreciation payroll dividend equity",
    "Computers/Databases": "database index query transaction schema replica backup latency cache shard cursor migration lock column",
    "Society/Law/Tenancy": "tenant landlord lease deposit eviction clause rent tribunal notice repair inventory contract dispute mediator",
    "Science/Geology/Volcanoes": "volcano lava crater magma ash eruption basalt seismograph fissure caldera summit tremor vent plume",
    "Sports/Cycling": "bicycle saddle pedal chain gear helmet sprint peloton puncture handlebar cadence brake derailleur climb",
    "Shopping/Photography": "camera shutter tripods flash exposure portrait battery viewfinder film sensor zoom filter tripodhead memory",
    "Home/Cooking/Bread": "bread dough yeast oven flour crust sourdough kneading loaf bakery starter crumb proofing rye",
    "Reference/Maps": "map compass contour atlas legend longitude projection trail surveyor meridian gradient landmark altitude grid",
    "Science/Biology/Birds": "bird nest feather migrationroute beak egg plumage falcon wetland owl flock ringing song chick",
    "Arts/Theatre": "stage actor curtain script spotlight costume director premiere monologue balcony prop playwright rehearsals scenery",
    "Travel/Railways": "train platform timetable carriage locomotive ticket junction signal conductor freight tunnel sleeper junctions rails",
    "Health/Dentistry": "tooth dentist enamel filling gum braces cavity crown floss anaesthetic molar plaque implant jaw",
    "Games/Chess": "chess pawn bishop opening endgame rook gambit checkmate clock knight tournament castling queen grandmaster",
    "Science/Chemistry": "acid catalyst solvent molecule reaction beaker compound titration polymer isotope electrolyte distillation crystal flask",
    "Home/Carpentry": "timber chisel joint plane saw dovetail glue workbench grain clamp plywood hinge sandpaper drawer",
    "Society/History/Castles": "castle moat tower siege drawbridge knighthood dungeon rampart garrison keep gatehouse chapel banner archer",
    "Computers/Networks": "router packet firewall cable bandwidth protocol switch gateway antenna outage subnet modem encryption port",
    "Recreation/Fishing": "trout reel bait river hook line salmon waders lure stream net catch float pike",
    "Business/Logistics": "warehouse pallet courier container shipment forklift customs parcel depot route fleet manifest loading barcode",
}
LABELS = ["complaint", "praise", "question", "warning", "instruction", "apology", "announcement", "comparison", "estimate", "anecdote", "proposal", "summary"]
VERBS = [
    "keeps", "needs", "changes", "improves", "weakens", "follows", "explains", "replaces", "protects", "limits", "supports", "reveals", "delays",
    "prevents", "shapes", "holds",
]  # fmt: skip
ADJECTIVES = [
    "old", "careful", "simple", "broken", "rare", "small", "reliable", "expensive", "local", "modern", "quiet", "heavy", "useful", "strange",
    "common", "early",
]  # fmt: skip
FRAMES = [
    "The {a} {n} {v} the {m} when nobody has looked at it for a while.",
    "People with a {n} say that the {m} {v} more than they had thought.",
    "After some years, a {a} {n} {v} every {m} around it.",
    "Few see why the {n} {v} a {m}, but there are two reasons.",
    "Before you buy a {n}, ask how the {m} {v} it.",
    "In our {m} the {n} {v} the {a} parts only in winter.",
    "She wrote that her {n} had a {a} {m}, which {v} the rest.",
    "If the {n} is {a}, then the {m} will have to wait.",
    "Nothing {v} a {m} like a {a} {n} does.",
    "They found the {n} next to a {m} and could not say which of them {v} the other.",
    "Each {n} {v} its {m}, so be {a} with both.",
    "What {v} the {m} is seldom the {n} itself; it is something {a}.",
]
ASKS = [
    "how does the {n} affect the {m}",
    "why a {a} {n} {v} the {m}",
    "{a} {n} and {m} trouble",
    "what to do when the {n} {v} the {m} again",
    "{n} {m} advice",
]


def sentence(rng: random.Random, nouns: list[str], frames: list[str] = FRAMES) -> str:
    n, m = rng.sample(nouns, 2)
    text = rng.choice(frames).format(n=n, m=m, a=rng.choice(ADJECTIVES), v=rng.choice(VERBS))
    return text[0].upper() + text[1:]


def passage(rng: random.Random, nouns: list[str], length: int) -> str:
    out: list[str] = []
    while len(out) < length:
        out += sentence(rng, nouns).split()
    return " ".join(out)


def fields(rng: random.Random, prompt: Prompt) -> dict[str, str]:
    """What a faithful writer would answer."""
    nouns = SUBJECTS[prompt.topic].split()
    low, high = dict(asked(prompt)).get("documents" if prompt.kind == "retrieval" else "query", (8.0, 20.0))
    length = int(low * rng.uniform(0.9, 1.3)) if low else rng.randint(5, 9)
    if prompt.kind == "retrieval":
        short = prompt.knobs["query_length"] == "fewer than 5 words"
        query = " ".join(rng.sample(nouns, 3)) if short else sentence(rng, nouns, ASKS) + " " + " ".join(rng.sample(nouns, 4))
        return dict(zip(prompt.keys, [query, passage(rng, nouns, length), passage(rng, nouns, length)], strict=True))
    if prompt.kind == "classification":
        text = passage(rng, nouns, length) if length > 9 else " ".join(sentence(rng, nouns).split()[:length])
        return dict(zip(prompt.keys, [text, *rng.sample(LABELS, 2)], strict=True))
    size = {"sts": 1, "s2s": 1, "p2p": 300}[prompt.kind]
    return {key: passage(rng, nouns, size) for key in prompt.keys}


def rows(count: int, prompts: str, write: Callable[[Prompt, int], str], topics: list[str], task_of: Callable[[random.Random, str, str], str]) -> list[Row]:
    templates, out = load_set(prompts), []
    for kind, share in templates.shares(count).items():
        for i in range(share):
            template, topic = templates[kind], topics[i % len(topics)]
            task = topic if template.input == "topic" else task_of(random.Random(f"{kind}{i}"), topic, kind)
            messages, knobs = template.render(task, topic, derived_random(0, kind, i))
            prompt = Prompt("t", kind, task, topic, topic, "train", "seed", i, template.ref, knobs, messages, list(template.fields))
            out.append((to_record(prompt, Generation(prompt.id, "seed", 0, write(prompt, i)), template), prompt))
    return out


def world_rows(count: int = 2000) -> list[Row]:
    """The embedded teacher's records, without noise."""
    teacher, noun_of = Teacher(noise=Noise(0, 0, 0)), {path: noun for noun, path in TOPICS.items()}
    return rows(count, "mini", lambda p, i: teacher.answer(p.messages, i), list(noun_of), lambda rng, t, kind: rng.choice(task_sentences(noun_of[t], kind)))


def natural_rows(count: int = 2000) -> list[Row]:
    """Longer English, with the paper's knobs kept."""

    def task(rng: random.Random, topic: str, kind: str) -> str:
        n, m = rng.sample(SUBJECTS[topic].split(), 2)
        if kind == "classification":
            return f"Tell what a message about a {n} or a {m} is meant to do."
        return f"Given a note about a {n}, find what it says of the {m}."

    return rows(count, "paper", lambda p, i: json.dumps(fields(random.Random(f"{p.kind}{i}"), p)), list(SUBJECTS), task)
