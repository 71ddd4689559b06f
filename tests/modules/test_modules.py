"""What a step computes: normalisation, the reference of DPO, adapters, precision, and refusals."""

from __future__ import annotations

import csv
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from speedlit import progress
from speedlit.data import collate
from speedlit.data.tokens import TokenContract
from speedlit.errors import SpeedlitError, UsageError
from speedlit.models.adapter import LoRA, adapter_parameters
from speedlit.models.backbone import Backbone
from speedlit.models.folder import load_folder
from speedlit.modules.base import Schedule, SpeedModule, target_logps
from speedlit.modules.dpo import DPOModule
from speedlit.pipeline.fitting import fit
from tests.helpers import preference_rows, tiny_bert, tiny_llama
from tests.modules.recipes import KINDS, in_child, in_ranks, prepare, recipe

SYMMETRIC = {"directions": ["query_to_doc", "doc_to_query"], "partition": "per_direction"}
SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("modules"))


def metrics(place: Path) -> list[dict[str, float]]:
    with (place / "metrics.csv").open() as stream:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(stream)]


def exact(root: Path, kind: str, **over: Any) -> dict[str, Any]:
    """Three steps of plain SGD on all weights, no clipping: the weights show the gradients."""
    model = {"adapter": None, "clip": None, "schedule": {"kind": "constant"}, **over.pop("model", {})}
    if kind == "contrastive":
        model["temperature"] = 0.2  # at 0.02 rounding errors are ten times as large
    return recipe(root, kind, lora=False, model=model, optimizer=SGD, trainer={"max_epochs": None, "max_steps": 3, **over.pop("trainer", {})}, **over)


@pytest.mark.parametrize("kind", KINDS)
def test_the_split_into_micro_batches_does_not_matter(root: Path, tmp_path: Path, kind: str) -> None:
    weights = {}
    for micro in (None, 1, 3):
        model = {"recompute": micro == 3, **SYMMETRIC} if kind == "contrastive" else {}
        fit(exact(root, kind, data={"micro_batch": micro}, model=model), tmp_path / str(micro), progress=False)
        weights[micro] = load_file(tmp_path / str(micro) / "model" / "model.safetensors")
    start = load_file(root / "base" / "model.safetensors")
    for micro in (1, 3):
        for name, weight in weights[None].items():
            assert torch.allclose(weights[micro][name], weight, atol=1e-6), (micro, name)
    moved = [name for name in weights[None] if name in start and not torch.equal(weights[None][name], start[name])]
    assert moved or kind == "contrastive"  # an embedder's names lack the prefix


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_train_as_one(root: Path, tmp_path: Path, kind: str) -> None:
    """Same weights after three steps of SGD for one process and for two, to 1e-6: uneven lengths, hard negatives, symmetric loss."""
    model = SYMMETRIC if kind == "contrastive" else {}
    fit(exact(root, kind, model=model), tmp_path / "one", progress=False)
    config = exact(root, kind, model=model, data={"micro_batch": 2}, trainer={"devices": 2, "strategy": "ddp"})
    assert in_ranks(2, partial(fit, progress=False), config, tmp_path / "two") == [0, 0]
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    for name, weight in one.items():
        assert torch.allclose(two[name], weight, atol=1e-6), name


def test_the_learning_rate_warms_up_and_falls() -> None:
    linear, cosine = Schedule("linear", 4), Schedule("cosine", warmup_ratio=0.1)
    assert [round(linear.factor(s, 14), 2) for s in (0, 3, 4, 9, 13)] == [0.25, 1.0, 1.0, 0.5, 0.1]
    assert cosine.factor(0, 20) == 0.5
    assert cosine.factor(11, 20) == pytest.approx(0.5)
    assert Schedule("constant").factor(999, 1000) == 1.0
    with pytest.raises(UsageError, match=r"schedule\.kind"):
        Schedule("square")


