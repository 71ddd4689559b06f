"""ddp and fsdp over two processes give what one process gives: losses of 20 steps, and the weights at the end."""

from __future__ import annotations

import csv
import json
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from speedlit.checkpoints import read_folder
from speedlit.data.shards import write_shards
from speedlit.errors import SpeedlitError, UsageError
from speedlit.evaluation import ranks
from speedlit.evaluation.folders import check_model, open_encoder
from speedlit.export import export
from speedlit.files import read_json, write_json
from speedlit.models import slices
from speedlit.models.adapter import QLoRA
from speedlit.models.backbone import Backbone
from speedlit.models.sharding import layers
from speedlit.models.unpack import unpacked
from speedlit.modules import base
from speedlit.modules.dpo import DPOModule
from speedlit.modules.sft import SFTModule
from speedlit.pipeline import fitting
from tests.helpers import contrastive_rows, preference_rows, sft_rows, tiny_llama
from tests.modules.recipes import KINDS, in_ranks, recipe

fit = partial(fitting.fit, progress=False)
STEPS = 20
READ = slices.read
Job = tuple[dict[str, Any], Path]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("strategies")
    tiny_llama(place / "base")
    for shape, rows in (("sft", sft_rows(25)), ("preference", preference_rows(25)), ("contrastive", contrastive_rows(25, negatives=1))):
        write_shards(rows, place / shape, shape)
    return place


def config(root: Path, kind: str, adapter: str, steps: int = STEPS, strategy: Any = None, **backbone: Any) -> dict[str, Any]:
    """Batches of 8, and one sample over in each epoch; micro-batches of 3 that are cut by length, so that ranks have different numbers of them."""
    model: dict[str, Any] = {
        "backbone": {"name": str(root / "base"), "attention": "bidirectional" if kind == "contrastive" else "causal", **backbone},
        "schedule": {"kind": "constant", "warmup_steps": 2},
    }  # fmt: skip
    if adapter != "full":
        model["adapter"] = {"class_path": adapter, "init_args": {"r": 4}}
    if kind == "contrastive":
        model |= {"temperature": 0.1, "learn_temperature": adapter == "full"}
    trainer = {"max_epochs": None, "max_steps": steps, "callbacks": [{"class_path": "Resume", "init_args": {"every_n_steps": 10}}]}
    spread = {"devices": 2, "strategy": strategy} if strategy else {}
    optimizer = {"class_path": "AdamW", "init_args": {"lr": 1e-3}}
    return recipe(root, kind, lora=False, model=model, data={"micro_batch": 3, "drop_last": False}, trainer={**trainer, **spread}, optimizer=optimizer)


def all_of(jobs: list[Job]) -> None:
    for settings, place in jobs:
        fit(settings, place)


def trace(place: Path) -> list[tuple[float, float]]:
    with (place / "metrics.csv").open() as stream:
        return [(float(row["loss"]), float(row["grad_norm"])) for row in csv.DictReader(stream)]


def weights(place: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(next((place / "model").glob("*.safetensors"))))


def assert_same(one: Path, two: Path) -> None:
    ours, theirs = trace(one), trace(two)
    assert len(ours) == len(theirs) == STEPS
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, abs=1e-5, rel=1e-5)
    mine, others = weights(one), weights(two)
    assert mine.keys() == others.keys()
    for name, weight in mine.items():
        assert torch.allclose(weight, others[name], atol=1e-5, rtol=0), name


