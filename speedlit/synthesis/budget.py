"""What a run has spent and may still spend on its teacher: read from the journals alone, so that it survives any crash.

There is no second book. A ``sent`` row carries the worst case of its attempt (an upper bound of the prompt's tokens, and ``max_tokens``)
and the tariff it is charged at; the attempt's outcome row settles it. So a run's commitment is, over all journals of its folder:

- answered and damaged attempts at the tokens that the server counted (at the worst case where it counted none),
- attempts that may have been paid without an answer (timeouts, lost connections, 5xx but 503) at the worst case,
- attempts without an outcome, in flight or orphaned by a crash, at the worst case;
- refusals (3xx, 4xx, 503, nobody listening) cost nothing.

How a client uses it, live or in batches (`journal.append` puts rows on the disk):

    budget = Budget(root, caps, prices)
    sent = Event(key, "sent", tokens_in=..., tokens_out=..., detail=tariff(model))     # the figures: worst_case(body)
    refused = budget.admit([sent, ...], journal.append)       # writes what fits under the caps; send only what was not refused
    journal.append([Event(key, "answered", 200, ..., tokens_in, tokens_out)])          # settles it; no other call is needed

``admit`` holds a lock of the folder while it reads the journals of all processes and writes its own rows, so that shards can share one
cap. What was refused may be offered again once something has settled; when nothing is in flight any more, ``refusal`` says what to do.
"""

from __future__ import annotations

import fcntl
import json
import math
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speedlit.errors import SpeedlitError, UsageError
from speedlit.synthesis.journal import Event, open_to_read, rows_after

LOCK = ".budget.lock"
BATCH = "batch:"  # before the model's name in a tariff
MARGIN = 64  # tokens that a server's chat template may add to the text of the request
LOST = ("timeout", "connection_lost")  # ends without an answer to something that may have been worked on
PAID = ("answered", "damaged", "repeated")


@dataclass(frozen=True)
class Refused:
    """Why a request was not sent.

    Attributes:
        name: of the cap, and its ``value``.
        charged: against it so far, of which ``paid`` is for ``answers`` usable answers.
        worst: what the request might have added.
    """

    name: str
    value: float
    charged: float
    paid: float
    answers: int
    worst: float


class BudgetSpent(SpeedlitError):
    """The next request might pass the budget, so it was not sent. Says what is done, what is left, and how to go on.

    Args:
        why: the figures.
        done: requests of this stage that are answered, ``total`` of how many (None: unknown).
    """

    def __init__(self, why: Refused, done: int, total: int | None = None) -> None:
        self.why, self.done, self.total = why, done, total
        super().__init__(sentence(why, done, total))

    def out_of(self, total: int) -> BudgetSpent:
        """The same by one who knows how many requests there are."""
        return BudgetSpent(self.why, self.done, total)


@dataclass
class Price:
    """What a teacher's model costs.

    Args:
        input: USD per million tokens of prompts.
        output: USD per million tokens of answers.
        batch: share of the price that the Batch API charges, such as 0.5.
    """

    input: float
    output: float
    batch: float = 1.0


@dataclass
class Amount:
    """Calls, tokens and money."""

    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    usd: float = 0.0

    @property
    def tokens(self) -> int:
        """In and out together."""
        return self.tokens_in + self.tokens_out

    def add(self, other: Amount, sign: int = 1) -> None:
        """Add ``other``, or take it away with ``sign`` -1."""
        self.calls += sign * other.calls
        self.tokens_in += sign * other.tokens_in
        self.tokens_out += sign * other.tokens_out
        self.usd += sign * other.usd


@dataclass
class Standing:
    """One journal as far as it was read.

    Attributes:
        open: attempts without an outcome by key: when they were sent, and their worst case.
    """

    db: sqlite3.Connection
    last: int = 0
    open: dict[str, tuple[float, str, Amount]] = field(default_factory=dict)


def tariff(model: str, batch: bool = False) -> str:
    """What a ``sent`` row is charged at: a model's price, or that of its Batch API."""
    return f"{BATCH}{model}" if batch else model


def worst_case(body: Mapping[str, Any]) -> tuple[int, int]:
    """Upper bounds of the tokens in and out of a request: a token has at least one byte, and nothing is written beyond ``max_tokens``."""
    text = json.dumps(body, ensure_ascii=False)
    return len(text.encode("utf-8", "surrogatepass")) + MARGIN, int(body.get("max_tokens") or body.get("max_completion_tokens") or 0) * int(body.get("n") or 1)