@pytest.mark.parametrize("lora", [True, False])
def test_dpo_begins_at_its_reference(root: Path, tmp_path: Path, lora: bool) -> None:
    """On a finished junior: loss log 2 and margin 0 at step 0, the reference is the junior and stays it."""
    junior = tmp_path / "junior"
    fit(recipe(root, "sft"), junior, progress=False)
    config = recipe(root, "preference", lora=lora, model={"nll_weight": 0.0, "backbone": {"name": str(root / "base"), "adapters": [str(junior / "model")]}})
    fit(config, tmp_path / "senior", progress=False)
    rows = metrics(tmp_path / "senior")
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert rows[0]["margin"] == pytest.approx(0.0, abs=1e-5)
    assert rows[-1]["loss"] < rows[0]["loss"]

    module = DPOModule(Backbone(str(root / "base"), [str(junior / "model")]), LoRA(r=4) if lora else None, TokenContract())
    module.configure_model()
    samples = collate.encode_preference(module.tokenizer, module.tokens, preference_rows(4))
    batch = collate.collate_rows(samples, 0)
    expected, _ = target_logps(load_folder(junior / "model").model, batch)
    for weight in module.model.parameters():
        if weight.requires_grad:
            weight.data += 0.1
    with module.as_reference():
        assert torch.allclose(target_logps(module.model if module.frozen is None else module.frozen, batch)[0], expected, atol=1e-4)
    assert not torch.allclose(target_logps(module.model, batch)[0], expected, atol=1e-2)


def test_without_beta_dpo_is_sft_on_the_chosen(root: Path, tmp_path: Path) -> None:
    """The control of the paper's senior: same gradient as SFT on the chosen records, the reference is never asked."""
    from speedlit.data.shards import write_shards

    rows = [{"id": row["id"], "prompt": row["prompt"], "completion": row["chosen"]} for row in preference_rows(30)]
    write_shards(rows, tmp_path / "chosen", "sft")
    fit(exact(root, "preference", model={"beta": 0.0, "nll_weight": 1.0}), tmp_path / "dpo", progress=False)
    fit(exact(root, "sft", data={"shards": str(tmp_path / "chosen")}), tmp_path / "sft", progress=False)
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("dpo", "sft"))
    for name, weight in one.items():
        assert torch.allclose(two[name], weight, atol=1e-6), name


def test_validation_beside_precomputed_log_probs(root: Path, tmp_path: Path) -> None:
    """Its pairs are not in the table; the frozen copy stays for them."""
    found = {}
    for reference in ("copy", "precomputed"):
        data = {"validation": str(root / "preference")}
        config = recipe(root, "preference", lora=False, model={"reference": reference}, data=data, trainer={"max_epochs": 1})
        found[reference] = fit(config, tmp_path / reference, progress=False)["final"]["val_loss"]
    assert found["precomputed"] == pytest.approx(found["copy"], abs=1e-5)


@pytest.fixture(scope="module")
def junior(root: Path) -> Path:
    """A finished junior with dropout in its adapter."""
    fit(recipe(root, "sft"), root / "junior", progress=False)
    return root / "junior" / "model"


def test_all_references_give_the_same_log_probs(root: Path, junior: Path, tmp_path: Path) -> None:
    """The junior merged with the trained adapter off; the junior kept as a named frozen adapter; a frozen copy; the table beside the shards."""
    from speedlit.data.shards import ShardSet, write_shards

    write_shards(preference_rows(12), tmp_path / "shards", "preference")
    backbone = Backbone(str(root / "base"), [str(junior)])
    rows = list(ShardSet(tmp_path / "shards"))
    found = {}
    for reference, adapter in (("adapter_off", LoRA(r=4)), ("frozen_adapter", LoRA(r=4, dropout=0.5)), ("copy", None)):
        module = DPOModule(backbone, adapter, TokenContract(), reference=reference)
        module.configure_model()
        for weight in module.model.parameters():
            if weight.requires_grad:
                weight.data += 0.1  # a policy that has moved
        batch = collate.collate_rows(collate.encode_preference(module.tokenizer, module.tokens, rows), 0)
        found[reference] = module.reference_sums(batch)
        assert module.model.training
    start = {"backbone": {"name": str(root / "base"), "adapters": [str(junior)]}, "reference": "precomputed"}
    config = recipe(root, "preference", model=start, data={"shards": str(tmp_path / "shards")}, trainer={"max_epochs": None, "max_steps": 1})
    fit(config, tmp_path / "fit", progress=False)
    (table,) = (tmp_path / "shards").glob("reference-*.npz")
    found["precomputed"] = torch.from_numpy(np.load(table)["table"])
    for reference, sums in found.items():
        assert torch.allclose(sums, found["copy"], atol=1e-5, rtol=1e-5), reference


