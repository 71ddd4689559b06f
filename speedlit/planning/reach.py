"""Whether the topics can give as many distinct prompts as the counts ask for, and with how much variety."""

from __future__ import annotations

import math

from speedlit.pipeline.config import RunConfig
from speedlit.synthesis.stages.common import COUNTS
from speedlit.synthesis.stages.tasks import USES
from speedlit.synthesis.templates import PLACEHOLDER, PromptSet, Template


def wordings(template: Template) -> int:
    """At most so many distinct prompts for one task: all values of the knobs that show, times the orders of the lines."""
    shown = set(PLACEHOLDER.findall("\n".join([template.text, template.system or "", *(line.text for line in template.lines)])))
    knobs = math.prod(len(set(knob.values)) + (knob.probability < 1) for name, knob in template.knobs.items() if name in shown)
    lines = math.prod(2 if line.probability < 1 else 1 for line in template.lines)
    return knobs * lines * (math.factorial(len(template.lines)) if template.shuffle else 1)


def shortfalls(config: RunConfig, templates: PromptSet, topics: int) -> list[str]:
    """One line per use and kind whose count the topics cannot give, as the ``tasks`` stage would say it later."""
    out = []
    share = {"test": config.tasks.test, "validation": config.tasks.validation, "train": 1 - config.tasks.test - config.tasks.validation}
    for use, place in USES.items():
        name = COUNTS.get(use, use)
        for kind, wanted in templates.shares(getattr(config.counts, name)).items():
            per_topic = config.tasks.per_topic if templates[kind].input == "task" else 1
            most = math.ceil(topics * per_topic * share[place]) * wordings(templates[kind])
            if wanted > most:
                held = f" or tasks.{place}" if place != "train" else ""
                remedy = f"give more topics, raise tasks.per_topic{held}, or lower the count"
                out.append(f"counts.{name} asks for {wanted:,} {kind} prompts, but {topics:,} topics give at most {most:,} distinct ones: {remedy}")
    return out


def prompts_per_task(config: RunConfig, templates: PromptSet, topics: int) -> dict[str, float]:
    """How many synthetic prompts each training task gets, by kind; the paper's way is about 1."""
    train = 1 - config.tasks.test - config.tasks.validation
    per_topic = {kind: config.tasks.per_topic if templates[kind].input == "task" else 1 for kind in templates}
    return {kind: count / max(topics * per_topic[kind] * train, 1) for kind, count in templates.shares(config.counts.synthesis).items()}


def topics_needed(config: RunConfig, templates: PromptSet) -> int:
    """Topics for which no task gets more than one synthetic prompt."""
    return math.ceil(max(prompts_per_task(config, templates, 1_000_000).values()) * 1_000_000)