class Account:
    """What was spent in a run's folder, over the journals of all its processes.

    Args:
        root: the folder of the journals.
        prices: USD per million tokens by model.

    Attributes:
        answered: attempts with a usable answer.
        wasted: paid or possibly paid attempts without one: damaged, lost, answered twice, orphaned by a crash and asked again.
        open: attempts without an outcome, at the worst case: in flight, or orphaned by a crash.
        unpriced: models that were asked and have no price; they count as 0 USD.
    """

    def __init__(self, root: Path, prices: Mapping[str, Price]) -> None:
        self.root, self.prices = root, dict(prices)
        self.answered, self.wasted, self.open = Amount(), Amount(), Amount()
        self.unpriced: set[str] = set()
        self._journals: dict[Path, Standing] = {}

    def refresh(self) -> None:
        """Read what the journals have gained.

        Raises:
            SpeedlitError: a journal cannot be read.
        """
        for path in sorted(self.root.glob("journal*.sqlite")):
            if path not in self._journals:
                self._journals[path] = Standing(open_to_read(path))
            standing = self._journals[path]
            for row in rows_after(path, standing.db, standing.last):
                self._read(standing, *row)

    def _read(self, standing: Standing, n: int, key: str, event: str, at: float, status: int, tokens_in: int, tokens_out: int, detail: str) -> None:
        standing.last = n
        before = standing.open.pop(key, None)
        if before is not None:
            self.open.add(before[2], -1)
        if event == "sent":
            if before is not None:  # orphaned by a crash, now asked again
                self.wasted.add(before[2])
            worst = self.amount(detail, tokens_in, tokens_out)
            standing.open[key] = (at, detail, worst)
            self.open.add(worst)
            return
        _, model, worst = before or (at, "", Amount(1))
        if event in PAID:
            counted = (tokens_in or tokens_out) and detail != "delivered_twice"  # the figures of a second copy are another request's
            (self.answered if event == "answered" else self.wasted).add(self.amount(model, tokens_in, tokens_out) if counted else worst)
        elif not free(status, detail):
            self.wasted.add(worst)

    def amount(self, model: str, tokens_in: int, tokens_out: int) -> Amount:
        """One attempt at a tariff."""
        name = model.removeprefix(BATCH)
        price = self.prices.get(name)
        if price is None:
            self.unpriced |= {name} - {""}  # rows of journals from before there were budgets name no model
            return Amount(1, tokens_in, tokens_out)
        share = price.batch if model.startswith(BATCH) else 1.0
        return Amount(1, tokens_in, tokens_out, share * (tokens_in * price.input + tokens_out * price.output) / 1e6)

    def committed(self) -> Amount:
        """Everything together: paid, perhaps paid, and in flight at the worst case."""
        total = Amount()
        for part in (self.answered, self.wasted, self.open):
            total.add(part)
        return total

    def young(self, seconds: float, without: Path | None = None) -> Amount:
        """Attempts that were sent within the last ``seconds`` and have no outcome yet, but for those of the journal ``without``."""
        since, total = time.time() - seconds, Amount()
        for path, standing in self._journals.items():
            for at, _, worst in standing.open.values() if path != without else ():
                if at >= since:
                    total.add(worst)
        return total

    def close(self) -> None:
        """Close the journals."""
        for standing in self._journals.values():
            standing.db.close()
        self._journals.clear()


def free(status: int, detail: str) -> bool:
    """Whether a failed attempt certainly cost nothing: it was refused, or nobody listened."""
    return 300 <= status < 500 or status == 503 or (status == 0 and detail not in LOST)


