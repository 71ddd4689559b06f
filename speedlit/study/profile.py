"""``--profile small``: the section ``study`` of another recipe, laid over the config's."""

from __future__ import annotations

import json

from speedlit.errors import UsageError
from speedlit.pipeline.yamlfiles import find_recipe, read_yaml, shipped


def words(profile: str | None) -> list[str]:
    """The profile as words of a command line, which later words win over.

    Raises:
        UsageError: no such profile, or a recipe without a section ``study`` or with another one.
    """
    if profile is None:
        return []
    name = f"study/{profile}" if f"study/{profile}" in shipped() else profile
    if name == profile and not profile.endswith((".yaml", ".yml")):
        known = ", ".join(recipe.removeprefix("study/") for recipe in shipped() if recipe.startswith("study/"))
        raise UsageError(f"--profile {profile}: there is no such profile; choose {known}, or name a YAML file")
    path = find_recipe(name)
    values = read_yaml(path)
    if set(values) != {"study"} or not isinstance(values["study"], dict):
        raise UsageError(f"{path} is no profile of a study: it must hold the section `study` and nothing else")
    return [word for key, value in values["study"].items() for word in (f"--study.{key}", value if isinstance(value, str) else json.dumps(value))]
