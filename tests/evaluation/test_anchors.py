"""A real encoder gets, through `speedlit evaluate`, the scores that stock mteb and sentence-transformers gave it on every shared set.

In float32 within 0.05 points, in bfloat16 within 0.2. The sets of more than a few seconds run when SPEEDLIT_ANCHORS is set to 1: about
a quarter of an hour on one core for all eight.
"""

import json
import os
import re

import pytest

from speedlit.cli import main

SHORT = {"STSBenchmark", "TRECQuestionClassification"}
SETS = [
    "STSBenchmark", "TRECQuestionClassification", "SNIPSIntentClassification", "StackOverflowTitlesClustering", "Banking77Classification",
    "CLINC150IntentClassification", "CranfieldRetrieval", "SciFact",
]  # fmt: skip


@pytest.fixture(scope="module")
def anchors(evaldata):
    """Task to score, from the table of the folder's README."""
    text = (evaldata / "README.md").read_text(encoding="utf-8")
    found = {name: float(score) for name, score in re.findall(r"^\| (\w+) \| \w+ \| (0\.\d{4}) \|", text, re.M)}
    assert set(found) == set(SETS) == {row["folder"] for row in json.loads((evaldata / "tasks.json").read_text())}
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("dtype", "within"), [("float32", 0.05), ("bfloat16", 0.2)])
@pytest.mark.parametrize("name", SETS)
def test_anchor(name, dtype, within, anchors, minilm, evaldata, capsys):
    if name not in SHORT and os.environ.get("SPEEDLIT_ANCHORS") != "1":
        pytest.skip("a large set: runs with SPEEDLIT_ANCHORS=1")
    words = ["--data", str(evaldata), "--tasks", name, "--pooling", "mean", "--max-length", "256", "--no-instructions", "--dtype", dtype]
    assert main(["evaluate", f"package:{minilm.parent.name}/model", *words]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(name)]
    assert abs(float(line.split()[-1]) - 100 * anchors[name]) <= within, line
