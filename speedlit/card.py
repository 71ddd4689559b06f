"""The model card of an export: how to load it so that it scores the same, and where it comes from.

The header is the hub's YAML: licence, base, tags, and the scores as mteb's leaderboard reads them. Lineage, recipe and cost come
from the run that the model lies in (``run.json``, ``summary.json``) and from its fit (``fit.json``), where there are any; nothing is guessed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from speedlit import __version__
from speedlit.data.tokens import TokenContract
from speedlit.errors import UsageError
from speedlit.files import read_json

USE = {
    "adapter": """from peft import PeftModel
from transformers import AutoConfig, {auto}
config = AutoConfig.from_pretrained("{base}"){switch}
model = PeftModel.from_pretrained({auto}.from_pretrained("{base}", config=config), "THIS_FOLDER")""",
    "merged": """from transformers import {auto}, AutoTokenizer
model, tokenizer = {auto}.from_pretrained("THIS_FOLDER"), AutoTokenizer.from_pretrained("THIS_FOLDER")""",
    "sentence-transformers": """from sentence_transformers import SentenceTransformer
model = SentenceTransformer("THIS_FOLDER")
queries = model.encode(["..."], prompt="{query}")  # put your task's instruction in place of the general one
documents = model.encode(["..."])""",
    "onnx": """import onnxruntime
from transformers import AutoTokenizer
tokenizer, session = AutoTokenizer.from_pretrained("THIS_FOLDER"), onnxruntime.InferenceSession("THIS_FOLDER/model.onnx")
batch = tokenizer(["..."], padding=True, truncation=True, return_tensors="np")
vectors = session.run(["sentence_embedding"], dict(batch))[0]  # finished; queries need their prompt in front""",
}


LIBRARY = {"adapter": "peft", "merged": "transformers", "sentence-transformers": "sentence-transformers", "onnx": "onnx"}
SCORES = "results"  # what mteb calls the folder below an output folder


def write_card(
    target: Path, form: str, source: Path, lowest: float, decoder: bool, licence: str | None = None, results: Path | None = None
) -> None:
    """Write ``target/README.md``.

    Args:
        target: the export.
        form: its format.
        source: the model folder that was exported.
        lowest: smallest cosine of the comparison.
        decoder: whether the network is a decoder.
        licence: as the hub writes it; None leaves it out.
        results: folder that ``speedlit evaluate --output`` wrote; None takes those of the run.

    Raises:
        UsageError: ``results`` holds none of this model.
    """
    info = read_json(source / "speedlit.json")
    run = run_of(source)
    scores = list(found_scores(source, results, run))
    if results is not None and not scores:
        raise UsageError(f"{results} holds no scores of the model in {source} as it is now: run `speedlit evaluate {source} --output {results}` first")
    header = yaml.safe_dump(_header(form, info, licence, scores), sort_keys=False, allow_unicode=True)
    parts = [_use(form, info, decoder, lowest, target), _scores(scores), _lineage(source, info, run), _recipe(source, run), _costs(run)]
    text = f"---\n{header}---\n\n" + "\n".join(part for part in parts if part)
    (target / "README.md").write_text(text, encoding="utf-8")


def run_of(source: Path) -> Path | None:
    """The root of the run that a model folder lies in."""
    return next((folder for folder in source.resolve().parents if (folder / "run.json").is_file() and (folder / "summary.json").is_file()), None)


def found_scores(source: Path, results: Path | None, run: Path | None) -> Iterator[dict[str, Any]]:
    """mteb's own results of exactly these weights: they are filed under the hash of the model's files."""
    from speedlit.evaluation.folders import folder_hash

    places = [results] if results is not None else sorted(run.glob("stages/*-evaluation")) if run else []
    files = {path.name: path for place in places for path in sorted(place.glob(f"**/{SCORES}/*/{folder_hash(source)}/*.json"))}
    for name in sorted(files):
        if name != "model_meta.json":
            yield read_json(files[name])


# -- parts ------------------------------------------------------------------------------------------------------------


def _header(form: str, info: Mapping[str, Any], licence: str | None, scores: list[dict[str, Any]]) -> dict[str, Any]:
    embeds, base = info.get("role") == "embedder", str(info["base"])
    name = base if "/" in base and not base.startswith(".") and ":" not in base else None
    relation = "adapter" if form == "adapter" else "merge" if info.get("merged") else "finetune"
    header: dict[str, Any] = {
        "license": licence, "library_name": LIBRARY[form], "pipeline_tag": "sentence-similarity" if embeds else "text-generation", "language": None,
        "base_model": name, "base_model_relation": relation if name else None,
        "tags": ["speedlit", "synthetic-data", *(["onnx" if form == "onnx" else "sentence-transformers", "feature-extraction", "mteb"] if embeds else [])],
    }  # fmt: skip
    if scores:
        header["model-index"] = [{"name": "speedlit", "results": [row for found in scores for row in _index(found)]}]
    return {key: value for key, value in header.items() if value is not None}