def test_two_processes_give_what_one_gives(root: Path, tmp_path: Path) -> None:
    cases = [(kind, adapter) for kind in KINDS for adapter in ("full", "LoRA")]
    jobs = [(config(root, *case, strategy=s), tmp_path / "-".join((*case, s))) for case in cases for s in ("ddp", "fsdp")]
    assert in_ranks(2, all_of, jobs) == [0, 0]
    for case in cases:
        alone = tmp_path / "-".join((*case, "single"))
        fit(config(root, *case), alone)
        assert trace(alone)[0] != pytest.approx(trace(alone)[-1], rel=1e-3)
        for name in ("ddp", "fsdp"):
            assert_same(alone, tmp_path / "-".join((*case, name)))
            assert_unpacked(tmp_path / "-".join((*case, name)))
    last = Path("checkpoints") / "last.ckpt"
    for case in ("contrastive-full-ddp", "contrastive-LoRA-fsdp"):
        vectors = open_encoder(tmp_path / case / "model").vectors(["a b c", "d"])
        assert in_ranks(2, opens_as, tmp_path / case / last, vectors) == [0, 0]
    content = torch.load(tmp_path / "sft-full-ddp" / last, weights_only=False)
    (tmp_path / "sft-full-ddp" / "model").rename(tmp_path / "sft-full-ddp" / "gone")
    with pytest.raises(UsageError, match="this fit has not ended; name its checkpoint .*last.ckpt"):
        export(tmp_path / "sft-full-ddp", tmp_path / "out", "merged")
    torch.save({**content, "speedlit": {"base": "x"}}, tmp_path / "old.ckpt")
    with pytest.raises(UsageError, match="old.ckpt doesn't say of what model it is, because an earlier version wrote it; repeat the `speedlit fit`"):
        export(tmp_path / "old.ckpt", tmp_path / "out", "merged")
    torch.save({**content, "state_dict": {}}, tmp_path / "cut.ckpt")
    with pytest.raises(UsageError, match="lacks 21 of the trained weights, such as model.embed_tokens.weight"):
        export(tmp_path / "cut.ckpt", tmp_path / "out", "merged")
    assert not list(tmp_path.rglob("*.unpacked"))


def assert_unpacked(place: Path) -> None:
    """The checkpoint of the last step gives the files that the fit has left, but that the base is named from where they lie."""
    with unpacked(place / "checkpoints" / "last.ckpt") as folder:
        assert folder.parent.name == f"{place.name}-last"
        ours, theirs = ({path.name: path.read_bytes() for path in sorted(p.iterdir())} for p in (folder, place / "model"))
        assert ours.keys() == theirs.keys()
        base = [json.loads(files["speedlit.json"])["base"].encode() for files in (ours, theirs)]
        assert {name for name in ours if ours[name] != theirs[name]} <= {"speedlit.json", "adapter_config.json"}
        assert all(ours[name].replace(base[0], base[1]) == theirs[name] for name in ours)


def opens_as(checkpoint: Path, vectors: Any) -> None:
    """Both ranks read what the first one has unpacked."""
    check_model(checkpoint)
    with ranks.joined("cpu"):
        assert np.array_equal(open_encoder(checkpoint, spread=False).vectors(["a b c", "d"]), vectors)


FEW = 4
SPREAD = {  # recipe, and what is put over a plain fit of one process
    "whole": ("sft", "full", {}),
    "slices": ("sft", "full", {}),
    "slices-LoRA": ("contrastive", "LoRA", {}),
    "whole-LoRA": ("contrastive", "LoRA", {}),
    "offload": ("sft", "full", {"trainer": {"strategy": {"name": "fsdp", "cpu_offload": True}}}),
    "again": ("sft", "full", {"model": {"gradient_checkpointing": True}}),
    "narrow": ("sft", "full", {"trainer": {"precision": "bf16-mixed"}}),
    "epochs": ("sft", "full", {}),
}


def spread(root: Path, name: str, devices: bool = True) -> dict[str, Any]:
    """A short fit under fsdp, of a base in several files whose head is tied to its embeddings."""
    kind, adapter, over = SPREAD[name]
    settings = config(root, kind, adapter, steps=FEW, strategy="fsdp" if devices else None, name=str(root / "parts"), **over.get("model", {}))
    settings["trainer"].update({k: v for k, v in over.get("trainer", {}).items() if devices or k != "strategy"})
    if name == "epochs":
        settings["trainer"].update(max_steps=-1, max_epochs=2)
        settings["trainer"]["callbacks"].append({"class_path": "tests.modules.witness.Names", "init_args": {"path": str(root / "names")}})
        settings["data"]["init_args"]["validation"] = str(root / "sft")
    return settings


def all_spread(root: Path, out: Path) -> None:
    """Every fit of ``SPREAD``; what the ones in slices have read; and how a loss that is no number ends, on each rank."""
    rank = os.environ["RANK"]
    for name in SPREAD:
        found: list[tuple[str, int, int]] = []

        def counted(file: str, key: str, where: tuple[slice, ...], found: Any = found) -> torch.Tensor:
            found.append((key, where[0].start, where[0].stop))
            return READ(file, key, where)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(slices, "read", counted)
            if name.startswith("whole"):
                patch.setattr(base, "to_be_filled", lambda *_: None)
            fit(spread(root, name), out / name)
        write_json(out / f"{name}.{rank}.json", found)
    settings = spread(root, "slices")
    settings["model"]["init_args"]["clip"], settings["optimizer"] = None, {"class_path": "torch.optim.SGD", "init_args": {"lr": 1e30}}
    with pytest.raises(SpeedlitError) as error:
        fit(settings, out / "wild")
    write_json(out / f"wild.{rank}.json", str(error.value))


