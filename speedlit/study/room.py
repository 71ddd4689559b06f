"""Where a study works: the run that it reads, its own folder beside the stages, and what all cells of a study share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from speedlit.context import Context
from speedlit.errors import UsageError
from speedlit.files import content_id, read_object, sha256_file
from speedlit.pipeline.config import RunConfig
from speedlit.pipeline.loop import IDENTITY, stages, summarise
from speedlit.pipeline.services import Services
from speedlit.study import longtail

GROWING = ("synthesis", "refinement", "dataset")  # stages whose work grows with the data; the teacher is paid once


class Room:
    """A study of a run.

    Args:
        kind: scaling, ablation or cross-model.
        config: the run's; its section ``study`` says what is trained.
        services: of the run, for generators and their likelihoods.

    Raises:
        UsageError: there is no run of this config in the root, or it has not come far enough.
    """

    def __init__(self, kind: str, config: RunConfig, services: Services) -> None:
        self.kind, self.root, self.services = kind, Path(config.root), services
        self.config = config.plain()
        self.study: dict[str, Any] = self.config["study"]
        self.folder = self.root / "study"
        check_run(self.root, self.config)
        self.inputs = {name: stage.folder(self.root) for name, stage in stages().items()}

    def say(self, text: str) -> None:
        """A line for the person who waits."""
        print(text, file=sys.stderr, flush=True)

    def need(self, *names: str) -> None:
        """Refuse a run that has not finished some stages.

        Raises:
            UsageError: names the stage and the command that finishes it.
        """
        for name in names:
            if not (self.inputs[name] / "_SUCCESS").is_file():
                command = f"speedlit run --config {self.config['name']} --root {self.root} --until {name}"
                raise UsageError(f"a study of {self.kind} reads the stage {name}, which is not finished in {self.root}; first run `{command}`")

    def context(self, out: Path | None = None, backend: Callable[[str], Any] | None = None, inputs: dict[str, Path] | None = None, **more: Any) -> Context:
        """What a stage's functions are given when a study calls them."""
        config = {**self.config, "evaluation": self.evaluation()}
        stages = {**self.inputs, **(inputs or {})}
        more["evaluation_texts"] = self.services.evaluation_texts
        return Context("study", out or self.folder, stages, config, self.root, backend or self.services.backend, **more)

    def evaluation(self) -> dict[str, Any]:
        """Task names and folder that every cell is scored on: the run's own."""
        settings = self.config["evaluation"]
        data = settings["data"]
        rendered = self.inputs["dataset"] / "evaldata"
        if not data and not settings["tasks"] and rendered.is_dir():
            data = str(rendered)
        if not data and not settings["tasks"]:
            raise UsageError("a study needs something to score on: name tasks with evaluation.tasks, or a folder with evaluation.data")
        return {"tasks": settings["tasks"], "data": data}

    def evaluation_mark(self) -> str:
        """What tells one evaluation from another: the names, and the files of the folder."""
        return self._mark

    @cached_property
    def _mark(self) -> str:
        found = self.evaluation()
        folder = Path(found["data"]) if found["data"] else None
        files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder else []
        digests = [[path.relative_to(folder).as_posix(), sha256_file(path)] for path in files if folder]
        known = any(path.name == "topics.jsonl" for path in files)  # else the queries of known topic are the run's own records
        return content_id([found["tasks"], digests, None if known else sha256_file(self.inputs["refinement"] / "manifest.json")])

    def probe_file(self) -> Path:
        """The queries of known topic, written when they are first asked for."""
        path = self.folder / f"probe-{self.evaluation_mark()}.json"
        if not path.is_file():
            from speedlit.evaluation.tasks import load_tasks

            found = self.evaluation()
            data = Path(found["data"]) if found["data"] else None
            tasks = load_tasks(found["tasks"] or None, data) if data else []
            own = longtail.held_out(self.inputs["tasks"], self.inputs["refinement"])
            longtail.write_probe(path, data, tasks, own, self.config["topics"]["depth"])
        return path

    def costs(self) -> dict[str, Any]:
        """What an accepted sample of the run took: the average of everything, and the seconds of the stages that grow with the data."""
        ledger = summarise(self.root, stages(), self.config, write=False)["costs"]
        seconds = sum(ledger["stages"][name]["local_seconds"] for name in GROWING)
        return {"each": ledger["total"]["per_accepted"], "growing": seconds / ledger["accepted"]}

    def tail(self, triplets: Path) -> longtail.Tail:
        """The queries grouped by how often their topic occurs in some triplets."""
        return longtail.Tail(read_object(self.probe_file(), "sets"), longtail.frequencies(triplets, self.inputs["topics"]))


def check_run(root: Path, config: dict[str, Any]) -> None:
    """Refuse a root without a run, or with the run of another config.

    Raises:
        UsageError: which, and what to do.
    """
    if not (root / "run.json").is_file():
        raise UsageError(f"{root} holds no run to study; first run `speedlit run --config {config['name']} --root {root}`, or name its folder with --root")
    theirs = read_object(root / "run.json", "identity")["identity"]
    theirs = theirs if isinstance(theirs, dict) else {}
    differs = [f"{k}: {theirs.get(k)!r} there, {config[k]!r} here" for k in IDENTITY if theirs.get(k) != config[k]]
    if differs:
        raise UsageError(f"{root} belongs to another config ({'; '.join(differs)}); give --config as it was given to `speedlit run`")
