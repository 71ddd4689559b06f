"""The code blocks of README and docs: found, run as a reader would, or checked where they can't be run."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:<!-- (?P<mark>not run|long): (?P<why>[^\n]+?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
OWN = {"fit", "validate", "test", "predict"}


@dataclass(frozen=True)
class Block:
    """A fenced block with a language, and what the comment above it says: ``long`` is run by ``make test-long``, ``not run`` by no test as it stands."""

    language: str
    text: str
    mark: str = ""  # "", long or not run
    why: str = ""


def blocks(page: Path) -> list[Block]:
    """The blocks of a page in their order."""
    return [Block(m["language"], m["text"], m["mark"] or "", m["why"] or "") for m in BLOCK.finditer(page.read_text(encoding="utf-8"))]


def wrapper(path: Path, *words: str) -> None:
    """A command of that path that runs these words, and those that it is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    path.chmod(0o755)


def run(block: Block, cwd: Path, env: dict[str, str], timeout: float = 600) -> str:
    """Run bash and Python blocks in ``cwd``, write and read YAML ones; what they print comes back."""
    if block.language == "yaml":
        check_yaml(block.text, cwd)
        return ""
    words = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}[block.language]
    done = subprocess.run([*words, block.text], cwd=cwd, capture_output=True, text=True, timeout=timeout, env=env)
    assert done.returncode == 0, f"{block.text}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def check(block: Block, cwd: Path) -> None:
    """What can be known of a block that isn't run: its commands, options and keys exist."""
    if block.language == "python":
        compile(block.text, "block", "exec")
    elif block.language == "yaml":
        assert isinstance(yaml.safe_load(block.text), dict)
    else:
        for line in block.text.replace("\\\n", " ").splitlines():
            check_command(shlex.split(line, comments=True), cwd)


def check_command(words: list[str], cwd: Path) -> None:
    """Raises where the program would refuse the words."""
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    if not words or words[0] == "export":
        return
    script = next((i for i, word in enumerate(words) if word.endswith(".sbatch")), None)
    if script is not None:
        assert (ROOT / words[script]).is_file(), words[script]
        if words[script].endswith("fit.sbatch"):
            check_command(["speedlit", "fit", *words[script + 1 :]], cwd)
    elif words[0] == "make":
        subprocess.run(["make", "-n", words[1]], cwd=ROOT, check=True, capture_output=True)
    elif words[:2] == ["python", "-m"]:
        spec = importlib.util.find_spec(words[2])
        assert spec is not None, words
        folder = Path(str(spec.origin)).parent
        source = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
        assert all(word in source for word in words if word.startswith("--")), words
    elif words[0] == "speedlit":
        check_speedlit(words[1:], cwd)
    else:
        raise AssertionError(f"a command that isn't run can't be checked: {' '.join(words)}")


def check_speedlit(words: list[str], cwd: Path) -> None:
    """Loop and fits read their config with the real parser; the other commands' options have to stand in their help."""
    if words[0] in OWN - {"predict"} or words[0] == "run":
        said(*words, "--print_config", cwd=cwd)
        return
    help_text = said(words[0], "--help", cwd=cwd)
    for word in words[1:]:
        if word.startswith("--"):
            assert word.partition("=")[0] in help_text or "." in word, f"speedlit {words[0]} has no {word}"


def said(*words: str, cwd: Path) -> str:
    """What speedlit prints in this process; it has to end well."""
    from speedlit.cli import main

    out, err, before = io.StringIO(), io.StringIO(), Path.cwd()
    os.chdir(cwd)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(list(words))
            except SystemExit as end:
                code = end.code
    finally:
        os.chdir(before)
    assert code in (0, None), f"speedlit {' '.join(words)}\n{err.getvalue()}"
    return out.getvalue()


def check_yaml(text: str, cwd: Path) -> None:
    """A task kind, a part of a fit's recipe, or a part of a run's config: read as the program reads it."""
    from speedlit.pipeline.configure import parse
    from speedlit.pipeline.yamlfiles import find_recipe, merge, read_yaml
    from speedlit.synthesis.templates import load_set

    values = yaml.safe_load(text)
    named = re.match(r"# ([\w./-]+\.yaml)\n", text)
    path = cwd / (named[1] if named else "part.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    if "kind" in values:
        load_set(str(path.parent))
    elif {"model", "data", "optimizer"} & set(values):
        said("fit", "--config", "fit/demo/junior", "--config", str(path), "--print_config", cwd=cwd)
    else:  # over the paper's config where it is about money, which the embedded teacher of smoke doesn't take
        whole = cwd / "whole.yaml"
        base = "speed" if "prices" in values else "smoke"
        whole.write_text(yaml.safe_dump(merge(dict(read_yaml(find_recipe(base))), values)), encoding="utf-8")
        parse(str(whole))
