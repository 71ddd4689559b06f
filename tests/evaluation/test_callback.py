import csv
import json

import lightning as L
import pytest
import torch

from speedlit.callbacks.mteb import MTEB
from speedlit.data.shards import write_shards
from speedlit.errors import UsageError
from speedlit.pipeline.fitting import fit
from tests.helpers import contrastive_rows, tiny_bert, tiny_llama
from tests.modules.recipes import in_ranks

SCORE = "speedlit.callbacks.mteb.MTEB"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit")
    write_shards(contrastive_rows(48), folder / "data", "contrastive")
    tiny_bert(folder / "bert")
    tiny_llama(folder / "llama")
    return folder


def recipe(made, *callbacks, steps=6, base="bert", **tokens):
    return {
        "seed_everything": 3, "threads": 1,
        "model": {"class_path": "EmbeddingModule", "init_args": {
            "backbone": {"name": str(made / base), "attention": "bidirectional"}, "adapter": {"class_path": "LoRA", "init_args": {"r": 2, "dropout": 0.1}},
            "tokens": {"pooling": "mean", "max_length": 64, **tokens}, "optimizer": {"class_path": "AdamW", "init_args": {"lr": 0.01}},
        }},
        "data": {"class_path": "ContrastiveData", "init_args": {"shards": str(made / "data"), "batch_size": 8}},
        "trainer": {"max_steps": steps, "callbacks": list(callbacks)},
    }  # fmt: skip


def scorer(**arguments):
    return {"class_path": SCORE, "init_args": arguments}


def losses(out):
    with (out / "metrics.csv").open() as stream:
        return [(row["loss"], row["grad_norm"]) for row in csv.DictReader(stream) if row["loss"]]


@pytest.mark.slow
@pytest.mark.parametrize("base", ["bert", "llama"])
def test_the_loss_trace_is_the_same_with_and_without(made, sets, tmp_path, capsys, base):
    plain = fit(recipe(made, base=base), tmp_path / "plain", progress=False)
    watched = fit(recipe(made, scorer(tasks=["Ret", "Cls"], data=str(sets), every_n_steps=2), base=base), tmp_path / "watched", progress=False)
    assert len(losses(tmp_path / "plain")) == 6
    assert losses(tmp_path / "plain") == losses(tmp_path / "watched")
    looks = [json.loads(line) for line in (tmp_path / "watched" / "mteb.jsonl").read_text().splitlines()]
    assert [look["step"] for look in looks] == [0, 2, 4, 6]  # the end is step 6: once
    assert all(set(look["scores"]) == {"Ret", "Cls"} and 0 < look["share"] <= 1 for look in looks)
    assert len({look["scores"]["Ret"] for look in looks}) > 1  # it is the live module that is scored
    last = looks[-1]["scores"]
    assert watched["final"]["mteb/Ret"] == pytest.approx(last["Ret"], abs=1e-6)
    assert watched["final"]["mteb/mean"] == pytest.approx((last["Ret"] + last["Cls"]) / 2, abs=1e-6)
    assert "mteb/Ret" not in plain["final"]
    with (tmp_path / "watched" / "metrics.csv").open() as stream:
        kept = {int(row["step"]): float(row["mteb/mean"]) for row in csv.DictReader(stream) if row["mteb/mean"]}
    assert kept[0] == pytest.approx(sum(looks[0]["scores"].values()) / 2, abs=1e-6) and kept[6] == pytest.approx(watched["final"]["mteb/mean"], abs=1e-6)
    assert "of the time so far" in capsys.readouterr().err


@pytest.mark.slow
def test_the_score_of_the_callback_is_that_of_the_saved_folder(made, sets, tmp_path):
    from speedlit.evaluation.run import evaluate_folder

    done = fit(recipe(made, scorer(data=str(sets), tasks="Ret,Clu", at_start=False)), tmp_path / "out", progress=False)
    again = evaluate_folder(done["model"], "Ret,Clu", str(sets), progress=False)
    assert {f"mteb/{k}": pytest.approx(v, abs=1e-4) for k, v in again.items()} == {k: done["final"][k] for k in ("mteb/Ret", "mteb/Clu")}


@pytest.mark.slow
def test_another_run_of_the_same_name_does_not_get_the_old_scores(made, sets, tmp_path):
    found = []
    for seed in (1, 2):
        watched = recipe(made, scorer(data=str(sets), tasks="Ret", output=str(tmp_path / "results"), at_start=False), steps=2)
        watched["model"]["init_args"]["optimizer"]["init_args"]["lr"] = 1e-2 * seed
        found.append(fit(watched, tmp_path / str(seed) / "run", progress=False)["final"]["mteb/Ret"])
    assert found[0] != found[1]
    assert len(list((tmp_path / "results").rglob("step-2/Ret.json"))) == 1


