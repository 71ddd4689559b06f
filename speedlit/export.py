"""A trained model for other libraries: an adapter, a merged Hugging Face folder, a sentence-transformers folder, or an ONNX graph.

What is written is loaded again in a fresh process, through the library it is meant for and without any code of ours, and
must give the same token ids and the same vectors for 32 texts; else it is removed. A model that scores differently
elsewhere was usually published without its instructions, its pooling or its end token, so all of these are part of it:
the token contract becomes the tokenizer's own post-processor and length, pooling and normalisation become modules, the
instructions become prompts, and a bidirectional decoder keeps ``is_causal: false`` in its config.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speedlit.errors import SpeedlitError, UsageError
from speedlit.files import read_json, remove, write_json
from speedlit.onnx_export import check_onnx, write_graph

if TYPE_CHECKING:
    from speedlit.models.folder import Loaded

FORMATS = ("adapter", "merged", "sentence-transformers", "onnx")
VECTORS = ("sentence-transformers", "onnx")  # formats that give finished embeddings, and so are for embedders alone
POOLING = {"last": "lasttoken", "mean": "mean_tokens", "weighted_mean": "weightedmean_tokens", "cls": "cls_token"}
GENERIC = "Given a query, retrieve relevant text"
BENCHMARKS = ("MTEB(eng, v2)", "MTEB(eng, v1)")  # whose tasks' instructions travel with an embedder
SWITCH = Path(__file__).parent / "evaluation" / "both_ways.py"
# (floor on cosine, what it is compared in): a cast costs a little
COSINE = {"float32": 0.9999, "bfloat16": 0.99, "float16": 0.999}


def export(source: Path, target: Path, form: str, dtype: str = "float32", licence: str | None = None, results: Path | None = None) -> dict[str, Any]:
    """Write ``source`` to ``target`` and prove that it is the same model there.

    Args:
        source: a model folder, the folder of a fit (which holds one as ``model``), or a checkpoint of a fit, a file or a folder of shares.
        target: a folder that does not exist yet or is empty.
        form: ``adapter`` (peft), ``merged`` (Hugging Face), ``sentence-transformers`` or ``onnx`` (onnxruntime).
        dtype: of the stored weights: float32, bfloat16 or float16. Merging is done in float32 whatever this says.
        licence: for the model card, as the hub writes it (``apache-2.0``).
        results: folder that ``speedlit evaluate --output`` wrote; scores of this very model go into the card. Default: those of its run.

    Returns:
        ``{"texts": 32, "cosine": smallest, "format": form, "path": target}``.

    Raises:
        UsageError: not a model folder, a target in use, an unknown format, or one that this model cannot have.
        SpeedlitError: what was written gives other vectors or token ids; it has been removed.
    """
    if form not in FORMATS:
        raise UsageError(f"unknown format {form!r}: use {', '.join(FORMATS)}")
    if dtype not in COSINE:
        raise UsageError(f"unknown dtype {dtype!r}: use {', '.join(COSINE)}")
    if form == "onnx":
        check_onnx(dtype)
    free_target(target)
    from speedlit.models.unpack import unpacked

    with unpacked(source) as place:
        return _export(model_folder(place), target, form, dtype, licence, results)


def _export(source: Path, target: Path, form: str, dtype: str, licence: str | None, results: Path | None) -> dict[str, Any]:
    from speedlit.card import write_card
    from speedlit.models.backbone import chain

    info = read_json(source / "speedlit.json")
    temporary = target.with_name(f".{target.name}.part")
    remove(temporary)
    temporary.mkdir(parents=True)
    try:
        expected = _write(source, temporary, form, dtype, info)
        question = {"form": form, "causal_lm": info.get("role") != "embedder", "base": None, "bidirectional": info.get("attention") == "bidirectional"}
        if form == "adapter":
            question["base"] = chain(str(source))[0]
        lowest = compare(temporary, question, expected, COSINE[dtype])
        write_card(temporary, form, source, lowest, expected["decoder"], licence, results)
        remove(target)
        temporary.rename(target)
    finally:
        remove(temporary)
    return {"texts": len(expected["texts"]), "cosine": lowest, "format": form, "path": str(target)}


def free_target(target: Path) -> None:
    """Refuse a place where something is already.

    Raises:
        UsageError: it holds something, or is the folder that one stands in, which can't be put in another's place.
    """
    if not target.name:
        raise UsageError(f"{target} has no name of its own: name a new folder")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} exists already: name a new folder, or remove it first")


def model_folder(path: Path) -> Path:
    """The model folder itself, or the ``model`` inside a fit's folder.

    Raises:
        UsageError: neither is one.
    """
    for folder in (path, path / "model"):
        if (folder / "speedlit.json").is_file():
            return folder
    last = path / "checkpoints" / "last.ckpt"
    near = f"this fit has not ended; name its checkpoint {last}" if last.exists() else "name the `model` folder that a fit wrote, or one of its checkpoints"
    raise UsageError(f"{path} is not a model folder (it has no speedlit.json): {near}")


def _write(source: Path, target: Path, form: str, dtype: str, info: dict[str, Any]) -> dict[str, Any]:
    """Write the export; returns the texts with the token ids and vectors it must reproduce."""
    from speedlit.models.folder import load_folder

    if form in VECTORS and info.get("role") != "embedder":
        raise UsageError(f"{source} is a generator: the {form} format is for embedders; use adapter or merged")
    loaded = load_folder(source)
    expected = _expected(loaded, info, form)
    write_tokenizer(loaded, target, info)
    if form == "sentence-transformers" or scores_elsewhere(loaded, info):
        _write_prompts(loaded.tokens, target)
        if form != "onnx":
            _write_modules(loaded, target, form == "adapter" and both_ways(loaded))
    if form == "adapter":
        _write_adapter(source, target, info)
        return expected
    if form == "onnx":
        write_graph(loaded, target)
    else:
        _write_merged(loaded, target, dtype)
    if info.get("role") != "embedder":
        _write_generation(loaded, target)
    merged = {**info, "base": ".", "adapters": [], "exported": {"from": info.get("base"), "dtype": dtype}}
    write_json(target / "speedlit.json", merged)
    return expected


# -- writing ----------------------------------------------------------------------------------------------------------


def _write_adapter(source: Path, target: Path, info: dict[str, Any]) -> None:
    """Copy a peft adapter; its config names the base by the name of the config, never by a path of this machine.

    Raises:
        UsageError: the model has no adapter, or the adapter stands on another adapter.
    """
    if not (source / "adapter_config.json").is_file():
        raise UsageError(f"{source} holds full weights and no adapter: export it as merged or sentence-transformers")
    if info.get("adapters"):
        count = len(info["adapters"])
        raise UsageError(f"the adapter in {source} stands on {count} other adapter(s) merged into the base, so peft cannot load it alone: use merged")
    base = info["base"]
    if (source / base).is_dir():  # a folder, stored relative to its adapter
        base = os.path.relpath((source / base).resolve(), target.resolve())
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(source / name, target / name)
    write_json(target / "adapter_config.json", {**read_json(target / "adapter_config.json"), "base_model_name_or_path": base})
    write_json(target / "speedlit.json", {**info, "base": base})


def _write_merged(loaded: Loaded, target: Path, dtype: str) -> None:
    import torch

    model = loaded.model.to(getattr(torch, dtype))
    if loaded.attention == "bidirectional" and hasattr(model.config, "is_causal"):
        model.config.is_causal = False
    model.save_pretrained(target, safe_serialization=True)


def write_tokenizer(loaded: Loaded, target: Path, info: dict[str, Any]) -> None:
    """Store the tokenizer so that a plain call gives the contract's ids: start and end tokens after truncation, own length.

    A generator's prompt gets no end token, and loses its beginning when it is too long.

    transformers rebuilds the post-processor of some tokenizer classes when it loads them, so the generic class is stored,
    which takes ``tokenizer.json`` as it is.

    Raises:
        SpeedlitError: the tokenizer has no fast version.
    """
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    tokenizer, tokens = loaded.tokenizer, loaded.tokens
    if not getattr(tokenizer, "is_fast", False):
        raise SpeedlitError(f"{type(tokenizer).__name__} has no fast version, so the start and end tokens cannot travel with it")
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    embeds = info.get("role") == "embedder"
    before, after = ([i for i in ends if i is not None] for ends in ([tokens.bos_id(tokenizer)], [tokens.eos_id(tokenizer) if embeds else None]))
    names = {number: tokenizer.convert_ids_to_tokens(number) for number in {*before, *after}}
    template = [*(names[i] for i in before), "$A", *(names[i] for i in after)]
    backend.post_processor = TemplateProcessing(single=template, pair=[*template, "$B"], special_tokens=[(name, number) for number, name in names.items()])
    backend.no_truncation()
    backend.no_padding()
    kept = {key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    if pad := kept.get("eos_token") or kept.get("unk_token"):
        kept.setdefault("pad_token", pad)
    sides = {"padding_side": "right" if embeds else "left", "truncation_side": "right" if embeds else "left"}
    stored = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=tokens.max_length, **sides, **kept)
    if not embeds:
        stored.chat_template = tokens.chat_template()
    elif getattr(tokenizer, "chat_template", None):
        stored.chat_template = tokenizer.chat_template
    stored.model_input_names = ["input_ids", "attention_mask"]
    stored.save_pretrained(target)


def _write_generation(loaded: Loaded, target: Path) -> None:
    """The settings by which a server stops where we do, and samples as a request says (one with temperature 0 gets the likeliest text)."""
    from transformers import GenerationConfig

    from speedlit.generation.local import end_tokens

    tokenizer, ends = loaded.tokenizer, sorted(end_tokens(loaded.model, loaded.tokenizer))
    settings = {"bos_token_id": loaded.tokens.bos_id(tokenizer), "eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id}
    GenerationConfig(**settings, do_sample=True, temperature=1.0, top_p=1.0, top_k=0).save_pretrained(target)


def scores_elsewhere(loaded: Loaded, info: dict[str, Any]) -> bool:
    """Whether an adapter or merged folder can tell sentence-transformers, and so mteb, how it embeds: a prompt must be able to say what the templates say."""
    tokens = loaded.tokens
    return info.get("role") == "embedder" and tokens.query_template.endswith("{text}") and tokens.document_template.endswith("{text}")


def both_ways(loaded: Loaded) -> bool:
    """Whether this is a decoder that attends in both directions, which its base's own config does not know of."""
    from speedlit.models.folder import ENCODERS

    return loaded.attention == "bidirectional" and loaded.model.config.model_type not in ENCODERS