class Budget:
    """Hard caps on what a run may spend; see the top of this file.

    Args:
        root: the run's folder.
        caps: ``usd``, ``calls``, ``tokens``; None is no cap.
        prices: USD per million tokens by model.
        own: this process's journal, to tell its own attempts in flight from those of other processes.
        patience: seconds for which an attempt of another process is believed to be still in flight.
    """

    def __init__(
        self, root: Path, caps: Mapping[str, float | None], prices: Mapping[str, Price], own: Path | None = None, patience: float = 180.0
    ) -> None:
        self.caps = {name: cap for name, cap in caps.items() if cap is not None}
        self.account = Account(root, prices)
        self._own, self._patience = own, patience

    def admit(self, events: Sequence[Event], append: Callable[[Sequence[Event]], None]) -> list[Event]:
        """Write events through ``append``, but for ``sent`` ones that might pass a cap.

        Returns:
            The refused events, not written: nothing of them may be sent.

        Raises:
            UsageError: a cap in USD, and a model without a price.
            SpeedlitError: a journal cannot be read or written.
        """
        if not self.caps:
            append(events)
            return []
        refused: list[Event] = []
        with self._lock():
            self.account.refresh()
            total, written = self.account.committed(), []
            for event in events:
                worst = self.account.amount(event.detail, event.tokens_in, event.tokens_out) if event.event == "sent" else Amount(0)
                if event.event != "sent" or (not refused and self._fits(total, worst)):
                    total.add(worst)
                    written.append(event)
                else:  # nothing overtakes it: a small request would else starve a large one
                    refused.append(event)
            self._priced()
            if written:
                append(written)
        return refused

    def others_may_settle(self, event: Event) -> bool:
        """Whether a refused event would fit, should all that other processes have in flight turn out to cost nothing."""
        total = self.account.committed()
        total.add(self.account.young(self._patience, self._own), -1)
        return self._fits(total, self.account.amount(event.detail, event.tokens_in, event.tokens_out))

    def _fits(self, total: Amount, worst: Amount) -> bool:
        return all(getattr(total, name) + getattr(worst, name) <= cap + 1e-9 for name, cap in self.caps.items())

    def _priced(self) -> None:
        if "usd" in self.caps and self.account.unpriced:
            name = min(self.account.unpriced)
            raise UsageError(f"budget.usd is set, but prices has no {name!r}: add `{name}: {{input: USD, output: USD}}` (per million tokens) to prices")

    @contextmanager
    def _lock(self) -> Iterator[None]:
        path = self.account.root / LOCK
        try:
            file = path.open("a")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise SpeedlitError(f"cannot lock {path} to count the budget: {error.strerror or error}; use a folder on a disk that allows locks") from error
        with file:  # closing it gives the lock back
            yield

    def refusal(self, event: Event, done: int, total: int | None = None) -> BudgetSpent:
        """The end of the run for a refused event.

        Args:
            event: what ``admit`` gave back.
            done: requests of this stage that are answered, ``total`` of how many.
        """
        account = self.account
        spent, worst = account.committed(), account.amount(event.detail, event.tokens_in, event.tokens_out)
        name = next((n for n in self.caps if getattr(spent, n) + getattr(worst, n) > self.caps[n] + 1e-9), next(iter(self.caps)))
        charged, paid, most = (getattr(amount, name) for amount in (spent, account.answered, worst))
        return BudgetSpent(Refused(name, self.caps[name], charged, paid, account.answered.calls, most), done, total)

    def close(self) -> None:
        """Close the journals."""
        self.account.close()


def sentence(why: Refused, done: int, total: int | None) -> str:
    """What a person reads when the budget ends a run."""
    name = why.name
    parts = f"{show(name, why.paid)} for {why.answers:,} answers"
    if why.charged > why.paid + 1e-9:
        parts += f", {show(name, why.charged - why.paid)} for damaged, lost and interrupted attempts, at most"
    each, left = why.paid / max(why.answers, 1), max((total or 0) - done, 0)
    state = f"{done:,}{f' of {total:,}' if total else ''} requests of this stage are answered"
    if left:
        state += f"; the other {left:,} would take about {show(name, each * left)}"
    needed = why.charged + why.worst + each * max(left - 1, 0)
    value = f"{math.ceil(needed * 100) / 100:.2f}" if name == "usd" else f"{math.ceil(needed)}"
    return (
        f"stopped before budget.{name} of {show(name, why.value)} was passed: {show(name, why.charged)} are charged ({parts}), "
        f"and the next request may take {show(name, why.worst)}. {state}. "
        f"Raise budget.{name} (to about {value}) and run the same command: nothing that was answered is asked again"
    )


def show(name: str, value: float) -> str:
    """An amount with its unit."""
    return f"{value:,.{2 if value >= 1 else 4}f} USD" if name == "usd" else f"{value:,.0f} {name}"
