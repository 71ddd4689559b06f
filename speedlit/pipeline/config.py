"""The schema of a run's YAML. A signature is the schema is the help text: jsonargparse reads these dataclasses."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

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
            ``teacher: NAME`` is short for it.
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
        utilisation: share of the peak that training reaches; null takes the measured shares (``speedlit plan --measured``).
        product: share of the peak that a large matrix product reaches, of which the measured shares are (A100 SXM: 267.9 of 312, published measurement).
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
    utilisation: float | None = None
    product: float = 0.859
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
