"""The texts of evaluation tasks: all of the evaluation splits, no labels, and a plain word where they cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from speedlit.errors import UsageError
from speedlit.evaluation.tasks import load_tasks
from speedlit.evaluation.texts import evaluation_texts, texts_of
from tests.evaluation.conftest import jsonl


def test_all_texts_of_every_kind_of_task_and_nothing_else(sets: Path) -> None:
    jsonl(sets / "Cls" / "train.jsonl", [{"text": "only for training", "label": "cat"}, {"text": "the dog", "label": "dog"}])
    found = {task.metadata.name: set(texts_of(task)) for task in load_tasks(None, sets)}
    assert "cat red the" in found["Cls"] and not found["Cls"] & {"cat", "dog", "only for training"}
    assert "cat red the" in found["Clu"] and "cat" not in found["Clu"]
    assert {"cat red", "cat green"} <= found["Sts"] and {"cat red", "the cat red"} <= found["Bitext"] and "cat red" in found["Pair"]
    assert {"the cat is red", "cat blue", "fish where"} <= found["Sum"]
    for name in ("Ret", "Rer"):
        assert {"where cat", "dog blue"} <= found[name] and not found[name] & {"d1", "q1"}


def test_tasks_of_a_local_folder_are_not_loaded_and_others_cannot_be_had_offline(sets: Path) -> None:
    assert list(evaluation_texts(["Sts", "Ret"], sets)) == []
    with pytest.raises(UsageError, match="texts of the evaluation task STS12 cannot be had .*evaluation.data.*filters.ngram: null"):
        list(evaluation_texts(["Sts", "STS12"], sets))
    with pytest.raises(UsageError, match="no task 'STS1O'"):
        list(evaluation_texts(["STS1O"]))
