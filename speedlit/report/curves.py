"""Training curves: one small drawing per stage and measure, from the ``metrics.csv`` of its fits."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speedlit.errors import UsageError
from speedlit.report.figures import draw, series
from speedlit.report.markup import figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STAGES = ("junior", "senior", "revisor", "embedder")
MEASURES = {
    "loss": "loss", "preference": "preference loss", "nll": "loss of the chosen answer, per token", "accuracy": "share of pairs in the right order",
    "margin": "margin of chosen over rejected", "val_loss": "loss on the validation data", "mteb/mean": "mean mteb main score",
}  # fmt: skip
POINTS = 60  # a curve of more steps is drawn as the means of this many stretches
Curve = list[tuple[float, float]]


def curves(folders: Mapping[str, Path]) -> str:
    """All drawings; ``folders`` are those of the stages by name."""
    drawn = [drawing(stage, measure, found) for stage in STAGES if stage in folders for measure, found in measured(folders[stage], stage)]
    return f'<div class="figures">{"".join(drawn)}</div>' if drawn else ""


def measured(folder: Path, stage: str) -> Iterator[tuple[str, dict[str, Curve]]]:
    """Each measure that is worth a drawing, with the curve of every fit that has it."""
    fits = {name: read(path) for name, path in fit_files(folder, stage)}
    for measure in MEASURES:
        found = {name: columns[measure] for name, columns in fits.items() if len(columns.get(measure, [])) > 1}
        if found and not (measure == "loss" and any("preference" in columns for columns in fits.values())):  # a sum of two that are drawn
            yield measure, found


def fit_files(folder: Path, stage: str) -> Iterator[tuple[str, Path]]:
    """The stage's own fit, then its control or the embedders that are compared; where these are seeds of one source, the first of each."""
    own, seen = folder / "metrics.csv", {"refined"}  # the embedder itself is the refined data's
    if own.is_file():
        yield "refined data" if stage == "embedder" else stage, own
    if (control := folder / "control" / "metrics.csv").is_file():
        yield "control", control
    for path in sorted((folder / "compare").glob("*/metrics.csv")):
        source = path.parent.name.rpartition("-")[0]
        if source not in seen:
            seen.add(source)
            yield f"{source} data", path


def read(path: Path) -> dict[str, Curve]:
    """The columns of a file as points (step, value); cells that are empty or not finite are left out.

    Raises:
        UsageError: a step or a value is no number.
    """
    out: dict[str, Curve] = {}
    with path.open(newline="", encoding="utf-8") as stream:
        for number, row in enumerate(csv.DictReader(stream), 2):
            for name in (name for name in MEASURES if row.get(name)):
                try:
                    step, value = float(row["step"]), float(row[name])
                except (KeyError, TypeError, ValueError) as error:
                    raise UsageError(f"{path}:{number} has no number under step or {name}; remove the file to have a report without its curves") from error
                if math.isfinite(value):
                    out.setdefault(name, []).append((step, value))
    return out


def thinned(curve: Curve) -> Curve:
    """Means of equal stretches where there are many points."""
    if len(curve) <= 2 * POINTS:
        return curve
    cuts = [round(i * len(curve) / POINTS) for i in range(POINTS + 1)]
    parts = (curve[start:stop] for start, stop in zip(cuts, cuts[1:], strict=False))
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def drawing(stage: str, measure: str, found: Mapping[str, Curve]) -> str:
    """One measure of one stage."""

    def paint(ax: Axes) -> None:
        for place, (name, curve) in enumerate(found.items()):
            x, y = zip(*thinned(curve), strict=True)
            ax.plot(x, y, color=series(place), linewidth=1.6, label=name, marker="o" if len(x) < 8 else None, markersize=3)
        ax.set_xlabel("step")
        ticks: Any = ax.xaxis.get_major_locator()
        ticks.set_params(integer=True)
        if len(found) > 1:
            ax.legend()

    ends = "; ".join(f"{name}: from {curve[0][1]:.3g} to {curve[-1][1]:.3g} in {curve[-1][0]:.0f} steps" for name, curve in found.items())
    label = f"{stage}, {MEASURES[measure]}. {ends}"
    return figure(draw(paint, label, f"curve-{stage}-{measure.replace('/', '-')}"), f"{stage}: {MEASURES[measure]}")
