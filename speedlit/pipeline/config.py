"""The schema of a run's YAML. A signature is the schema is the help text: jsonargparse reads these dataclasses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from speedlit.errors import UsageError
from speedlit.pipeline.limits import nulls, strange
from speedlit.pipeline.yamlfiles import find_recipe, merge, read_yaml, reason, unknown_keys
from speedlit.synthesis.budget import Price
from speedlit.synthesis.quality.alarms import Levels
from speedlit.synthesis.wire import address


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
    """The noise of the embedded teacher's three roles, as the share of its answers that are spoilt."""

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

    def plain(self) -> dict[str, Any]:
        """Nested plain dicts, as stages read them."""
        return asdict(self)


def parse(config: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run config with the real parser.

    Args:
        config: path or shipped name.
        overrides: ``--key value`` words that win over the file.

    Raises:
        UsageError: unknown keys (with the nearest real one), wrong types, unreadable file.
    """
    from jsonargparse import ArgumentError, ArgumentParser, Namespace

    path = find_recipe(config)
    overrides, deep = split_deep(overrides)
    values = read_yaml(path)
    known = RunConfig(teacher=Teacher(embedded=Embedded())).plain()  # also the keys of what is off by default
    mistakes = unknown_keys(values, known, str(path)) + unknown_flags(overrides, known) + no_mappings(values, known, str(path))
    if mistakes:
        raise UsageError("\n".join(mistakes))
    parser = ArgumentParser(exit_on_error=False, parser_mode="yaml")
    parser.add_class_arguments(RunConfig, None)
    where = str(path)
    try:
        namespace = parser.parse_object(values)
        if overrides:
            where = "command line"
            namespace = parser.parse_args(list(overrides), namespace=namespace)
        made = parser.instantiate_classes(namespace)
    except (ArgumentError, TypeError, ValueError) as error:
        raise UsageError(f"{where}: {reason(str(error))}") from error
    if not isinstance(made, Namespace):
        raise TypeError("jsonargparse gave no namespace")
    config = RunConfig(**{k: getattr(made, k) for k in RunConfig.__dataclass_fields__})
    for key, value in deep:
        set_deep(config, key, value)
    return check(config, path)


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
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
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


def check(config: RunConfig, path: Path) -> RunConfig:
    """Values that no type can forbid.

    Raises:
        UsageError: a count below its minimum, a share outside 0..1, an unknown choice; all mistakes at once.
    """
    bad = nulls(config)
    if bad:  # the comparisons below need numbers
        raise UsageError("\n".join(f"{path}: {line}" for line in bad))
    bad = strange(config)
    for name, value in asdict(config.counts).items():
        least = 2 if name == "candidates" else 0 if name in ("validation", "test", "inspected") else 1
        if value is not None and value < least:
            bad.append(f"counts.{name} is {value}; it must be at least {least}")
    for name, share in (("test", config.tasks.test), ("validation", config.tasks.validation)):
        if not 0 <= share < 1:
            bad.append(f"tasks.{name} is {share}; a share lies between 0 and 1")
    if config.tasks.test + config.tasks.validation >= 1:
        bad.append("tasks.test and tasks.validation together leave nothing to train on")
    if config.tasks.per_topic < 1:
        bad.append(f"tasks.per_topic is {config.tasks.per_topic}; it must be at least 1")
    if config.topics.depth < 2:
        bad.append(f"topics.depth is {config.topics.depth}; it must be at least 2")
    if config.revision not in ("full", "edits"):
        bad.append(f"revision is {config.revision!r}; choose full or edits")
    if config.revision_guard not in (None, "likelihood"):
        bad.append(f"revision_guard is {config.revision_guard!r}; choose likelihood or null")
    for name in ("minhash_threshold", "negative_like_positive", "copied_query"):
        limit = getattr(config.filters, name)
        if limit is not None and not 0 < limit <= 1:
            bad.append(f"filters.{name} is {limit}; it must lie between 0 and 1, or be null to keep such records")
    if config.teacher.mode not in ("live", "batch"):
        bad.append(f"teacher.mode is {config.teacher.mode!r}; choose live or batch")
    if config.teacher.batch_poll <= 0:
        bad.append(f"teacher.batch_poll is {config.teacher.batch_poll}; it must be above 0 seconds")
    if not 1 <= config.teacher.batch_requests <= 50_000:
        bad.append(f"teacher.batch_requests is {config.teacher.batch_requests}; it must lie between 1 and 50000")
    if config.judge_swap not in (None, "drop", "keep"):
        bad.append(f"judge_swap is {config.judge_swap!r}; choose drop, keep or null")
    if config.sampling.dtype not in ("float32", "bfloat16"):
        bad.append(f"sampling.dtype is {config.sampling.dtype!r}; choose float32 or bfloat16")
    if config.sampling.structured and find_spec("xgrammar") is None:
        bad.append("sampling.structured needs xgrammar: pip install 'speedlit[structured]', or set it to false")
    if config.filters.ngram is not None and config.filters.ngram < 1:
        bad.append(f"filters.ngram is {config.filters.ngram}; it must be at least 1 (null: off)")
    unknown = set(config.comparison.sources) - {"junior", "senior", "refined", "teacher"}
    if unknown:
        bad.append(f"comparison.sources has {', '.join(sorted(unknown))}; choose among junior, senior, refined, teacher")
    if config.teacher.concurrency < 1:
        bad.append(f"teacher.concurrency is {config.teacher.concurrency}; it must be at least 1")
    if config.teacher.retries < 0:
        bad.append(f"teacher.retries is {config.teacher.retries}; it must be at least 0")
    for url in filter(None, (config.teacher.base_url, config.sampling.base_url)):
        try:
            address(url)
        except UsageError as error:
            bad.append(str(error))
    for name in ("timeout", "requests_per_minute", "tokens_per_minute"):
        value = getattr(config.teacher, name)
        if value is not None and value <= 0:
            bad.append(f"teacher.{name} is {value}; it must be more than 0" + ("" if name == "timeout" else ", or null for no limit"))
    bad += check_costs(config)
    if bad:
        raise UsageError("\n".join(f"{path}: {line}" for line in bad))
    return config


def check_costs(config: RunConfig) -> list[str]:
    """Mistakes in ``prices``, ``budget`` and ``plan``."""
    bad = [f"budget.{name} is {cap}; it must be at least 0 (null: no cap)" for name, cap in asdict(config.budget).items() if cap is not None and cap < 0]
    for name in ("devices", "tflops", "utilisation", "tokens_per_second", "memory_gb", "gpus_per_node", "memory_gb_s", "link_gb_s", "network_gb_s"):
        value = getattr(config.plan, name)
        if value <= 0:
            bad.append(f"plan.{name} is {value}; it must be above 0")
    if not 0 < config.plan.kept <= 1:
        bad.append(f"plan.kept is {config.plan.kept}; a share lies above 0 and at most at 1")
    for model, price in config.prices.items():
        bad += [f"prices.{model}.{key} is {value}; it must be at least 0" for key, value in asdict(price).items() if value < 0]
    if config.budget.usd is not None and config.teacher.model not in config.prices:
        name = config.teacher.model
        bad.append(f"budget.usd needs a price: prices has no {name!r}; add `{name}: {{input: USD, output: USD}}` (per million tokens) to prices")
    return bad