def test_spread_weights_are_read_in_shares_and_do_all_that_whole_ones_do(root: Path, tmp_path: Path) -> None:
    """One pair of processes: weights read share by share, in the host's memory, activations computed again, bfloat16, validation, two epochs, a wild loss."""
    tiny_llama(root / "parts", tie_word_embeddings=True)
    model = Backbone(str(root / "parts")).build(True)
    (root / "parts" / "model.safetensors").unlink()
    model.save_pretrained(root / "parts", max_shard_size="40KB")
    assert len(list((root / "parts").glob("*.safetensors"))) > 2
    assert in_ranks(2, all_spread, root, tmp_path) == [0, 0]
    sizes = {name: weight.shape for name, weight in model.named_parameters()}
    for name, shapes in (("slices", sizes), ("slices-LoRA", {n.removeprefix("model."): s for n, s in sizes.items()})):
        read = [read_json(tmp_path / f"{name}.{rank}.json") for rank in (0, 1)]
        assert trace(tmp_path / name) == trace(tmp_path / name.replace("slices", "whole"))
        mine = {key: [rows for rank in read for k, *rows in rank if k.removeprefix("model.") == key.removeprefix("model.")] for key in shapes}
        assert all(rows == [[0, -(-s[0] // 2)], [-(-s[0] // 2), s[0]]] for s, rows in zip(shapes.values(), mine.values(), strict=True))
        assert len(read[0]) == len(read[1]) == len(shapes)
    assert read_json(tmp_path / "whole.0.json") == []
    for name in ("offload", "again"):
        assert trace(tmp_path / name) == trace(tmp_path / "slices")
    fit(spread(root, "narrow", devices=False), tmp_path / "narrow-alone")
    losses = [[loss for loss, _ in trace(tmp_path / name)] for name in ("narrow", "narrow-alone", "slices")]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    assert losses[0] != losses[2]
    seen = [[(int(line.split()[0]), line.split()[1:]) for line in (root / f"names.{rank}").read_text().splitlines()] for rank in (0, 1)]
    steps = seen[0][-1][0] // 2
    for first in (0, steps):
        epoch = [name for rank in seen for step, names in rank for name in names if first < step <= first + steps]
        assert sorted(epoch) == sorted(f"s{i}" for i in range(25))
    scored = fit({**spread(root, "epochs", devices=False)}, tmp_path / "epochs-alone")["final"]["val_loss"]
    assert read_json(tmp_path / "epochs" / "fit.json")["final"]["val_loss"] == pytest.approx(scored, abs=1e-5)
    for rank in (0, 1):
        assert re.fullmatch(r"step \d+: .*not changed. Samples of the step: s\d+.*", read_json(tmp_path / f"wild.{rank}.json"))


def go_on(settings: dict[str, Any], place: Path) -> None:
    """To the end from the checkpoint that lies there; that the recipe has more steps now is no reason to begin anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "_identity", lambda config: "the same")
        (place / fitting.RESULT).unlink(missing_ok=True)
        write_json(place / fitting.STATE, {"id": "the same"})
        fit(settings, place)


def test_a_run_goes_on_with_another_strategy_and_number_of_processes(root: Path, tmp_path: Path) -> None:
    """10 steps of 2 processes under fsdp, then 10 of one; and the other way round; sharded and full checkpoints."""
    full = {"name": "fsdp", "checkpoint": "full"}
    starts = {
        "sharded-full": ("sft", "full", "fsdp"), "sharded-LoRA": ("preference", "LoRA", "fsdp"),
        "file-full": ("sft", "full", full), "file-LoRA": ("preference", "LoRA", full),
    }  # fmt: skip
    jobs = [(config(root, kind, adapter, steps=10, strategy=name), tmp_path / place) for place, (kind, adapter, name) in starts.items()]
    assert in_ranks(2, all_of, jobs) == [0, 0]
    for name, (kind, adapter, _) in starts.items():
        last = tmp_path / name / "checkpoints" / "last.ckpt"
        assert last.is_dir() == name.startswith("sharded")
        content = read_folder(last) if last.is_dir() else torch.load(last, weights_only=False)
        assert all("lora_" in name for name in content["state_dict"]) == (adapter == "LoRA")
        alone = tmp_path / f"alone-{kind}-{adapter}"
        if not alone.exists():
            fit(config(root, kind, adapter), alone)
        go_on(config(root, kind, adapter), tmp_path / name)
        assert_same(alone, tmp_path / name)
    fit(config(root, "sft", "full", steps=10), tmp_path / "back")
    assert in_ranks(2, go_on, config(root, "sft", "full", strategy="fsdp"), tmp_path / "back") == [0, 0]
    assert_same(tmp_path / "alone-sft-full", tmp_path / "back")


def in_parts(jobs: list[tuple[dict[str, Any] | None, dict[str, Any], Path]]) -> None:
    """Each fit up to a checkpoint, and from there to its end; those without a start in one go."""
    for start, rest, place in jobs:
        if start is None:
            fit(rest, place)
        else:
            fit(start, place)
            go_on(rest, place)


def in_four(root: Path, kind: str, steps: int, precision: str, strategy: str | None = None) -> dict[str, Any]:
    settings = config(root, kind, "QLoRA", steps, strategy, dtype=precision)
    settings["model"]["init_args"]["adapter"]["init_args"] |= {"storage": precision, "compute": precision}
    settings["trainer"]["callbacks"][0]["init_args"]["every_n_steps"] = 3
    return settings


def test_a_base_in_4_bits_trains_goes_on_and_is_exported(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where adapters are in float32, two processes do what one does. In bfloat16 the first step is the same; after it, gradients that were added
    in another order have moved some weights by one more or less of the 8 bits they have, which an embedder's temperature makes ten times larger."""
    cases = [(kind, name, "float32") for kind in KINDS for name in ("ddp", "fsdp")] + [("contrastive", "fsdp", "bfloat16")]
    jobs = []
    for kind, name, precision in cases:
        start = in_four(root, kind, 3, precision, name) if precision == "float32" else None
        jobs.append((start, in_four(root, kind, 6, precision, name), tmp_path / "-".join((kind, name, precision))))
    assert in_ranks(2, in_parts, jobs) == [0, 0]
    for kind, name, precision in cases:
        alone, place = tmp_path / f"{kind}-{precision}", tmp_path / "-".join((kind, name, precision))
        if not alone.exists():
            fit(in_four(root, kind, 6, precision), alone)
        ours, theirs = trace(place), trace(alone)
        assert len(ours) == len(theirs) == 6
        assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
        assert [loss for loss, _ in ours] == pytest.approx([loss for loss, _ in theirs], rel=1e-5 if precision == "float32" else 1.5e-2)
        mine, others = weights(place), weights(alone)
        assert mine.keys() == others.keys()
        assert all(weight.any() for weight in mine.values())
        assert precision != "float32" or all(torch.allclose(weight, others[n], atol=1e-5, rtol=0) for n, weight in mine.items())
    done = export(tmp_path / "contrastive-fsdp-bfloat16" / "checkpoints" / "last.ckpt", tmp_path / "exported", "sentence-transformers")
    assert done["cosine"] > 0.999
    monkeypatch.setattr("speedlit.export.compare", lambda *_: 1.0)  # once in a fresh process is enough
    export(tmp_path / "contrastive-fsdp-bfloat16" / "model", tmp_path / "of-the-folder", "sentence-transformers")
    one, two = ({path.relative_to(p): path.read_bytes() for path in p.rglob("*") if path.suffix != ".md" and path.is_file()} for p in
                (tmp_path / "exported", tmp_path / "of-the-folder"))  # fmt: skip
    said = [{**json.loads(files.pop(Path("speedlit.json"))), "exported": None} for files in (one, two)]  # that names the base from where the source lay
    assert one == two and said[0] == said[1]


def test_what_spread_weights_cannot_do_is_refused(root: Path) -> None:
    backbone = Backbone(str(root / "base"))
    with pytest.raises(UsageError, match="adapter.storage is bfloat16 and backbone.dtype float32; set both to bfloat16, or take ddp"):
        SFTModule(backbone, QLoRA()).refuse_spread()
    with pytest.raises(UsageError, match="reference is precomputed.*set it to copy"):
        DPOModule(backbone, reference="precomputed").refuse_spread()
    with pytest.raises(UsageError, match="Linear has no list of layers; use ddp"):
        layers(torch.nn.Linear(2, 2))
    with pytest.raises(UsageError, match="is no whole sharded checkpoint"):
        read_folder(root)
