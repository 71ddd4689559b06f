import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from speedlit.cli import main
from speedlit.errors import SpeedlitError, UsageError
from speedlit.evaluation.run import evaluate
from speedlit.evaluation.tasks import load_tasks, split_names

from .conftest import bag_of_words, jsonl


def edit(root, **changes):
    rows = json.loads((root / "tasks.json").read_text())
    rows[0].update(changes)
    (root / "tasks.json").write_text(json.dumps(rows))


def test_every_type_runs_and_scores_sense(sets):
    scores = evaluate(bag_of_words(instruct=False), load_tasks(None, sets))
    assert list(scores) == ["Cls", "Multi", "Clu", "Sts", "Pair", "Bitext", "Sum", "Ret", "Rer"]
    assert scores["Cls"] > 0.7 and scores["Ret"] > 0.8 and scores["Rer"] > 0.8 and scores["Bitext"] > 0.7 and scores["Pair"] > 0.8
    assert scores["Sts"] > 0.4 and scores["Sum"] == pytest.approx(1)


def test_scores_are_repeatable_and_seeds_are_put_back(sets):
    tasks, encoder = load_tasks("Cls,Clu", sets), bag_of_words()
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    expected = torch.rand(3).tolist(), random.random(), np.random.rand()
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    first = evaluate(encoder, tasks)
    load_tasks("Cls", sets)
    assert (torch.rand(3).tolist(), random.random(), np.random.rand()) == expected
    assert evaluate(encoder, tasks) == first == evaluate(encoder, load_tasks("Cls,Clu", sets))


def test_two_labels_may_be_words(sets):
    for split in ("train", "test"):
        jsonl(sets / f"Cls/{split}.jsonl", [{"text": f"{word} it {i}", "label": word} for i in range(10) for word in ("buy", "sell")])
    (task,) = load_tasks("Cls", sets)
    assert task.dataset["test"]["label"][:2] == [0, 1]
    assert 0 <= evaluate(bag_of_words(), [task])["Cls"] <= 1, "mteb's own average precision fails on words"


def test_clustering_uses_all_documents(sets):
    (task,) = load_tasks("Clu", sets)
    assert task.max_fraction_of_documents_to_embed is None and task.max_document_to_embed is None


def test_registered_task_with_a_local_copy_does_not_touch_the_class(sets):
    import mteb

    rows = json.loads((sets / "tasks.json").read_text()) + [{"folder": "Sts", "task": "STSBenchmark"}]
    (sets / "tasks.json").write_text(json.dumps(rows))
    (task,) = load_tasks(["STSBenchmark"], sets)
    assert task.metadata.dataset["path"] == str(sets / "Sts")
    assert mteb.get_task("STSBenchmark").metadata.dataset["path"] == "mteb/stsbenchmark-sts"
    assert "STSBenchmark" in evaluate(bag_of_words(), [task])