def _write_modules(loaded: Loaded, target: Path, switched: bool) -> None:
    """The files by which sentence-transformers, and so mteb, knows pooling, normalisation and length.

    An adapter loads its base by the base's config. Where that one is causal and the adapter is not (``switched``), the switch is a module of a
    few lines in the folder: sentence-transformers reads it with ``trust_remote_code=True``, and says so without.
    """
    tokens = loaded.tokens
    library = "sentence_transformers.models"
    parts = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if tokens.normalize else [])]
    modules = [{"idx": i, "name": str(i), "path": path, "type": f"{library}.{kind}"} for i, (path, kind) in enumerate(parts)]
    length: dict[str, Any] = {"max_seq_length": tokens.max_length, "do_lower_case": False}
    if switched:
        modules[0]["type"] = f"{SWITCH.stem}.BothWays"
        shutil.copyfile(SWITCH, target / SWITCH.name)
        length["config_kwargs"] = {key: getattr(loaded.model.config, key) for key in ("sliding_window", "layer_types") if hasattr(loaded.model.config, key)}
    (target / "modules.json").write_text(json.dumps(modules, indent=2) + "\n", encoding="utf-8")
    modes = {f"pooling_mode_{theirs}": ours == tokens.pooling for ours, theirs in POOLING.items()}
    write_json(target / "1_Pooling" / "config.json", {"word_embedding_dimension": loaded.model.config.hidden_size, **modes, "include_prompt": True})
    if tokens.normalize:
        (target / "2_Normalize").mkdir(exist_ok=True)
    write_json(target / "sentence_bert_config.json", length)


