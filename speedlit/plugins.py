"""What installed packages add: entry points of the group ``speedlit.plugins``, each a name that a config can use for a class, a function or a prompt set."""

from __future__ import annotations

import traceback
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from speedlit.errors import UsageError

GROUP = "speedlit.plugins"


def plugins() -> dict[str, str]:
    """Name -> dotted path of every plug-in; nothing is imported.

    Raises:
        UsageError: two packages give one name to different things.
    """
    found: dict[str, str] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        path = point.value.replace(":", ".")
        if found.setdefault(point.name, path) != path:
            raise UsageError(f"two plug-ins are named {point.name}: {found[point.name]} and {path}; uninstall one, or name the full path and rename it")
    return found


def load(name: str, key: str) -> Any:
    """The class or function behind a plug-in's name or a dotted path.

    Args:
        name: of a plug-in, or ``package.module.attribute``.
        key: of the config, for the message.

    Raises:
        UsageError: there is none.
    """
    path = plugins().get(name, name)
    module, _, attribute = path.rpartition(".")
    if not module:
        near = "".join(f"did you mean `{other}`? " for other in get_close_matches(name, plugins(), n=1))
        raise UsageError(f"{key} is {name!r}, and no installed plug-in is called so; {near}`speedlit list` names them, or give a path: package.module.Class")
    try:
        return getattr(import_module(module), attribute)
    except Exception as error:  # noqa: BLE001 (other people's code fails in any way it likes)
        raise UsageError(f"{key} {path} can't be imported: {failure(error)}") from error


def failure(error: Exception) -> str:
    """Why an import failed; where it is the imported code that failed, with its file and line."""
    if isinstance(error, (ImportError, AttributeError)):
        return str(error)
    at = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{error.filename}:{error.lineno}" if isinstance(error, SyntaxError) else f"{at.filename}:{at.lineno}"
    return f"{type(error).__name__} in {place}: {error.msg if isinstance(error, SyntaxError) else error}"


def folder(name: str) -> Path | None:
    """The folder of a plug-in that is a package with files; None where no plug-in is called so.

    Raises:
        UsageError: what it names is no package.
    """
    path = plugins().get(name)
    if path is None:
        return None
    try:
        spec = find_spec(path)
    except ImportError as error:
        raise UsageError(f"the plug-in {name} can't be had: {error}") from error
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise UsageError(f"the plug-in {name} is {path}, and that is no package: a prompt set is a package that holds YAML files")
    return Path(places[0])
