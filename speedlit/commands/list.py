"""``speedlit list``: what can be named in a config. Reads files only, imports nothing heavy."""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

from speedlit.pipeline.yamlfiles import SHORT
from speedlit.plugins import GROUP, plugins

PACKAGE = Path(__file__).resolve().parent.parent
ROOMS = {"modules": "modules", "data modules": "data.datamodules", "adapters": "models.adapter", "callbacks": "callbacks"}
TEACHERS = {
    "openai-compatible": "teacher.base_url, or OPENAI_BASE_URL and OPENAI_API_KEY",
    "embedded": "speedlit teacher serve",
    "a class": "teacher.backend: a plug-in's name, or a dotted path",
}


def run(argv: list[str]) -> int:
    """Print recipes, modules, data modules, adapters, losses, callbacks, prompt sets, stages and plug-ins."""
    parser = argparse.ArgumentParser(
        prog="speedlit list",
        description="List recipes, modules, losses, callbacks, prompt sets and plug-ins.",
        epilog="Example: speedlit list",
        allow_abbrev=False,
    )
    parser.parse_args(argv)
    print("recipes (--config NAME):")
    for path in sorted((PACKAGE / "configs").rglob("*.yaml")):
        print(f"  {path.relative_to(PACKAGE / 'configs').with_suffix('')!s:<24} {headline(path)}")
    for title, room in ROOMS.items():
        show(f"{title} (class_path; any dotted path of your own)" if title == "modules" else title, named(f"speedlit.{room}."))
    show("optimizers (any torch optimizer by its dotted path)", [(name, path) for name, path in SHORT.items() if not path.startswith("speedlit.")])
    show("losses of DPOModule (loss; any dotted path of your own)", losses())
    print("prompt sets:")
    for folder in sorted(p for p in (PACKAGE / "synthesis" / "prompts").iterdir() if p.is_dir()):
        print(f"  {folder.name:<24} {' '.join(sorted(f.stem for f in folder.glob('*.yaml')))}")
    print("teachers:")
    for name, text in TEACHERS.items():
        print(f"  {name:<24} {text}")
    found = plugins()
    print("plug-ins:" + ("" if found else f" none installed (entry-point group {GROUP})"))
    for name, dotted in found.items():
        print(f"  {name:<24} {dotted}")
    return 0


def headline(path: Path) -> str:
    """The first comment line of a recipe."""
    first = path.read_text(encoding="utf-8").splitlines()[:1]
    return first[0].lstrip("# ") if first and first[0].startswith("#") else ""


def named(room: str) -> list[tuple[str, str]]:
    """(short name, first docstring line) of the classes below a module path that a recipe can name so."""
    out = []
    for name, path in SHORT.items():
        if path.startswith(room):
            module, _, attribute = path.removeprefix("speedlit.").rpartition(".")
            body = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")).body
            found = next(node for node in body if isinstance(node, ast.ClassDef) and node.name == attribute)
            out.append((name, (ast.get_docstring(found) or "").split("\n")[0]))
    return out


def losses() -> list[tuple[str, str]]:
    """The preference losses by the names that a config gives them: what takes chosen and rejected."""
    body = ast.parse((PACKAGE / "losses" / "preference.py").read_text(encoding="utf-8")).body
    found = [node for node in body if isinstance(node, ast.FunctionDef) and [a.arg for a in node.args.args[:2]] == ["chosen", "rejected"]]
    return [(node.name, (ast.get_docstring(node) or "").split("\n")[0]) for node in found]


def show(title: str, rows: list[tuple[str, str]]) -> None:
    """One titled block."""
    print(f"{title}:")
    for name, text in rows:
        print(f"  {name:<24} {text}".replace("``", "").rstrip())