def _write_prompts(tokens: Any, target: Path) -> None:
    named = {**prompts(tokens), **task_prompts(tokens)}
    write_json(target / "config_sentence_transformers.json", {"prompts": named, "default_prompt_name": None, "similarity_fn_name": "cosine"})


def prompts(tokens: Any) -> dict[str, str]:
    """The query and document prompts of sentence-transformers: what stands before the text.

    Raises:
        UsageError: the contract puts something behind the text, which a prompt cannot.
    """
    templates = {"query": tokens.query_template, "document": tokens.document_template}
    for side, template in templates.items():
        if not template.endswith("{text}"):
            raise UsageError(f"the {side} template {template!r} does not end with {{text}}: sentence-transformers can only put a prompt before a text")
    return {side: template[: -len("{text}")].replace("{instruction}", GENERIC) for side, template in templates.items()}


def task_prompts(tokens: Any) -> dict[str, str]:
    """The prompts that make mteb ask as we do: for each task type, and for each English benchmark task that has an instruction of its own.

    mteb takes the most specific key: task and side, task, type and side, type, side. Documents of a search are bare, the texts of
    a symmetric task are all instructed.
    """
    if "{instruction}" not in tokens.query_template:
        return {}
    before = tokens.query_template[: -len("{text}")]
    return {key: before.replace("{instruction}", instruction) for key, instruction in task_instructions().items()}