def _index(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One result of mteb in the words of a model index."""
    kind, path, metric = _known_task(found["task_name"])
    for split, parts in found["scores"].items():
        for part in parts:
            subset = part.get("hf_subset", "default")
            dataset = {"name": f"MTEB {found['task_name']} ({subset})", "type": path, "config": subset, "split": split, "revision": found["dataset_revision"]}
            value = round(100 * float(part["main_score"]), 3)
            yield {"task": {"type": kind}, "dataset": dataset, "metrics": [{"type": metric, "value": value}, {"type": "main_score", "value": value}]}


def _known_task(name: str) -> tuple[str, str, str]:
    """Type, dataset and main metric of a task; of one that mteb does not know, what can be said."""
    from speedlit.evaluation.tasks import registered_names

    if name not in registered_names():
        return "feature-extraction", name, "main_score"
    import mteb

    from speedlit.evaluation.run import quiet
    from speedlit.evaluation.state import same_randomness

    with quiet(), same_randomness():
        task = mteb.get_task(name)
    return task.metadata.type, task.metadata.dataset["path"], task.metadata.main_score


def _use(form: str, info: Mapping[str, Any], decoder: bool, lowest: float, target: Path) -> str:
    from speedlit.export import prompts

    embeds, both = info.get("role") == "embedder", info.get("attention") == "bidirectional"
    tokens = TokenContract.from_json(info["tokens"])
    query = prompts(tokens)["query"] if form == "sentence-transformers" else ""
    switch = "\nconfig.is_causal, config.sliding_window = False, None  # this adapter was trained with attention in both directions" if both and decoder else ""
    auto = "AutoModel" if embeds else "AutoModelForCausalLM"
    base = "BASE_FOLDER" if ":" in info["base"] else info["base"]  # a name that only speedlit resolves
    how = USE[form].format(auto=auto, base=base, switch=switch, query=json.dumps(query)[1:-1])
    lines = [
        f"# {'Embedder' if embeds else 'Generator'} made with speedlit\n",
        f"Format: {form}. Base: `{info['base']}`. Attention: {info.get('attention')}.",
        f"Token ids and vectors of 32 texts are equal to the trained model's (smallest cosine {lowest:.6f}).\n",
        f"```python\n{how}\n```\n",
    ]
    if embeds:
        length = "normalised" if tokens.normalize else "not normalised"
        lines.append(f"Pooling: {tokens.pooling}, {length}, at most {tokens.max_length} tokens.")
        lines.append(f"Queries read as {tokens.query_template!r}, documents as {tokens.document_template!r}.")
        if form == "onnx":
            lines.append("Pooling and normalisation are part of the graph; `config_sentence_transformers.json` has the prompt of each task.")
        elif (target / "modules.json").is_file():
            lines.append("sentence-transformers and mteb find pooling, length and the prompt of each task in this folder.")
            if (target / "both_ways.py").is_file():
                lines.append("They need `trust_remote_code=True`: `both_ways.py` makes the base attend in both directions. Without code: export it as merged.")
        else:
            lines.append("sentence-transformers and mteb cannot give this folder its prompts: a template goes on behind the text.")
    else:
        lines.append(f"The chat template puts the last message into {tokens.template!r}; `vllm serve` and `transformers serve` use it and")
        lines.append("`generation_config.json` as they are." if form != "adapter" else "need the merged format.")
    return "\n".join(lines) + "\n"


def _scores(scores: list[dict[str, Any]]) -> str:
    if not scores:
        return ""
    lines = ["## Scores (mteb)\n", "| task | split | main score |", "|---|---|---|"]
    for found in scores:
        lines += [f"| {found['task_name']} | {split} | {100 * part['main_score']:.2f} |" for split, parts in found["scores"].items() for part in parts]
    return "\n".join(lines) + "\n"


def _lineage(source: Path, info: Mapping[str, Any], run: Path | None) -> str:
    earlier = len(info.get("adapters") or [])
    lines = ["## Where it comes from\n", f"- base `{info['base']}`, {earlier} earlier adapter(s) merged into it; speedlit {info.get('code', __version__)}"]
    if merged := info.get("merged"):
        named = ", ".join(f"{share:.3f} {s['name']} ({s['hash']})" for share, s in zip(merged["weights"], merged["sources"], strict=True))
        lines.append(f"- {merged['method']} of {named}")
    if run is not None:
        config, summary = read_json(run / "run.json").get("config", {}), read_json(run / "summary.json")
        teacher = config.get("teacher") or {}
        lines.append(f"- run `{config.get('name')}`, seed {config.get('seed')}, teacher `{teacher.get('model') or 'embedded'}`; records of each stage:")
        for name, stage in summary.get("stages", {}).items():
            accepted, rejected = stage.get("accepted"), sum((stage.get("rejected") or {}).values())
            if accepted is not None:
                lines.append(f"  - {name}: {accepted} accepted, {rejected} rejected")
    return "\n".join(lines) + "\n"


def _recipe(source: Path, run: Path | None) -> str:
    lines = []
    if run is not None:
        config = read_json(run / "run.json").get("config", {})
        stage = next((part.partition("-")[2] for part in source.resolve().relative_to(run.resolve()).parts if part[:2].isdigit()), "")
        if config.get(stage):
            lines.append("```yaml\n" + yaml.safe_dump({stage: config[stage]}, sort_keys=True).rstrip() + "\n```")
    if (source.parent / "fit.json").is_file():
        fit = read_json(source.parent / "fit.json")
        final = ", ".join(f"{name} {value:.4g}" for name, value in sorted(fit.get("final", {}).items()) if isinstance(value, (int, float)))
        lines.append(f"{fit['steps']} steps in {fit['seconds']:.0f} s; at the end {final or 'no figures'}.")
    return "## Recipe\n\n" + "\n\n".join(lines) + "\n" if lines else ""


def _costs(run: Path | None) -> str:
    costs = read_json(run / "summary.json").get("costs") if run is not None else None
    if not costs:
        return ""
    lines = ["## What its data cost\n", "| stage | calls | tokens | USD | local seconds |", "|---|---|---|---|---|"]
    for name, row in {**costs["stages"], "other": costs["other"], "total": costs["total"]}.items():
        usd = "unknown" if row["usd"] is None else f"{row['usd']:.2f}"
        lines.append(f"| {name} | {row['calls']} | {row['tokens']} | {usd} | {row['local_seconds']:.0f} |")
    if costs["accepted"]:
        lines.append(f"\n{costs['accepted']} accepted samples.")
    return "\n".join(lines) + "\n"
