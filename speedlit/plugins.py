"""What installed packages add: entry points of the group ``speedlit.plugins``, each a name that a config can use for a class or a function."""

from __future__ import annotations

from importlib.metadata import entry_points

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
