"""The cost ledger: what the data of a run took per accepted sample, and beside it what the E5-Mistral route takes.

Everything is divided by the same number, the records that passed the filters of ``dataset``, so the rows of the stages add up to the
total. Money comes from ``prices``. What was paid beyond the answers in use (damaged, lost in a crash, asked under an earlier config) is
a row of its own, read from the journals.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speedlit.synthesis.budget import Account, Amount, Price

TEACHER = ("tasks", "seed", "preferences", "revisions", "dataset")  # dataset asks where counts.inspected says so
DATA = ("topics", "tasks", "seed", "junior", "candidates", "preferences", "senior", "revisions", "revisor", "synthesis", "refinement", "dataset")
FIGURES = ("calls", "tokens", "usd", "local_seconds")

# SPEED (arXiv 2410.18634, Table 5 and Table 6) and E5-Mistral (arXiv 2401.00368), as SPEED accounts for it.
PAPER: dict[str, Any] = {
    "calls": 45_000, "tokens": 32_000_000, "accepted": 920_415,
    "stages": {"seed": [25_000, 10_000_000], "preferences": [10_000, 12_000_000], "revisions": [10_000, 10_000_000]},
}  # fmt: skip
E5: dict[str, Any] = {"calls": 500_000, "tokens": 180_000_000, "samples": 500_000, "english": 190_000}
CAVEATS = [
    "calls and tokens tell different stories: the paper's 45K of 500K calls are 9 %, its 32M of 180M tokens are 18 %",
    "the paper's accounting leaves task brainstorming out, and all work of its own GPUs; here both are counted",
    "E5-Mistral's 500K samples are in many languages, 190K of them in English: per English sample its calls are 2.6 times as many",
    "E5-Mistral's figures are per sample as written, ours per sample that passed the filters (the paper's MinHash alone took 20 % away)",
    "how E5-Mistral's 180M tokens divide into prompts and answers is not published, and a quarter of them were GPT-3.5's: "
    "its USD take this run's division and the price of this run's teacher",
]


def ledger(stages: Mapping[str, Any], config: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """The cost ledger of a run's finished stages.

    Args:
        stages: ``summary["stages"]``: seconds and counts of each.
        config: the run's config, for ``prices`` and the teacher's model.
        root: the folder of the journals.

    Returns:
        ``accepted``; ``stages``, ``other``, ``total`` and ``without_brainstorming`` with calls, tokens, usd and local seconds, and the
        same per accepted sample once ``dataset`` is finished; ``paper``, ``e5`` and ``share_of_e5`` beside them; ``caveats``.
    """
    prices = {model: Price(**price) for model, price in (config.get("prices") or {}).items()}
    price = price_of(config, prices)
    accepted = accepted_samples(stages)
    rows = {name: stage_cost(name, stages[name], price) for name in DATA if name in stages}
    used = total_of(rows)
    other = beyond(used, journalled(root, prices), price)
    total = total_of({"used": used, "other": other})
    counted = {name: row for name, row in rows.items() if name != "tasks"}
    found = {"other": other, "total": total, "without_brainstorming": total_of(counted)}
    out = {name: {**row, **per(row, accepted)} for name, row in {**rows, **found}.items()}
    tokens = {name: sum(stages[s][name] for s in TEACHER if s in stages) for name in ("tokens_in", "tokens_out")}
    e5 = e5_for(accepted, price, tokens) if accepted else None
    return {
        "accepted": accepted,
        "stages": {name: out[name] for name in rows},
        **{name: out[name] for name in found},
        "paper": {**PAPER, "per_accepted": per({**PAPER, "usd": None, "local_seconds": None}, PAPER["accepted"])["per_accepted"]},
        "e5": {**E5, "for_as_many": e5, "per_accepted": e5 and per({**e5, "local_seconds": None}, accepted)["per_accepted"]},
        "share_of_e5": {name: share_of(out[name], e5) for name in ("total", "without_brainstorming")} if e5 else None,
        "caveats": CAVEATS,
    }


def share_of(row: Mapping[str, Any], e5: Mapping[str, Any]) -> dict[str, float]:
    """Calls and tokens as multiples of what the E5-Mistral route takes for as many accepted samples."""
    return {name: row[name] / e5[name] for name in ("calls", "tokens")}


def price_of(config: Mapping[str, Any], prices: Mapping[str, Price]) -> Price | None:
    """The price of the run's teacher; the embedded one costs nothing; None where nobody has said."""
    teacher = config.get("teacher") or {}
    found = prices.get(teacher.get("model", ""))
    return found or (Price(0.0, 0.0) if teacher.get("embedded") is not None and not (teacher.get("base_url") or teacher.get("backend")) else None)


def accepted_samples(stages: Mapping[str, Any]) -> int | None:
    """Records of the refined data that passed all filters; None before there are any."""
    notes = (stages.get("dataset") or {}).get("notes", {}).get("refined")
    return int(notes["records"]) if notes else None


def stage_cost(name: str, stage: Mapping[str, Any], price: Price | None) -> dict[str, Any]:
    """One stage: a teacher's calls, tokens and USD; or the seconds of local work, whose tokens cost nothing but that; ``dataset`` has both."""
    local = stage["seconds"] if name not in TEACHER or name == "dataset" else 0.0
    if name not in TEACHER:
        return {"calls": 0, "tokens": 0, "usd": 0.0, "local_seconds": local}
    share = price.batch if price and stage.get("notes", {}).get("mode") == "batch" else 1.0
    usd = share * (stage["tokens_in"] * price.input + stage["tokens_out"] * price.output) / 1e6 if price else None
    return {"calls": stage["calls"], "tokens": stage["tokens_in"] + stage["tokens_out"], "usd": usd, "local_seconds": local}


def total_of(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Sums; USD are unknown where one of them is."""
    total = {name: sum(row[name] or 0 for row in rows.values()) for name in FIGURES}
    return {**total, "usd": None if any(row["usd"] is None for row in rows.values()) else total["usd"]}


def journalled(root: Path, prices: Mapping[str, Price]) -> Amount:
    """Everything that was or may have been paid in a run's folder."""
    account = Account(root, prices)
    try:
        account.refresh()
        return account.committed()
    finally:
        account.close()


def beyond(used: Mapping[str, Any], paid: Amount, price: Price | None) -> dict[str, Any]:
    """What was paid beyond the answers in use. Answers that two stages or requests share are paid once, so it is never below 0."""
    usd = None if price is None or used["usd"] is None else max(paid.usd - used["usd"], 0.0)
    return {"calls": max(paid.calls - used["calls"], 0), "tokens": max(paid.tokens - used["tokens"], 0), "usd": usd, "local_seconds": 0.0}


def per(row: Mapping[str, Any], accepted: int | None) -> dict[str, Any]:
    """``{"per_accepted": ...}``: every figure divided; None before there are accepted samples."""
    return {"per_accepted": None if not accepted else {name: None if row[name] is None else row[name] / accepted for name in FIGURES}}


def e5_for(samples: int, price: Price | None, tokens: Mapping[str, float]) -> dict[str, Any]:
    """What the E5-Mistral route takes for as many samples: one call and 360 tokens each; USD at this run's price and division of tokens."""
    calls, count = samples * E5["calls"] / E5["samples"], samples * E5["tokens"] / E5["samples"]
    every = tokens["tokens_in"] + tokens["tokens_out"]
    usd = count * (tokens["tokens_in"] * price.input + tokens["tokens_out"] * price.output) / every / 1e6 if price and every else None
    return {"calls": calls, "tokens": count, "usd": usd}