@cache
def task_instructions() -> dict[str, str]:
    """What the encoder asks of each task type, and of each English benchmark task that has an instruction of its own, by mteb's keys."""
    import mteb
    from mteb.types import PromptType

    from speedlit.data.tokens import TokenContract
    from speedlit.evaluation.encoder import Encoder
    from speedlit.evaluation.run import quiet
    from speedlit.evaluation.state import same_randomness
    from speedlit.evaluation.tasks import KINDS

    with quiet(), same_randomness():
        listed = [task for name in BENCHMARKS for task in mteb.get_benchmark(name).tasks]
    tasks = [part for task in listed for part in getattr(task, "tasks", [task])]  # CQADupstack is a dozen tasks under one name
    asker: Any = Encoder(None, None, None, TokenContract())  # type: ignore[arg-type]
    usual: dict[str, str] = {}
    named: dict[str, str] = {}
    for task in tasks:
        kind = task.metadata.type
        searches = kind in KINDS and KINDS[kind].base == "AbsTaskRetrieval"
        side, key = (PromptType.query, "-query") if searches else (None, "")
        if kind in KINDS and kind + key not in usual:
            usual[kind + key] = asker.instruction_for(task.metadata.model_copy(update={"prompt": None}), side) or GENERIC
        own = asker.instruction_for(task.metadata, side)
        if own and own != usual.get(kind + key):
            named[task.metadata.name + key] = own
    return {**usual, **named}


# -- proving ----------------------------------------------------------------------------------------------------------


def sample_texts() -> list[str]:
    """32 texts that have gone wrong before: short, long beyond any limit, other scripts, numbers, punctuation, newlines."""
    short = ["a", "How do I locate my card?", "1 + 1 = 2", "naïve café", "Привет, мир", "東京は日本の首都です", "a\nb", "?!", "The cat sat on the mat."]
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
    grown = [" ".join(words[(i + j) % 10] for j in range(2 + i * i)) for i in range(20)]
    return [*short, *grown, "word " * 3000 + "end", "Instruct: find\nQuery: something", "UPPER lower 123 _ - end."]