@pytest.mark.slow
def test_a_failing_task_does_not_stop_the_training(made, sets, tmp_path, capsys, monkeypatch):
    from mteb.abstasks import AbsTaskSTS

    def broken(*args, **kwargs):
        raise RuntimeError("the data are cursed")

    monkeypatch.setattr(AbsTaskSTS, "_evaluate_subset", broken)
    done = fit(recipe(made, scorer(tasks=["Sts", "Ret"], data=str(sets)), steps=2), tmp_path / "out", progress=False)
    assert done["steps"] == 2 and "mteb/Ret" in done["final"] and "mteb/Sts" not in done["final"]
    assert "Sts failed: the data are cursed; training goes on" in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkpoint_can_follow_a_score(made, sets, tmp_path):
    best = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {
        "dirpath": str(tmp_path / "best"), "monitor": "mteb/Ret", "mode": "max", "every_n_train_steps": 2, "save_top_k": 1, "filename": "{step}"}}  # fmt: skip
    watched = recipe(made, scorer(tasks=["Ret"], data=str(sets), every_n_steps=2), best, steps=4)
    watched["trainer"]["enable_checkpointing"] = True
    fit(watched, tmp_path / "out", progress=False)
    looks = [json.loads(line) for line in (tmp_path / "out" / "mteb.jsonl").read_text().splitlines()][1:]
    top = max(looks, key=lambda look: look["scores"]["Ret"])
    assert [path.name for path in (tmp_path / "best").glob("*.ckpt")] == [f"step={top['step']}.ckpt"]


@pytest.mark.slow
def test_a_mean_that_rises_no_more_stops_the_training(made, sets, tmp_path):
    stop = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {
        "monitor": "mteb/mean", "mode": "max", "patience": 1, "min_delta": 1e-3, "check_on_train_epoch_end": True}}  # fmt: skip
    watched = recipe(made, scorer(tasks=["Ret", "Sts"], data=str(sets), every_n_steps=6), stop, steps=30)
    watched["model"]["init_args"]["optimizer"]["init_args"]["lr"] = 1e-9
    assert fit(watched, tmp_path / "out", progress=False)["steps"] == 12  # the second epoch's mean is the first one's


def fit_both(plain, watched, out):
    fit(plain, out / "plain", progress=False)
    fit(watched, out / "watched", progress=False)


@pytest.mark.slow
def test_sharded_weights_are_scored_by_all_ranks_and_trained_as_without(made, sets, tmp_path):
    task = scorer(tasks=["Ret", "Sts"], data=str(sets), every_n_steps=2)
    fit(recipe(made, task, steps=1, base="llama"), tmp_path / "one", progress=False)
    both = recipe(made, steps=4, base="llama"), recipe(made, task, steps=4, base="llama")
    for one in both:
        one["trainer"] |= {"devices": 2, "strategy": "fsdp"}
    assert in_ranks(2, fit_both, *both, tmp_path) == [0, 0]
    assert len(losses(tmp_path / "plain")) == 4 and losses(tmp_path / "plain") == losses(tmp_path / "watched")
    looks = [json.loads(line) for line in (tmp_path / "watched" / "mteb.jsonl").read_text().splitlines()]
    alone = json.loads((tmp_path / "one" / "mteb.jsonl").read_text().splitlines()[0])
    assert [look["step"] for look in looks] == [0, 2, 4] and not any(look["failures"] for look in looks)
    assert looks[0]["scores"] == pytest.approx(alone["scores"], abs=1e-4)  # the same untrained weights
    assert looks[2]["scores"] != looks[0]["scores"]


def test_mistakes_show_before_training(made, sets, tmp_path):
    with pytest.raises(UsageError, match="nothing to run"):
        MTEB()
    with pytest.raises(UsageError, match="every_n_steps is 0"):
        MTEB(tasks=["X"], every_n_steps=0)
    with pytest.raises(UsageError, match="there is no task 'Rett'"):
        fit(recipe(made, scorer(tasks=["Rett"], data=str(sets))), tmp_path / "out", progress=False)


def test_a_module_without_vectors_is_refused(sets):
    class Plain(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch, index):
            return self.layer(batch).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = L.Trainer(max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
                        callbacks=[MTEB(tasks=["Ret"], data=str(sets))])  # fmt: skip
    with pytest.raises(UsageError, match="not Plain"):
        trainer.fit(Plain(), torch.utils.data.DataLoader(torch.ones(4, 1)))
