"""The run config: every mistake is told with its key and a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from speedlit.errors import UsageError
from speedlit.pipeline.configure import parse
from speedlit.pipeline.yamlfiles import RECIPES, find_recipe, fit_recipe, merge, read_yaml, shipped


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return str(path)


LOOPS = [name for name in shipped() if "/" not in name]


@pytest.mark.parametrize("name", LOOPS)
def test_every_shipped_loop_parses_with_the_real_parser(name: str) -> None:
    config = parse(name)
    assert config.name
    for training in ("junior", "senior", "revisor", "embedder"):
        recipe = fit_recipe(config.plain()[training])
        assert recipe["model"]["class_path"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: x\nsed: 1\n", ["unknown key `sed`", "did you mean `seed`"]),
        ("counts: {sede: 3}\n", ["counts.sede", "counts.seed"]),
        ("counts: {seed: many}\n", ["counts.seed", "int"]),
        ("counts: {seed: 0}\ntasks: {test: 2}\n", ["counts.seed is 0", "tasks.test is 2"]),
        ("revision: half\n", ["revision", "full or edits"]),
        ("comparison: {sources: [juniors]}\n", ["juniors", "junior"]),
        ("teacher: {embedded: {writer_nois: 1}}\n", ["teacher.embedded.writer_nois", "teacher.embedded.writer_noise"]),
        ("teacher: {embedded: {writer_noise: loud}}\n", ["teacher.embedded.writer_noise is loud; expected float"]),
        ("threads: many\n", ["threads is many; expected int"]),
        ("sampling: 3\nfilters:\n", ["sampling is 3; expected keys and values", "filters is None; expected keys"]),
        ("filters: {ngram: 0, minhash_threshold: 1.5}\n", ["filters.ngram is 0", "filters.minhash_threshold is 1.5"]),
        ("teacher: {base_url: 'https://me:secret@host/v1', requests_per_minute: 0}\n", ["keys stand in OPENAI_API_KEY", "teacher.requests_per_minute is 0"]),
        ("teacher: {base_url: 'host:8000/v1', timeout: -1}\n", ["'host:8000/v1' is no address", "teacher.timeout is -1"]),
        ("budget: {usd: 5}\n", ["budget.usd needs a price", "gpt-4o-2024-05-13", "per million tokens"]),
        ("budget: {calls: -1}\nplan: {devices: 0, kept: 1.5}\n", ["budget.calls is -1", "plan.devices is 0", "plan.kept is 1.5"]),
        ("prices: {m: {input: 1, output: -2}}\n", ["prices.m.output is -2"]),
        ("budget: {dollars: 5}\n", ["budget.dollars", "usd"]),
        ("counts: {seed: null}\ncomparison: {sources: null}\n", ["counts.seed is null", "comparison.sources is null"]),
        ("teacher: {timeout: .nan, temperature: -1}\nplan: {tflops: .inf}\n", ["teacher.timeout is nan", "teacher.temperature is -1", "plan.tflops is inf"]),
        ("counts: {seed: 1000000000000000000000}\nseed: -1\n", ["counts.seed is 1e+21; it must be at most", "seed is -1"]),
        ("sampling: {top_p: 2, dtype: abc}\nbase: ''\n", ["sampling.top_p is 2", "choose float32 or bfloat16", "base is empty"]),
        ("prices: {m: {input: .nan, output: 1}}\nquality: {dropped: .nan}\n", ["prices.m.input is nan", "quality.dropped is nan"]),
        ("a: [1\n", ["not valid YAML", ":2"]),
        ("counts: {seed: 1}\ncounts: {root: 1}\n", [":2:1", "key `counts` stands there twice"]),
        ("", ["holds nothing"]),
        ("- 1\n", ["list"]),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, said: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse(write(tmp_path, text))
    for part in said:
        assert part in str(caught.value)


def test_overrides_win_and_are_checked(tmp_path: Path) -> None:
    path = write(tmp_path, "counts: {seed: 5}\n")
    assert parse(path, ["--counts.seed", "7"]).counts.seed == 7
    assert parse(path, ["--counts.seed=8", "--topics.file", "t.txt"]).topics.file == "t.txt"
    with pytest.raises(UsageError, match=r"counts\.sed.*did you mean `counts\.seed`"):
        parse(path, ["--counts.sed", "7"])


def test_deep_keys_below_set_arrive_nested(tmp_path: Path) -> None:
    config = parse(write(tmp_path, "name: x\n"), ["--junior.set.model.init_args.clip", "2", "--junior.set.trainer.max_steps", "3"])
    assert config.junior.set == {"model": {"init_args": {"clip": 2}}, "trainer": {"max_steps": 3}}


def test_a_missing_recipe_names_its_neighbours() -> None:
    with pytest.raises(UsageError, match="demo"):
        find_recipe("dmo")
    assert find_recipe("demo") == RECIPES / "demo.yaml"


def test_merge_replaces_a_block_of_another_class() -> None:
    base = {"model": {"class_path": "A", "init_args": {"x": 1}}, "k": {"a": 1}}
    assert merge(base, {"k": {"b": 2}})["k"] == {"a": 1, "b": 2}
    assert merge(base, {"model": {"class_path": "B"}})["model"] == {"class_path": "B"}
    assert merge(base, {"model": {"init_args": {"y": 2}}})["model"]["init_args"] == {"x": 1, "y": 2}


def test_unreadable_yaml(tmp_path: Path) -> None:
    bad = tmp_path / "b.yaml"
    bad.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"b\.yaml"):
        read_yaml(bad)