def _expected(loaded: Loaded, info: dict[str, Any], form: str) -> dict[str, Any]:
    """Token ids and vectors of the texts by our own way, each text alone.

    The vector is what the target library gives: an embedding, of a merged or adapted encoder the mean of its last hidden
    states, of a generator the logits behind the last token.
    """
    import torch

    from speedlit.evaluation.state import evaluating
    from speedlit.models.folder import ENCODERS

    tokens, tokenizer = loaded.tokens, loaded.tokenizer
    if info.get("role") == "embedder":
        texts = [tokens.fill(text, None) for text in sample_texts()]
        ids = [tokens.encode_text(tokenizer, text) for text in sample_texts()]
    else:
        texts = [tokens.template.replace("{prompt}", text) for text in sample_texts()]
        ids = [tokens.encode_prompt(tokenizer, text) for text in sample_texts()]
    found = []
    with evaluating(loaded.model):
        for row in ids:
            batch = torch.tensor([row])
            mask = torch.ones_like(batch)
            if form in VECTORS:
                vector = loaded.embed(batch, mask)[0]
            elif info.get("role") == "embedder":
                vector = loaded.model(input_ids=batch, attention_mask=mask).last_hidden_state[0].mean(0)
            else:
                vector = loaded.model(input_ids=batch, attention_mask=mask).logits[0, -1]
            found.append(vector.double().numpy())
    return {"texts": texts, "ids": ids, "vectors": np.stack(found), "decoder": loaded.model.config.model_type not in ENCODERS}


def compare(folder: Path, question: dict[str, Any], expected: dict[str, Any], floor: float) -> float:
    """Load ``folder`` in a fresh process and compare; returns the smallest cosine of a text.

    Raises:
        SpeedlitError: it does not load, or gives other ids or vectors.
    """
    form = question["form"]
    asked, answer = folder.with_name(f"{folder.name}.json"), folder.with_name(f"{folder.name}.npz")
    script = Path(__file__).parent / "evaluation" / "reload.py"  # as a file: nothing of speedlit is imported there
    try:
        write_json(asked, {**question, "folder": str(folder.resolve()), "texts": expected["texts"], "output": str(answer.resolve())})
        done = subprocess.run([sys.executable, str(script), str(asked)], capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise SpeedlitError(f"the {form} export does not load in a fresh process and has been removed: {reason}")
        return judge(answer, expected, form, floor)
    finally:
        remove(asked)
        remove(answer)


def judge(answer: Path, expected: dict[str, Any], form: str, floor: float) -> float:
    """The smallest cosine between the vectors that a fresh process found and ours.

    Raises:
        SpeedlitError: other ids or vectors.
    """
    with np.load(answer) as found:
        theirs, ids, sizes = found["vectors"], found["ids"].tolist(), found["sizes"].tolist()
    _same_ids(ids, sizes, expected["ids"], form)
    mine = expected["vectors"]
    cosine = (mine * theirs).sum(1) / np.maximum(np.linalg.norm(mine, axis=1) * np.linalg.norm(theirs, axis=1), 1e-12)
    lowest, worst = float(cosine.min()), int(cosine.argmin())
    if not lowest >= floor:
        raise SpeedlitError(f"the {form} export gives other vectors (cosine {lowest:.6f} for text {worst}, at least {floor} needed) and has been removed")
    return lowest


def _same_ids(flat: list[int], sizes: list[int], expected: list[list[int]], form: str) -> None:
    start = 0
    for index, (size, row) in enumerate(zip(sizes, expected, strict=True)):
        if flat[start : start + size] != row:
            raise SpeedlitError(f"the {form} export gives other token ids for text {index} ({size} ids, {len(row)} expected) and has been removed")
        start += size
