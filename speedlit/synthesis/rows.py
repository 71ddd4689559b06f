"""Training rows out of records: what the shards of junior, senior and revisor hold.

A completion is one line of JSON with its keys in the order the prompt names them, spelled as a writer spells it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from speedlit.files import content_id
from speedlit.records import Preference, Prompt, Record, Revision
from speedlit.synthesis.parsing import dumps
from speedlit.synthesis.templates import PromptSet


def sft_rows(prompts: Iterable[Prompt], records: Iterable[Record]) -> Iterator[dict[str, Any]]:
    """``{id, prompt, completion}``: the junior learns to write each record from its prompt."""
    by_id = {prompt.id: prompt for prompt in prompts}
    for record in records:
        prompt = by_id[record.prompt_id]
        yield {"id": record.id, "prompt": prompt.text, "completion": dumps(record.fields, prompt.keys)}


def preference_rows(prompts: Iterable[Prompt], records: Iterable[Record], preferences: Iterable[Preference]) -> Iterator[dict[str, Any]]:
    """``{id, prompt, chosen, rejected}``: the senior learns to prefer the better of two records."""
    by_id = {prompt.id: prompt for prompt in prompts}
    record_of = {record.id: record for record in records}
    for preference in preferences:
        prompt = by_id[preference.prompt_id]
        chosen, rejected = (dumps(record_of[name].fields, prompt.keys) for name in (preference.chosen, preference.rejected))
        yield {"id": preference.id, "prompt": prompt.text, "chosen": chosen, "rejected": rejected}


def revision_rows(prompts: Iterable[Prompt], revisions: Iterable[Revision], templates: PromptSet, form: str = "edits") -> Iterator[dict[str, Any]]:
    """``{id, prompt, completion}``: the revisor learns from what the teacher changed, and from what it left alone.

    Args:
        form: ``edits`` (a list of small changes) or ``full`` (the whole record anew).
    """
    by_id = {prompt.id: prompt for prompt in prompts}
    for revision in revisions:
        if revision.status == "fallback":  # the teacher's revision was unusable: nothing to learn
            continue
        prompt = by_id[revision.prompt_id]
        before = dumps(revision.before, prompt.keys)
        completion = dumps_edits(revision.edits) if form == "edits" else f'{{"revision": {dumps(revision.after, prompt.keys)}}}'
        question = templates.roles["revise"].revision(prompt.text, before, form)[-1]["content"]
        yield {"id": content_id([revision.id, form]), "prompt": question, "completion": completion}


def dumps_edits(edits: list[list[str]]) -> str:
    """Edits as one line of JSON."""
    return json.dumps({"edits": edits}, ensure_ascii=False)