def test_changed_data_are_read_even_when_time_and_size_are_the_same(sets):
    import os

    path = sets / "Ret" / "corpus.jsonl"
    before, stat = evaluate(bag_of_words(), load_tasks("Ret", sets)), path.stat()
    path.write_text(path.read_text().replace("cat", "TMP").replace("dog", "cat").replace("TMP", "dog"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    assert evaluate(bag_of_words(), load_tasks("Ret", sets)) != before


def test_readme_header_names_the_parts(sets):
    shutil.move(sets / "Ret" / "corpus.jsonl", sets / "Ret" / "documents.jsonl")
    header = {"configs": [{"config_name": "corpus", "data_files": [{"split": "corpus", "path": "documents.jsonl"}]},
                          {"config_name": "queries", "data_files": [{"split": "queries", "path": "queries.jsonl"}]},
                          {"config_name": "default", "data_files": [{"split": "test", "path": "qrels/test.jsonl"}]}]}  # fmt: skip
    (sets / "Ret" / "README.md").write_text("---\n" + json.dumps(header) + "\n---\nwords\n")
    assert evaluate(bag_of_words(instruct=False), load_tasks("Ret", sets))["Ret"] > 0.8


def test_names():
    assert split_names("A, MTEB(eng, v2),B") == ["A", "MTEB(eng, v2)", "B"]
    assert split_names(None) is None and split_names("") is None


def test_shipped_lists_name_real_tasks(sets):
    from speedlit.evaluation.tasks import _expanded, registered_names, subsets

    assert set(subsets()["quick"]) <= set(registered_names())
    tasks = load_tasks("eng-v1-56")
    assert len({task.metadata.name for task in tasks}) == 56
    assert [task.eval_splits for task in tasks if task.metadata.name == "MSMARCO"] == [["dev"]]
    assert _expanded(["quick", "Ret"], {"quick": {}}) == ["quick", "Ret"]  # a set of one's own comes first
    with pytest.raises(UsageError, match="no task 'quik'.*did you mean quick"):
        load_tasks("quik")


def test_errors_about_names(sets, tmp_path):
    with pytest.raises(UsageError, match="did you mean STSBenchmark"):
        load_tasks("STSBenchmrk")
    with pytest.raises(UsageError, match="there is no task 'Retr' in .*did you mean Ret"):
        load_tasks("Retr", sets)
    with pytest.raises(UsageError, match="no tasks to run"):
        load_tasks()
    with pytest.raises(UsageError, match="does not exist: give a folder"):
        load_tasks(None, tmp_path / "nowhere")
    with pytest.raises(UsageError, match="has no tasks.json"):
        load_tasks(None, tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"type": "Clasification"}, "unknown type 'Clasification'.*did you mean Classification"),
        ({"folder": "Gone"}, "names the folder 'Gone'"),
        ({"colour": 1}, "unknown key 'colour'"),
        ({"task": "SciFact"}, "either `task`"),
        ({"attributes": {"n_experimnts": 1}}, "attribute 'n_experimnts'"),
        ({"allow": ["emtpy"]}, "row of Cls has \"allow\": .'emtpy'.; it is a list of empty and long, for a set of your own"),
        ({"folder": 5}, "\"folder\": 5; it is a text"),
        ({"type": ["STS"]}, "\"type\": .'STS'.; it is a text"),
        ({"name": ""}, "row of Cls has \"name\": ''; it is a text"),
        ({"prompt": 5}, "\"prompt\": 5; it is a text, or an object"),
        ({"prompt": {"passage": "x"}}, "a text for `query` and one for `document`"),
        ({"splits": "test"}, "\"splits\": 'test'; it is a list of names"),
        ({"attributes": []}, "it is an object with attributes"),
        ({"name": "../../Cls"}, "row of Cls has the name '../../Cls', which can't be that of a file of scores"),
        ({"name": "Ret"}, "two rows of the name 'Ret': take one out, or give it another `name`"),
    ],
)
def test_errors_in_the_list(sets, changes, words):
    edit(sets, **changes)
    with pytest.raises(UsageError, match=words):
        load_tasks(None, sets)


def test_errors_in_the_data(sets):
    jsonl(sets / "Cls" / "test.jsonl", [{"text": "cat red", "tag": "cat"}])
    with pytest.raises(UsageError, match="test.jsonl lacks the column 'label'.*it has: text, tag"):
        load_tasks("Cls", sets)
    jsonl(sets / "Cls" / "test.jsonl", [{"text": "cat red", "label": "cat"}, {"text": None, "label": "dog"}])
    with pytest.raises(UsageError, match="no value for 'text'"):
        load_tasks("Cls", sets)
    (sets / "Cls" / "train.jsonl").unlink()
    with pytest.raises(UsageError, match="has no train.jsonl"):
        load_tasks("Cls", sets)
    jsonl(sets / "Ret" / "queries.jsonl", [{"_id": "q0", "text": "where cat"}])
    with pytest.raises(UsageError, match="judgements name the query 'q1'"):
        load_tasks("Ret", sets)
    (sets / "Ret" / "qrels" / "test.jsonl").unlink()
    with pytest.raises(UsageError, match="has no qrels/test.jsonl"):
        load_tasks("Ret", sets)
    (sets / "Sts" / "test.jsonl").write_text("{not json\n")
    with pytest.raises(UsageError, match="test.jsonl:1 is not valid JSON"):
        load_tasks("Sts", sets)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sentence1": 5}, "'sentence1' holds int64, not texts"),
        ({"sentence2": " "}, "every text of the column 'sentence2' is empty"),
        ({"score": "high"}, "'score' holds texts"),
    ],
)
def test_columns_that_hold_something_else(sets, changes, words):
    jsonl(sets / "Sts" / "test.jsonl", [{"sentence1": "cat", "sentence2": "dog", "score": 1.0, **changes}] * 4)
    with pytest.raises(UsageError, match=words):
        load_tasks("Sts", sets)


