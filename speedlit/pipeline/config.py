"""The schema of a run's YAML. A signature is the schema is the help text: jsonargparse reads these dataclasses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from speedlit.errors import UsageError
from speedlit.pipeline.limits import mistakes, nulls
from speedlit.pipeline.yamlfiles import find_recipe, key_lines, merge, plain_value, read_yaml, reason, unknown_keys
from speedlit.synthesis.budget import Price
from speedlit.synthesis.quality.alarms import Levels


@dataclass
class Topics:
    """Where topics come from.

    Args:
        file: text file with one path a line (``Arts/Movies/Titles``); null asks the embedded teacher for its world's topics.
        depth: deeper paths lose their middle levels (paper D.1).
    """

    file: str | None = None
    depth: int = 4


@dataclass
class Tasks:
    """Brainstorming and splits.

    Args:
        per_topic: tasks kept per topic and kind (the paper keeps 1: its Table 3).
        test: share of the groups (cells) held out for the quality and evaluation tables.
        validation: share held out for choosing settings.
    """

    per_topic: int = 1
    test: float = 0.02
    validation: float = 0.01


@dataclass
class Counts:
    """How many prompts each stage gets.

    Args:
        seed: prompts that the teacher writes (paper: 25,000).
        root: prompts that the junior answers for ranking and revision.
        candidates: answers per root prompt (5 in the paper's worked example).
        preferences: root prompts whose candidates the teacher ranks (paper: 10,000).
        revisions: root records that the teacher criticises (paper: 10,000).
        synthesis: prompts that the senior answers (paper: 1.15 million).
        validation: prompts held out for choosing settings.
        test: prompts held out for the tables.
        test_samples: answers per held-out prompt and generator.
        inspected: triplets of the final data about which the teacher is asked whether the positive is better than the negative; 200 give a share
            of false negatives to 0.03.
        embedder: triplets per data source in the comparison of sources; null takes as many as the smallest source has.
    """

    seed: int = 25_000
    root: int = 10_000
    candidates: int = 5
    preferences: int = 10_000
    revisions: int = 10_000
    synthesis: int = 1_150_000
    validation: int = 500
    test: int = 500
    test_samples: int = 1
    inspected: int = 0
    embedder: int | None = None


@dataclass
class Embedded:
    """The noise of the embedded teacher's three roles, as the share of its answers that are spoilt.

    Args:
        writer_noise: of records and tasks.
        judge_noise: of rankings.
        critic_noise: of revisions.
        world_seed: which world it knows; the base model has read about world 0.
    """

    writer_noise: float = 0.03
    judge_noise: float = 0.0
    critic_noise: float = 0.0
    world_seed: int = 0


@dataclass
class Teacher:
    """The teacher behind an OpenAI-compatible endpoint. The key is read from ``OPENAI_API_KEY``, or from the file that ``OPENAI_API_KEY_FILE`` names.

    Args:
        model: model name sent with each request.
        mode: ``live`` asks at once; ``batch`` hands seed, preferences and revisions to the Batch API: cheaper, answered within a day. Both share
            the journal.
        batch_poll: seconds between two looks at the batches under way.
        batch_requests: most requests in one batch (OpenAI takes 50,000).
        backend: a teacher that is no server: a plug-in's name, or the dotted path of a class with a method ``answer`` (docs/plugins.md); null: a server.
        settings: keyword arguments of that class.
        base_url: endpoint, a query such as ``?api-version=...`` included; null honours ``OPENAI_BASE_URL`` and falls back to OpenAI's own.
        embedded: settings of the embedded teacher, started by the run itself unless an endpoint is named; null: never.
        concurrency: requests in flight.
        timeout: seconds for one request, answer included.
        retries: attempts after a passing failure.
        patience: seconds that a teacher which has answered before may be down before the run stops.
        requests_per_minute: most attempts a minute; null: no limit but the server's own.
        tokens_per_minute: most tokens a minute, prompts and answers together; null: no limit but the server's own.
        temperature: of the writer; judge and critic always use 0.
        max_tokens: longest answer.
        structured: keep answers to the template's JSON keys by ``response_format``, where a question at the start shows that the server can.
    """

    model: str = "gpt-4o-2024-05-13"
    mode: str = "live"
    batch_poll: float = 60.0
    batch_requests: int = 20_000
    backend: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    base_url: str | None = None
    embedded: Embedded | None = None
    concurrency: int = 16
    timeout: float = 120.0
    retries: int = 6
    patience: float = 120.0
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    temperature: float = 1.0
    max_tokens: int = 1024
    structured: bool = False


@dataclass
class Generator:
    """How trained generators are sampled (paper App. B: temperature 1, top_p 1, at most 800 new tokens).

    Args:
        temperature: of junior, senior and control; the revisor decodes greedily.
        top_p: nucleus.
        max_tokens: longest answer, in tokens.
        batch_size: prompts per forward pass.
        processes: worker processes, one torch thread each; 1 generates in this process.
        dtype: float32 or bfloat16.
        structured: keep answers to the template's JSON keys while they are drawn (needs xgrammar: the extra ``structured``).
        base_url: an OpenAI-compatible server of the trained generators (such as vLLM), each a model named by its role: junior, senior, control,
            revisor; null: they are loaded here.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 800
    batch_size: int = 64
    processes: int = 1
    dtype: str = "float32"
    structured: bool = False
    base_url: str | None = None


@dataclass
class Training:
    """One training stage: a shipped or own ``fit`` recipe and what differs from it.

    Args:
        recipe: name or path of a fit YAML.
        set: nested keys laid over the recipe.
    """

    recipe: str = ""
    set: dict[str, Any] = field(default_factory=dict)


@dataclass
class Filters:
    """What the dataset stage drops.

    Args:
        exact: identical normalised texts.
        minhash_threshold: near-duplicates at or above this Jaccard similarity; null keeps them.
        ngram: length in words of the shared run that counts as contamination with the texts of the evaluation tasks in use (``evaluation``;
            tasks without a local copy are loaded by mteb); only null switches it off.
        meta_text: records with refusals, chat marks or JSON keys in a text.
        label_leak: classification texts that spell out their label or the misleading one.
        negative_like_positive: records with a negative at or above this word-wise Jaccard similarity to the positive (0.8 is sensible); null keeps
            them. A negative that equals the positive is always dropped.
        copied_query: records whose positive repeats more than this share of the query in one run (0.5 is sensible); null keeps them.
    """

    exact: bool = True
    minhash_threshold: float | None = 0.8
    ngram: int | None = 13
    meta_text: bool = False
    label_leak: bool = False
    negative_like_positive: float | None = None
    copied_query: float | None = None


@dataclass
class Comparison:
    """Which data sources train an embedder of their own, and with how many seeds.

    Args:
        sources: among junior, senior, refined, teacher.
        seeds: order seeds; 0 fits none.
        processes: fits at a time, one torch thread each.
    """

    sources: list[str] = field(default_factory=list)
    seeds: int = 0
    processes: int = 1


@dataclass
class Evaluation:
    """What the embedder is measured on.

    Args:
        tasks: mteb task names; empty with the embedded teacher takes tasks rendered from held-out cells of its world.
        data: folder with local copies (see ``speedlit evaluate --data``).
    """

    tasks: list[str] = field(default_factory=list)
    data: str | None = None


@dataclass
class Caps:
    """Hard caps on what the whole run may spend on its teacher, what is in flight counted at the worst case; null is no cap.

    Args:
        usd: money, by ``prices``.
        calls: requests that were or may have been answered.
        tokens: of prompts and answers together.
    """

    usd: float | None = None
    calls: int | None = None
    tokens: int | None = None


@dataclass
class Assumed:
    """What ``speedlit plan`` assumes; nothing else reads it.

    Args:
        answer_tokens: task kind (and ``brainstorm``, ``other``) -> mean tokens of an answer; what is left out has defaults for the paper's kinds.
        kept: share of the synthetic records that the filters keep (paper: 0.8).
        device: name of the devices that generate and train.
        devices: how many.
        tflops: peak of one device in the training's dtype, in 10^12 FLOP/s.
        utilisation: share of the peak that training reaches.
        tokens_per_second: tokens that one device generates a second, all rows of a batch together.
        memory_gb: memory of one device.
        usd_per_hour: rent of one device; null leaves it out.
        gpus_per_node: devices on one fast link (``speedlit plan --gpus``).
        memory_gb_s: a device's memory bandwidth, in 10^9 bytes/s.
        link_gb_s: what a device sends within a node, one direction (NVLink 3: 300, NVLink 4: 450).
        network_gb_s: what a device sends to other nodes (a 200 Gb/s adapter per device: 25).
        latency_us: of one hop of a collective; assumed, measure yours.
    """

    answer_tokens: dict[str, int] = field(default_factory=dict)
    kept: float = 0.8
    device: str = "A100 80GB"
    devices: int = 1
    tflops: float = 312.0
    utilisation: float = 0.4
    tokens_per_second: float = 1500.0
    memory_gb: float = 80.0
    usd_per_hour: float | None = None
    gpus_per_node: int = 8
    memory_gb_s: float = 2039.0
    link_gb_s: float = 300.0
    network_gb_s: float = 25.0
    latency_us: float = 20.0


@dataclass
class Study:
    """What ``speedlit study`` trains on a finished run; no stage reads it. Profiles: configs/study/.

    Args:
        source: data of scaling and of the backbones: junior, senior, refined, teacher, control.
        sizes: triplets of the nested subsets; empty takes all there are and four halvings of them.
        seeds: fits per cell, with the seeds 0, 1 and so on.
        steps: optimizer steps of each fit; null keeps the recipe's own.
        triplets: of each variant at most; null takes as many as the smallest has.
        variants: of the ablation: full, no-revisor, no-dpo, junior-only, sft-on-chosen, sft-on-chosen+revisor, teacher; untruncated is a loop of its
            own, which asks the teacher.
        backbones: embedders of cross-model, each with name and, where they differ from the recipe's, attention and pooling.
        generators: base models of cross-model, each tuned on the run's seed records.
        processes: cells at a time, one torch thread each.
    """

    source: str = "refined"
    sizes: list[int] = field(default_factory=list)
    seeds: int = 3
    steps: int | None = None
    triplets: int | None = None
    variants: list[str] = field(default_factory=lambda: ["full", "no-revisor", "no-dpo", "junior-only", "sft-on-chosen", "sft-on-chosen+revisor"])
    backbones: list[dict[str, str]] = field(default_factory=list)
    generators: list[str] = field(default_factory=list)
    processes: int = 1


@dataclass
class RunConfig:
    """The whole loop.

    Args:
        name: recipe's name; a root belongs to one name, seed, base and prompt set.
        root: folder of the run.
        seed: every draw derives from it.
        base: base model of the generators.
        embedder_base: base model of the embedder; null takes ``base``.
        prompts: prompt set by name (``paper``, ``mini``) or folder; ``paper+FOLDER`` lays the folder's files over the set.
        revision: what a revision looks like: ``full`` record or ``edits``.
        judge_swap: ``drop`` asks the judge again with the order reversed and drops pairs on which it disagrees with itself, ``keep`` only marks
            them; null asks once.
        revise_fields: JSON keys that the revisor may change; null allows all.
        revision_guard: ``likelihood`` takes a revision back that the senior finds less likely than its own record; null: none.
        control: also train the best-of-n control (the senior's data, steps and learning rate, but beta 0).
        threads: torch threads of this process; null leaves torch's default.
        cluster: file whose ``job`` section says what the jobs of ``--executor slurm`` ask for.
        quality: from which level a measure of the data is an alarm; what is dropped is the business of ``filters``.
        prices: model of the teacher -> what it costs.
        budget: what the run may spend.
        plan: what ``speedlit plan`` assumes.
        study: what ``speedlit study`` trains.
    """

    name: str = "speed"
    root: str = "runs/speed"
    seed: int = 0
    base: str = "meta-llama/Meta-Llama-3-8B"
    embedder_base: str | None = None
    prompts: str = "paper"
    judge_swap: str | None = None
    revision: str = "full"
    revise_fields: list[str] | None = None
    revision_guard: str | None = None
    control: bool = True
    threads: int | None = None
    cluster: str = "trainer/slurm"
    topics: Topics = field(default_factory=Topics)
    tasks: Tasks = field(default_factory=Tasks)
    counts: Counts = field(default_factory=Counts)
    teacher: Teacher = field(default_factory=Teacher)
    prices: dict[str, Price] = field(default_factory=dict)
    budget: Caps = field(default_factory=Caps)
    plan: Assumed = field(default_factory=Assumed)
    sampling: Generator = field(default_factory=Generator)
    filters: Filters = field(default_factory=Filters)
    quality: Levels = field(default_factory=Levels)
    junior: Training = field(default_factory=lambda: Training("fit/junior"))
    senior: Training = field(default_factory=lambda: Training("fit/senior"))
    revisor: Training = field(default_factory=lambda: Training("fit/revisor"))
    embedder: Training = field(default_factory=lambda: Training("fit/embedder"))
    comparison: Comparison = field(default_factory=Comparison)
    evaluation: Evaluation = field(default_factory=Evaluation)
    study: Study = field(default_factory=Study)

    def plain(self) -> dict[str, Any]:
        """Nested plain dicts, as stages read them."""
        return asdict(self)


def parse(config: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run config with the real parser.

    Args:
        config: path or shipped name.
        overrides: ``--key value`` words that win over the file.

    Raises:
        UsageError: all mistakes of the file and the command line at once, each with its line or key; or the file cannot be read.
    """
    path = find_recipe(config)
    words, deep = split_deep(overrides)
    values = read_yaml(path)
    known = RunConfig(teacher=Teacher(embedded=Embedded())).plain()  # also the keys of what is off by default
    bad = unknown_keys(values, known, str(path)) + unknown_flags(words, known) + no_mappings(values, known, str(path))
    made, wrong = typed(known_part(values, known), [pair for pair in pairs(words) if known_key(pair[0][2:].partition("=")[0], known)])
    bad += wrong
    for key, value in deep:
        try:
            set_deep(made, key, value)
        except UsageError as error:
            bad.append(str(error))
    told = {word[2:].partition("=")[0]: "command line" for word in words if word.startswith("--")}
    for key in nulls(made):
        bad.append(f"{key} is null; give a value, or leave the key out to take the default")
        default(made, key)  # the comparisons below need numbers
    bad += mistakes(made)
    if bad:
        lines = {**{key: f"{path}:{line}" for key, line in key_lines(path).items()}, **told}
        raise UsageError("\n".join(dict.fromkeys(placed(line, str(path), lines) for line in bad)))
    return made


def typed(values: dict[str, Any], words: Sequence[Sequence[str]]) -> tuple[RunConfig, list[str]]:
    """The config of a file's values and a command line's words, and one line per value of a wrong type; the default stands in for such a value."""
    from jsonargparse import ArgumentError, ArgumentParser, Namespace

    parser = ArgumentParser(exit_on_error=False, parser_mode="yaml")
    parser.add_class_arguments(RunConfig, None)

    def build(values: dict[str, Any], words: Sequence[Sequence[str]]) -> RunConfig:
        namespace = parser.parse_object(values)
        if words:
            namespace = parser.parse_args([word for pair in words for word in pair], namespace=namespace)
        made = parser.instantiate_classes(namespace)
        if not isinstance(made, Namespace):
            raise TypeError("jsonargparse gave no namespace")
        return RunConfig(**{k: getattr(made, k) for k in RunConfig.__dataclass_fields__})

    def fault(values: dict[str, Any], words: Sequence[Sequence[str]] = ()) -> str | None:
        try:
            build(values, words)
        except (ArgumentError, TypeError, ValueError) as error:
            return reason(str(error))
        return None

    if fault(values, words) is None:
        return build(values, words), []
    bad: list[str] = []
    good: dict[str, Any] = {}  # one value at a time, so that each tells its own mistake
    for branch in branches(values):
        line = fault(branch)
        if line is None:
            good = merge(good, branch)
        else:
            bad.append(line)
    kept = []
    for pair in words:
        line = fault({}, [pair])
        if line is None:
            kept.append(pair)
        else:
            bad.append(f"command line: {line}")
    left = fault(good, kept)
    if left is not None:  # values that are right one by one, wrong together
        raise UsageError("\n".join([*bad, left]))
    return build(good, kept), bad


def branches(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The nested mapping taken apart: one branch per value; what lies under ``set`` or ``prices`` stays whole."""
    out: list[dict[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict) and value and key not in ("set", "prices"):
            out += [{key: branch} for branch in branches(value)]
        else:
            out.append({key: value})
    return out


def known_part(values: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """The values whose keys the schema has; sections that hold a plain value are left out."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known or (isinstance(known[key], dict) and not isinstance(value, dict) and not (key == "embedded" and value is None)):
            continue
        deeper = isinstance(value, dict) and isinstance(known[key], dict) and known[key] and key != "set"
        out[key] = known_part(value, known[key]) if deeper else value
    return out


def known_key(key: str, known: Any) -> bool:
    """Whether the schema has this dotted key."""
    for part in key.split("."):
        if isinstance(known, dict) and not known:
            return True  # a free mapping, such as prices
        if not isinstance(known, dict) or part not in known:
            return False
        known = known[part]
    return True


def pairs(words: Sequence[str]) -> list[list[str]]:
    """``--key value`` and ``--key=value`` words, each option with what belongs to it."""
    out: list[list[str]] = []
    for word in words:
        if word.startswith("--") or not out:
            out.append([word])
        else:
            out[-1].append(word)
    return out


def default(config: Any, key: str) -> None:
    """Give a dotted key the value that its dataclass starts with."""
    *path, name = key.split(".")
    for part in path:
        config = getattr(config, part)
    setattr(config, name, getattr(type(config)(), name))


def placed(line: str, file: str, places: dict[str, str]) -> str:
    """A mistake with the line of the file, or the command line, where its key stands; else with the file's name."""
    if line.startswith(("command line:", "--")):
        return line
    named = re.search(r"unknown key `([^`]+)`", line)
    text = line.removeprefix(f"{file}: ")
    key = named[1] if named else text.split(" ")[0].rstrip(":")
    while key and key not in places:
        key = key.rpartition(".")[0]
    return f"{places.get(key, file)}: {text}"


def split_deep(words: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The words of a command line without those below a ``set``, and these as (key, value): they belong to a fit recipe, not to this schema.

    Raises:
        UsageError: such a key has no value.
    """
    plain: list[str] = []
    deep: list[tuple[str, str]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.partition("=")
        if not word.startswith("--") or ".set." not in key:
            plain.append(word)
        elif equals or rest:
            deep.append((key[2:], value if equals else rest.pop(0)))
        else:
            raise UsageError(f"{word} needs a value")
    return plain, deep


def set_deep(config: RunConfig, key: str, text: str) -> None:
    """Lay ``junior.set.trainer.max_steps`` = ``3`` over the ``set`` of its training stage.

    Raises:
        UsageError: the key does not start with a training stage.
    """
    name, _, path = key.partition(".set.")
    training = getattr(config, name, None)
    if not isinstance(training, Training):
        raise UsageError(f"--{key}: {name} is no training stage; there are junior, senior, revisor, embedder")
    value = plain_value(text)
    for part in reversed(path.split(".")):
        value = {part: value}
    training.set = merge(training.set, value)


def no_mappings(values: dict[str, Any], known: dict[str, Any], where: str) -> list[str]:
    """One line per section that holds a plain value."""
    return [
        f"{where}: {key} is {str(value)[:80]}; expected keys and values ({', '.join(known[key])})"
        for key, value in values.items()
        if isinstance(known.get(key), dict) and not isinstance(value, dict)
    ]


def unknown_flags(words: Sequence[str], known: dict[str, Any]) -> list[str]:
    """One line per ``--dotted.key`` that the schema doesn't have."""
    out = []
    for word in words:
        if not word.startswith("--"):
            continue
        key = word[2:].split("=", 1)[0]
        branch: dict[str, Any] = {}
        for part in reversed(key.split(".")):
            branch = {part: branch}
        out += unknown_keys(branch, known, f"--{key}")
    return out
