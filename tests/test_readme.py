"""The README tells the truth: its commands run, its tree is the tree."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
LINES = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]


def test_the_first_commands_are_make_demo_and_make_test() -> None:
    code = [line.strip() for line in README.splitlines() if line.startswith("    ")]
    assert code[0].startswith("make demo")
    assert code[1].startswith("make test")
    for target, part in (("demo", "run --config demo"), ("test", "pytest"), ("help", "grep"), ("lint", "ruff")):
        out = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert part in out


@pytest.mark.slow
def test_the_commands_run_in_their_order(tmp_path: Path) -> None:
    """As written, but for the full demo, which stops after its tasks here (the smoke loop runs every stage elsewhere)."""
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    assert LINES
    for line in LINES:
        words = shlex.split(line)
        assert words[0] == "speedlit", line
        if words[1:] == ["run", "--config", "demo"]:
            words += ["--until", "tasks"]
        done = subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True, timeout=280, env=env)
        assert done.returncode == 0, f"{line}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}"


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