@pytest.mark.parametrize(
    ("path", "changes", "words"),
    [
        ("Cls/train.jsonl", {"text": ""}, "Cls/train.jsonl, row 3: the text in the column 'text' is empty; write one, take the row out, or put"),
        ("Clu/test.jsonl", {"sentences": " \n"}, "Clu/test.jsonl, row 3: the text in the column 'sentences' is empty"),
        ("Sts/test.jsonl", {"sentence2": ""}, "Sts/test.jsonl, row 3: the text in the column 'sentence2' is empty"),
        ("Sum/test.jsonl", {"machine_summaries": ["cat", "", "dog"]}, "Sum/test.jsonl, row 2: the text in the column 'machine_summaries' is empty"),
        ("Ret/queries.jsonl", {"text": None}, "Ret/queries.jsonl, row 3: the text in the column 'text' is empty"),
        ("Rer/corpus.jsonl", {"text": "", "title": " "}, "Rer/corpus.jsonl, row 3: .* is empty.*put \"allow\": .\"empty\". into the set's row of tasks.json"),
    ],
)
def test_an_empty_text_in_a_set_of_ones_own_is_named_by_file_row_and_column(sets, path, changes, words):
    name = path.split("/")[0]
    change_row(sets / path, 1 if name == "Sum" else 2, **changes)
    with pytest.raises(UsageError, match=words):
        load_tasks(name, sets)
    if name != "Sum":  # one of whose texts' means is no number then
        allow(sets, name, ["empty"])
        assert list(evaluate(bag_of_words(), load_tasks(name, sets))) == [name]


def test_a_document_with_a_title_alone_is_not_empty(sets):
    change_row(sets / "Ret" / "corpus.jsonl", 2, title="cat red", text="")
    assert load_tasks("Ret", sets)


@pytest.mark.parametrize("path", ["Sts/test.jsonl", "Ret/corpus.jsonl"])
def test_a_text_that_a_model_would_cut_to_a_fraction_is_told_with_what_is_read_of_it(sets, path, minilm, capsys):
    name, column = path.split("/")[0], "sentence1" if path.startswith("Sts") else "text"
    change_row(sets / path, 2, **{column: "cat red " * 12_500})
    words = ["evaluate", f"package:{minilm.parent.name}/model", "--data", str(sets), "--tasks", name, "--pooling", "mean"]
    assert main([*words, "--max-length", "64"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{path}, row 3: the text in the column '{column}' has 100,00" in error
    assert "(25,000 tokens), of which the model would read 64 tokens, about the first 256 characters; cut or split it, or put" in error
    with pytest.raises(SpeedlitError, match=f"task {name} failed: .*row 3"):  # as the callback meets it
        evaluate(bag_of_words(), load_tasks(name, sets))
    far = bag_of_words()
    far.tokens = replace(far.tokens, max_length=30_000)
    assert list(evaluate(far, load_tasks(name, sets))) == [name], "a model that reads all of it has nothing against it"
    allow(sets, name, ["long"])
    assert main([*words, "--max-length", "64"]) == 0


def test_published_sets_are_scored_with_the_empty_and_long_texts_they_have(sets):
    change_row(sets / "Sts" / "test.jsonl", 2, sentence1="", sentence2="cat red " * 12_500)
    (sets / "tasks.json").write_text(json.dumps([{"folder": "Sts", "task": "STSBenchmark"}]))
    assert list(evaluate(bag_of_words(), load_tasks(None, sets))) == ["STSBenchmark"]


def change_row(path, number, **changes):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[number].update(changes)
    jsonl(path, rows)


def allow(root, name, what):
    rows = json.loads((root / "tasks.json").read_text())
    (root / "tasks.json").write_text(json.dumps([{**row, "allow": what} if row["folder"] == name else row for row in rows]))


def test_a_score_that_is_no_number_is_a_failure(sets):
    jsonl(sets / "Sts" / "test.jsonl", [{"sentence1": "cat", "sentence2": "cat", "score": 1.0 + i} for i in range(4)])
    with pytest.raises(SpeedlitError, match="task Sts failed: its score is no number"):
        evaluate(bag_of_words(), load_tasks("Sts", sets))


def test_a_failing_task_is_an_error_or_reported(sets):
    tasks = load_tasks("Cls,Sts", sets)
    tasks[0].samples_per_label = "many"
    encoder = bag_of_words()
    with pytest.raises(SpeedlitError, match="task Cls failed"):
        evaluate(encoder, tasks)
    reasons = {}
    scores = evaluate(encoder, tasks, failed=reasons.__setitem__)
    assert list(scores) == ["Sts"] and list(reasons) == ["Cls"]


def test_results_in_mtebs_layout_are_resumed_by_revision(sets, tmp_path):
    from mteb.results import TaskResult

    out, tasks = tmp_path / "out", load_tasks("Sts", sets)
    first = evaluate(bag_of_words(0), tasks, output=out)
    path = out / "results" / "tests__bag" / "seed-0" / "Sts.json"
    assert TaskResult.from_disk(path).get_score() == pytest.approx(first["Sts"], abs=1e-6)
    assert (path.parent / "model_meta.json").is_file()
    broken = bag_of_words(0)
    broken.embed = None  # never called: the result is there
    assert evaluate(broken, tasks, output=out)["Sts"] == pytest.approx(first["Sts"], abs=1e-6)
    assert evaluate(bag_of_words(1), tasks, output=out) != first