def test_precomputed_log_probs_are_read_again_and_made_anew_for_another_start(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from speedlit.data.shards import write_shards

    write_shards(preference_rows(12), tmp_path / "shards", "preference")
    tiny_llama(tmp_path / "other", seed=7)
    passes = []
    sweep = DPOModule.sweep
    monkeypatch.setattr(DPOModule, "sweep", lambda self, data: passes.append(1) or sweep(self, data))

    def run(name: str, **over: Any) -> str:
        model = {"reference": "precomputed", **over.pop("model", {})}
        config = recipe(root, "preference", model=model, data={"shards": str(tmp_path / "shards"), **over}, trainer={"max_epochs": 1})
        fit(config, tmp_path / name, progress=False)
        return (tmp_path / name / "metrics.csv").read_text()

    first = run("first")
    assert run("again") == first  # bit for bit
    assert len(passes) == 1
    run("other", model={"backbone": {"name": str(tmp_path / "other")}})
    run("shorter", model={"tokens": {"max_length": 12}})
    assert len(passes) == 3
    assert len(list((tmp_path / "shards").glob("reference-*.npz"))) == 3
    for table in (tmp_path / "shards").glob("reference-*.npz"):
        data = bytearray(table.read_bytes())
        data[data.index(b"NUMPY") + 140] ^= 1  # one bit of one number
        table.write_bytes(data)
    assert run("damaged") == first
    assert len(passes) == 4


@pytest.mark.parametrize("quantized", [False, True])
def test_a_senior_over_a_junior_that_is_kept_frozen(root: Path, junior: Path, tmp_path: Path, quantized: bool) -> None:
    """It begins at its reference, leaves it, never changes the junior, and its folder is an adapter on the junior's. Over 4 bits there is no other way."""
    if quantized:
        root = prepare(tmp_path / "wide")
        tiny_llama(root / "base", hidden_size=64, intermediate_size=128)
        fit(recipe(root, "sft"), root / "junior", progress=False)
        junior = root / "junior" / "model"
    targets = "all-linear" if quantized else ["q_proj", "v_proj"]  # fewer than the junior's
    adapter = {"class_path": "QLoRA" if quantized else "LoRA", "init_args": {"r": 4, "dropout": 0.1, "targets": targets}}
    backbone = {"name": str(root / "base"), "adapters": [str(junior)], "dtype": "bfloat16" if quantized else "float32"}
    model = {"nll_weight": 0.0, "backbone": backbone, "adapter": adapter, "reference": None if quantized else "frozen_adapter"}
    fit(recipe(root, "preference", model=model), tmp_path / "senior", progress=False)
    rows = metrics(tmp_path / "senior")
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-2 if quantized else 1e-6)
    assert rows[-1]["loss"] < rows[0]["loss"] - 1e-2
    saved = load_file(tmp_path / "senior" / "model" / "adapter_model.safetensors")
    trained = torch.load(tmp_path / "senior" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert len(saved) == len(trained)
    assert not any("frozen" in name for name in (*saved, *trained))
    assert Backbone(str(tmp_path / "senior" / "model")).chain()[1] == [junior, tmp_path / "senior" / "model"]

    if not quantized:
        module = DPOModule(Backbone(str(root / "base"), [str(junior)]), LoRA(r=4, targets=targets), TokenContract(), reference="frozen_adapter")
        module.configure_model()
        assert not module.load_state_dict(trained, strict=False).unexpected_keys
        batch = collate.collate_rows(collate.encode_preference(module.tokenizer, module.tokens, preference_rows(4)), 0)
        exported = target_logps(load_folder(tmp_path / "senior" / "model").model, batch)[0]
        assert torch.allclose(target_logps(module.model.eval(), batch)[0], exported, atol=1e-4)
        with module.as_reference():
            assert not torch.allclose(target_logps(module.model, batch)[0], exported, atol=1e-2)


@pytest.mark.parametrize("lora", [True, False])
def test_all_references_train_alike(root: Path, tmp_path: Path, lora: bool) -> None:
    weights = {}
    for reference in ("adapter_off", "copy", "precomputed") if lora else ("copy", "precomputed"):
        config = recipe(root, "preference", lora=lora, model={"reference": reference, "clip": None}, optimizer=SGD)
        fit(config, tmp_path / reference, progress=False)
        weights[reference] = load_file(next((tmp_path / reference / "model").glob("*.safetensors")))
    for reference, found in weights.items():
        for name, weight in weights["copy"].items():
            assert torch.allclose(found[name], weight, atol=1e-5), (reference, name)


def test_what_dpo_refuses(root: Path) -> None:
    backbone = Backbone(str(root / "base"))
    for settings, pattern in (
        ({"reference": "adapter_off"}, "outside the adapter"),
        ({"reference": "adapter_off", "adapter": LoRA(train_embeddings=True)}, "outside the adapter"),
        ({"beta": 0.0}, "one must be above 0"),
        ({"loss": "sigmod"}, "choose among"),
        ({"loss": "tests.losses.nowhere.loss"}, "can't be imported"),
        ({"loss": "tests.helpers.sentence"}, "must be a function of"),
        ({"loss": "hinge", "label_smoothing": 0.1}, "hinge has no label_smoothing; it takes nothing but beta"),
        ({"loss": "simpo", "loss_args": {"gama": 1.0}}, "simpo has no gama; it takes gamma, label_smoothing"),
        ({"loss": "exo", "loss_args": {"label_smoothing": 0.0}}, "can't be computed"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
    ):
        with pytest.raises(UsageError, match=pattern):
            DPOModule(backbone, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_qlora_trains_on_the_cpu(tmp_path: Path, kind: str) -> None:
    root = prepare(tmp_path)
    tiny_llama(tmp_path / "base", hidden_size=64, intermediate_size=128)
    adapter = {"class_path": "QLoRA", "init_args": {"r": 4}}
    backbone = {"name": str(root / "base"), "dtype": "bfloat16", "attention": "bidirectional" if kind == "contrastive" else "causal"}
    fit(recipe(root, kind, model={"adapter": adapter, "backbone": backbone}, trainer={"max_epochs": 6}), tmp_path / "fit", progress=False)
    rows = metrics(tmp_path / "fit")
    assert rows[-2]["loss"] < rows[0]["loss"]
    assert load_folder(tmp_path / "fit" / "model").model is not None


@pytest.mark.parametrize("variant", ["8-bit AdamW", "bf16-mixed", "gradient checkpointing", "embeddings"])
def test_variants_train(root: Path, tmp_path: Path, variant: str) -> None:
    over: dict[str, Any] = {}
    if variant == "8-bit AdamW":
        over["optimizer"] = {"class_path": "AdamW8bit", "init_args": {"lr": 1e-2}}
    elif variant == "bf16-mixed":
        over["trainer"] = {"precision": "bf16-mixed"}
    elif variant == "gradient checkpointing":
        over["model"] = {"backbone": {"name": str(root / "base"), "gradient_checkpointing": True}}
    else:
        over["model"] = {"adapter": {"class_path": "LoRA", "init_args": {"r": 4, "train_embeddings": True}}}
    fit(recipe(root, "sft", **over), tmp_path, progress=False)
    rows = metrics(tmp_path)
    assert rows[-2]["loss"] < rows[0]["loss"]
    loaded = load_folder(tmp_path / "model")
    if variant == "embeddings":
        table = load_file(root / "base" / "model.safetensors")["model.embed_tokens.weight"]
        assert not torch.equal(loaded.model.get_input_embeddings().weight, table)


def test_checkpoints_hold_no_frozen_weights(root: Path, tmp_path: Path) -> None:
    fit(recipe(root, "sft", trainer={"max_epochs": 1}), tmp_path, progress=False)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["state_dict"]
    assert all(".lora_" in name for name in saved["state_dict"])
    assert saved["speedlit"]["tokens"] == TokenContract().to_json()


def test_a_loss_that_is_no_number_stops_the_run_with_step_and_samples(root: Path, tmp_path: Path) -> None:
    config = recipe(root, "sft", optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 1e30}}, model={"clip": None, "schedule": {"kind": "constant"}})
    with pytest.raises(SpeedlitError, match=r"step \d+: .*not changed. Samples of the step: s\d+"):
        fit(config, tmp_path, progress=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_that_is_no_number_stops_the_run_and_poisons_nothing(root: Path, tmp_path: Path, kind: str) -> None:
    """The loss is finite. The message names step, samples and checkpoint; the same command without the fault goes on from there as if nothing had been."""
    straight, spoilt = tmp_path / "straight", tmp_path / "spoilt"
    fit(recipe(root, kind, trainer={"max_epochs": 1}), straight, progress=False)
    callbacks = [{"class_path": "tests.modules.killer.Spoiler", "init_args": {"step": 2}}, {"class_path": "Resume", "init_args": {"every_n_steps": 1}}]
    with pytest.raises(SpeedlitError) as error:
        fit(recipe(root, kind, trainer={"max_epochs": 1, "callbacks": callbacks}), spoilt, progress=False)
    checkpoint = spoilt / "checkpoints" / "last.ckpt"
    assert str(error.value).startswith("step 3: gradient norm nan; the weights were not changed. Samples of the step: ")
    assert f"The last good checkpoint is {checkpoint}" in str(error.value)
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["global_step"] == 2
    assert all(torch.isfinite(weight).all() for weight in saved["state_dict"].values())
    (spoilt / "fit-started.json").write_text((straight / "fit-started.json").read_text())  # the spoiler is not part of the recipe
    assert fit(recipe(root, kind, trainer={"max_epochs": 1}), spoilt, progress=False)["steps"] == 4
    assert (spoilt / "metrics.csv").read_text() == (straight / "metrics.csv").read_text()


def test_an_adapter_that_gets_no_gradient_is_refused(tmp_path: Path) -> None:
    root = prepare(tmp_path)
    place = tiny_llama(tmp_path / "base")
    weights = load_file(place / "model.safetensors")
    weights["model.layers.1.self_attn.o_proj.weight"].zero_()
    from safetensors.torch import save_file

    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    config = recipe(root, "sft", model={"adapter": {"class_path": "LoRA", "init_args": {"r": 4, "targets": ["v_proj"]}}})
    with pytest.raises(SpeedlitError, match=r"after step 1 1 adapters have not moved.*layers\.1\.self_attn\.v_proj"):
        fit(config, tmp_path / "fit", progress=False)


def test_scaled_gradients_are_refused(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning takes 16-mixed for bf16-mixed on a CPU; the trainer is told otherwise."""
    import lightning as L

    monkeypatch.setattr(L.Trainer, "precision", "16-mixed")
    with pytest.raises(UsageError, match=r"trainer\.precision is 16-mixed.*set it to bf16-mixed"):
        fit(recipe(root, "sft"), tmp_path, progress=False)


def test_an_adapter_that_is_not_finite_after_step_1_is_refused(root: Path, tmp_path: Path) -> None:
    config = recipe(root, "sft", optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 1e60}}, model={"clip": None, "schedule": {"kind": "constant"}})
    with pytest.raises(SpeedlitError, match=r"after step 1 0 adapters have not moved and 14 are not finite, such as .*lora_B"):
        fit(config, tmp_path, progress=False)
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_attention_is_probed_on_the_module_that_trains(root: Path, tmp_path: Path) -> None:
    place = tiny_bert(tmp_path / "bert")
    config = recipe(root, "contrastive", model={"backbone": {"name": str(place), "attention": "causal"}})
    with pytest.raises(SpeedlitError, match="attention is causal"):
        fit(config, tmp_path / "fit", progress=False)


def test_all_ranks_look_at_the_adapters_in_the_models_order(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under fsdp each look is a collective; ranks that are no forks of one process order a set differently."""
    seen: list[tuple[list[str], list[str]]] = []
    monkeypatch.setattr(SpeedModule, "check_moved", lambda self: seen.append((list(self._fresh), list(adapter_parameters(self.model)))))
    fit(recipe(root, "sft", trainer={"max_steps": 1}), tmp_path, progress=False)
    assert len(seen[0][0]) == 14 and seen[0][0] == seen[0][1]


def test_trained_and_total_parameters_are_shown(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_said", set())  # the child is a fork of this process, which may have said it
    assert in_child(fit, recipe(root, "sft", trainer={"max_epochs": 1}), tmp_path, progress=False) == 0
    assert "4,096 of 48,288 parameters are trained (8.48%)" in capfd.readouterr().err


def limited(config: dict[str, Any], out: Path, size: int) -> None:
    """A fit whose files may not grow beyond ``size`` bytes, as on a full disk."""
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        fit(config, out, progress=False)
    except SpeedlitError as error:
        (out / "said.txt").write_text(str(error))
        raise


@pytest.mark.parametrize("size", [30_000, 150_000])
def test_a_full_disk_is_said_in_a_sentence_and_the_fit_goes_on_later(root: Path, tmp_path: Path, size: int) -> None:
    """First the checkpoint has no room, then (smaller than a checkpoint, larger than metrics) the model's tokenizer."""
    callbacks = [{"class_path": "Resume", "init_args": {"every_n_steps": 2 if size < 100_000 else None, "every_seconds": None, "at_end": size < 100_000}}]
    config = recipe(root, "sft", lora=size < 100_000, trainer={"callbacks": callbacks})
    assert in_child(limited, config, tmp_path, size) == 3
    assert "cannot write" in (tmp_path / "said.txt").read_text()
    assert not (tmp_path / "model").exists()
    assert fit(config, tmp_path, progress=False)["steps"] == 8
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_an_interrupted_fit_goes_on(root: Path, tmp_path: Path) -> None:
    """Ctrl-C: KeyboardInterrupt reaches the front door, which says how to go on."""
    import lightning as L

    from speedlit.pipeline.recipe import make

    class Press(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 3:
                raise KeyboardInterrupt

    def run() -> None:
        from speedlit.pipeline.fitting import add_callbacks, run_fit

        config = recipe(root, "sft", trainer={"default_root_dir": str(tmp_path)})
        cli = make(config)
        add_callbacks(cli.trainer, False, "fit")
        cli.trainer.callbacks.append(Press())
        with pytest.raises(KeyboardInterrupt):
            run_fit(cli, tmp_path / "none")

    assert in_child(run) == 0


def test_validation_loggers_and_best_checkpoints_of_a_recipe(root: Path, tmp_path: Path) -> None:
    """Lightning's own parts work beside ours: a validation set, ModelCheckpoint on its loss, a logger; one epoch unless told otherwise."""
    best = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"monitor": "val_loss", "dirpath": str(tmp_path / "best")}}
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path / "log")}}
    config = recipe(root, "sft", data={"validation": str(root / "sft")}, trainer={"max_epochs": None, "callbacks": [best], "logger": logger})
    result = fit(config, tmp_path, progress=False)
    assert result["steps"] == 4
    assert 0 < result["final"]["val_loss"] < 10
    assert metrics(tmp_path)[-1]["val_loss"] == pytest.approx(result["final"]["val_loss"], abs=1e-6)
    assert list((tmp_path / "best").glob("*.ckpt"))
    assert "grad_norm" in next((tmp_path / "log").rglob("metrics.csv")).read_text()


def test_a_falling_rate_needs_an_end(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="where the run ends"):
        fit(recipe(root, "sft", trainer={"max_epochs": -1, "max_time": "00:00:00:05"}), tmp_path, progress=False)
