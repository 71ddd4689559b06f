"""The page without a browser: it stands alone, it escapes, and its figures are those of the run and of the paper."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from speedlit.errors import UsageError
from speedlit.report.curves import curves
from speedlit.report.page import page
from speedlit.report.published import CATEGORIES, TABLE_1, TABLE_8
from speedlit.report.scaling import scaling
from speedlit.report.scores import scores
from tests.report.making import make_run, make_summary

EVIL = '<script>hacked()</script>&"'


def test_the_page_stands_alone_and_escapes(tmp_path: Path) -> None:
    (tmp_path / "junior").mkdir()
    (tmp_path / "junior" / "metrics.csv").write_text("step,loss\n1,2.5\n2,1.25\n3,\n4,nan\n")
    summary = make_summary(answers={EVIL: {"strict": 3}})
    text = page(EVIL, summary, {"junior": tmp_path / "junior", **make_run(tmp_path, said=EVIL)}, tmp_path)
    assert "http" not in text.replace("http-equiv", "") and "default-src 'none'" in text
    assert EVIL not in text and text.count("<script") == text.count("</script>")
    assert not re.findall(r"<(?:link|img|iframe|object)\b|\bsrc=|@import", text)
    twice = [name for name, count in Counter(re.findall(r'\bid="([^"]+)"', text)).items() if count > 1]
    assert not twice, "an id that stands twice sends links and clip paths astray"
    targets = set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text))
    assert targets <= set(re.findall(r'\bid="([^"]+)"', text))


def test_the_loop_shows_counts_and_costs_and_the_gates_their_alarms() -> None:
    text = page("x", make_summary())
    for words in (">24 topics<", ">720 tasks<", ">120 calls<", ">10.8K tokens<", ">600 records<", ">42K tokens<"):
        assert text.count(words) == 2, f"{words}: once for wide screens, once for narrow"
    assert text.count('class="stage training open"') == 8, "four stages that train a model, none of them finished"
    assert len(re.findall(r'class="stage teacher"><rect[^>]*/><text[^>]*>seed</text><g class="alarms"><circle[^>]*/><text[^>]*>1</text>', text)) == 2
    assert text.count('class="alarms"><circle') == 2, "no other stage has an alarm"
    assert "1 alarm of 1 measure" in text and "label_leak</strong>: labels are spelled out in their texts. Level: at most 0.02. Found: 0.4 (seed)" in text
    assert '<td class="alarm">0.4 !</td>' in text and '<td class="alarm">0' not in text.replace("0.4 !", "")


def test_curves_leave_out_what_is_no_number_and_compare_the_control(tmp_path: Path) -> None:
    (tmp_path / "control").mkdir()
    (tmp_path / "metrics.csv").write_text("step,loss,preference,accuracy\n" + "".join(f"{i},9,{1 / i},nan\n" for i in range(1, 400)))
    (tmp_path / "control" / "metrics.csv").write_text("step,loss,nll\n1,2,0.5\n2,2,0.25\n")
    text = curves({"senior": tmp_path})
    assert "senior: preference loss" in text and "preference loss. senior: from 1 to 0.00251 in 399 steps" in text
    assert "senior: loss<" not in text and "right order" not in text, "the sum of two parts is not drawn, nor a measure without a finite value"
    assert "control: from 0.5 to 0.25 in 2 steps" in text and "var(--series-1)" in text and "#0303" not in text


def test_a_damaged_file_of_curves_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,loss\n1,2.5\n2,torn\n")
    with pytest.raises(UsageError, match=r"metrics.csv:3 has no number under step or loss; remove the file"):
        curves({"junior": tmp_path})


def test_the_published_data_sets_give_the_published_categories() -> None:
    assert Counter(category for category, *_ in TABLE_8.values()) == dict(zip(CATEGORIES, (12, 11, 3, 4, 15, 10, 1), strict=True))
    for place, (setting, rows) in enumerate(TABLE_1.items()):
        printed = next(values for model, _, values in rows if model == "SPEED")
        for category, value in zip(CATEGORIES, printed, strict=False):
            own = [row[1 + place] for row in TABLE_8.values() if row[0] == category]
            assert sum(own) / len(own) == pytest.approx(value, abs=0.0501), f"{setting}, {category}"
        assert sum(row[1 + place] for row in TABLE_8.values()) / 56 == pytest.approx(printed[-1], abs=0.0501)


def test_scores_stand_beside_the_paper_by_category(tmp_path: Path) -> None:
    (tmp_path / "tasks.json").write_text(json.dumps([{"folder": "Mine", "type": "Retrieval"}]))
    models = {"untrained": {"Mine": 0.2, "STS12": 0.4}, "embedder": {"Mine": 0.3, "STS12": 0.5}}
    text = scores({"tasks": ["Mine", "STS12"], "models": models, "sources": {}}, tmp_path)
    assert "scored on 2, of which 1 are among them. Rows over different tasks are not to be compared" in text
    row = re.search(r'<th scope="row">embedder</th><td>2 tasks</td>(.*?)</tr>', text)
    assert row and re.findall(r"<td>(.*?)</td>", row[1]) == ["", "", "", "", "30.0", "50.0", "", "40.0"]
    assert '<th scope="row">STS12</th><td>STS</td><td>40.0</td><td>50.0</td><td>77.7</td><td>80.2</td>' in text


def test_the_scaling_plot_is_there_when_the_study_is(tmp_path: Path) -> None:
    assert scaling(tmp_path) == ""
    path = tmp_path / "study" / "scaling" / "summary.json"
    path.parent.mkdir(parents=True)
    cells = [{"n": n, "seed": s, "score": 10 + 2 * i + s / 10} for i, n in enumerate((100, 1000, 10000)) for s in range(2)]
    path.write_text(json.dumps({"cells": cells, "a": 6.05, "b": 2.0, "interval": [1.9, 2.1], "r2": 0.999, "p_curvature": 0.7}))
    assert "score = 6.05 + 2 [1.9, 2.1] (95 %) x log10 N; R2 = 0.999, curvature p = 0.7" in scaling(tmp_path)
    path.write_text(json.dumps({"cells": [{"n": 1}], "a": 1, "b": 1, "interval": None, "r2": None, "p_curvature": None}))
    with pytest.raises(UsageError, match=r"summary.json is damaged \(cells holds no list of sizes"):
        scaling(tmp_path)
    law = {"cells": cells, "a": 6.05, "b": 2.0, "interval": [1.9, 2.1], "r2": 0.999, "p_curvature": 0.7}
    for wrong in ({"a": None}, {"b": float("nan")}, {"interval": [1.9]}, {"interval": ["1", "2"]}, {"interval": 3}, {"r2": "good"}):
        path.write_text(json.dumps({**law, **wrong}))
        with pytest.raises(UsageError, match=r"summary.json is damaged \(a, b, interval, r2 or p_curvature is no number\)"):
            scaling(tmp_path)
    for cell in ({"n": "100", "score": 1.0}, {"n": 100, "score": None}, {"n": 100, "score": float("nan")}):
        path.write_text(json.dumps({**law, "cells": [*cells, cell]}))
        with pytest.raises(UsageError, match=r"summary.json is damaged \(cells holds no list of sizes"):
            scaling(tmp_path)
    path.write_text(json.dumps({"cells": cells}))
    with pytest.raises(UsageError, match=r"summary.json is damaged \(no JSON object with cells, a, b"):
        scaling(tmp_path)
