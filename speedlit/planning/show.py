"""The plan as tables."""

from __future__ import annotations

from typing import Any

from speedlit.report.tables import Table


def tables(found: dict[str, Any]) -> list[Table]:
    """Calls and tokens; local work; memory; the paper and the E5-Mistral route beside them."""
    many = [speeds(found), whole(found)] if "scaling" in found else []
    return [asked(found), local(found), memory(found), *many, beside(found)]


def asked(found: dict[str, Any]) -> Table:
    """What the teacher is asked."""
    rows = [
        [s["stage"], count(s["calls"]), count(s["tokens_in"]), count(s["tokens_out"]), money(s["usd"]), s["note"]]
        for s in found["stages"]
        if s["calls"] != 0
    ]
    total = found["total"]
    known = "" if all(s["calls"] is not None for s in found["stages"]) else "brainstorming not included"
    rows.append(["all", count(total["calls"]), count(total["tokens_in"]), count(total["tokens_out"]), money(total["usd"]), known])
    return Table(f"{found['name']}: the teacher", ["stage", "calls", "tokens in", "tokens out", "USD", "how"], rows)


def local(found: dict[str, Any]) -> Table:
    """What the own devices do."""
    rows = [[s["stage"], *work(s), s["note"]] for s in found["stages"] if s["calls"] == 0]
    rows.append(["all", *work(found["total"]), ""])
    head = ["stage", "answers", "FLOPs", "hours", "GPU hours", "USD", "how"]
    note = "hours: with all devices at work; GPU hours: of all devices together. N parameters, A of the adapter, T tokens"
    return Table("generation and training", head, rows, note)


def memory(found: dict[str, Any]) -> Table:
    """What each training needs of a device; a table of its own, so that both fit into a terminal."""
    names = ("weights", "gradients", "optimizer", "activations", "total")
    rows = [[s["stage"], *(f"{s['memory'][name] / 1e9:,.2f}" for name in names)] for s in found["stages"] if s["memory"]]
    return Table("memory of training, GB", ["stage", *names], rows, "of one device that holds the whole model, at full length")


def speeds(found: dict[str, Any]) -> Table:
    """The training stages on more devices."""
    rows = []
    for row in found["scaling"]:
        figures = [count(row["gpus"]), row["way"], f"{row['seconds']:.3g}", count(row["tokens_per_second"]), f"{row['efficiency']:.0%}", row["limit"]]
        held = f"{row['memory'] / 1e9:,.0f}" + ("" if row["fits"] else " (too much)")
        rows.append([row["stage"], *figures, f"{row['weak_efficiency']:.0%}", held, hours(row["hours"])])
    head = ["stage", "GPUs", "strategy", "s a step", "tokens/s", "efficiency", "limit", "if the batch grows", "GB", "hours"]
    note = "the recipe's global batch on so many devices; `limit`: where most of the lost time goes (docs/scaling.md has the formula)"
    return Table("training on more devices", head, rows, note)


def whole(found: dict[str, Any]) -> Table:
    """Generation and training together."""
    rows = [
        [count(row["gpus"]), hours(row["hours"]), hours(row["device_hours"]), money(row["device_usd"]), hours(row["cautious_hours"])] for row in found["whole"]
    ]
    head = ["GPUs", "hours", "GPU hours", "USD", "hours at 40 % of the peak"]
    return Table("the whole recipe", head, rows, "one stage after the other; the teacher's answers not counted")


def work(row: dict[str, Any]) -> list[str]:
    """Answers, FLOPs, hours, hours of all devices, and their rent (blank where none is named)."""
    usd = "" if row["device_usd"] is None else money(row["device_usd"])
    return [count(row["generated"]), f"{row['flops']:.2e}", hours(row["hours"]), hours(row["device_hours"]), usd]


def beside(found: dict[str, Any]) -> Table:
    """The paper's accounting and the E5-Mistral route."""
    ours, paper, e5 = found["total"]["without_brainstorming"], found["paper"], found["e5"]
    rows = [
        ["this plan, without brainstorming", count(ours["calls"]), count(ours["tokens"]), count(found["accepted"]), ratio(ours, found["accepted"])],
        ["the paper", count(paper["calls"]), count(paper["tokens"]), count(paper["accepted"]), ratio(paper, paper["accepted"])],
        ["E5-Mistral", count(e5["calls"]), count(e5["tokens"]), count(e5["samples"]), ratio(e5, e5["samples"])],
    ]
    if found["accepted"]:
        many = e5["for_as_many"]
        rows.append(["E5-Mistral, for as many", count(many["calls"]), count(many["tokens"]), count(found["accepted"]), ratio(many, found["accepted"])])
    usd = "" if e5["for_as_many"]["usd"] is None else f"E5-Mistral's way, for as many at this teacher's price: {money(e5['for_as_many']['usd'])} USD"
    return Table("beside it", ["", "calls", "tokens", "samples", "calls and tokens a sample"], rows, usd)


def hours(value: float) -> str:
    """Hours; more digits for a run of minutes."""
    return f"{value:,.1f}" if value >= 10 else f"{value:,.3f}"


def ratio(row: dict[str, Any], samples: int) -> str:
    """``0.049 and 35``."""
    return f"{row['calls'] / samples:.3f} and {row['tokens'] / samples:,.0f}" if samples else ""


def count(value: float | None) -> str:
    """A number, blank for none, a question mark for unknown."""
    return "?" if value is None else f"{value:,.0f}" if value else ""


def money(value: float | None) -> str:
    """USD, a question mark for unknown."""
    return "?" if value is None else f"{value:,.2f}"

