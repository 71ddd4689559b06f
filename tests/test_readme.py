"""The README tells the truth: its tree is the tree (its commands: test_docs.py)."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_first_commands_are_make_demo_and_make_test() -> None:
    code = [line.strip() for line in README.splitlines() if line.startswith("    ")]
    assert code[0].startswith("make demo")
    assert code[1].startswith("make test")
    for target, part in (("demo", "run --config demo"), ("test", "pytest"), ("help", "grep"), ("lint", "ruff"), ("docs", "mkdocs")):
        out = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert part in out


def test_the_tree_names_what_exists() -> None:
    tree = README.split("## Where everything is")[1].split("```")[1]
    for line in tree.splitlines():
        if match := re.match(r"^(\s*)([\w./]+\.py|[\w]+/)\s", line):
            name = match[2] if not match[1] else f"speedlit/{match[2]}"
            assert (ROOT / name).exists(), line


def test_no_path_of_one_machine_is_committed() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in files:
        path = ROOT / name
        if path.is_file() and path.suffix in (".py", ".yaml", ".md", ".toml", ".json", ".sh"):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"(?<![\w.>}])/(work|root|home)/\w", text) or name == "tests/test_readme.py", name
