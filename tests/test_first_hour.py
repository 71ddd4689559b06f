"""A person's first hour: docs/quickstart.md, block after block, with an installed wheel, an empty home and no network.

Here without the demo, which takes minutes; tests/long/test_first_hour.py runs it all.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.blocks import ROOT, blocks, run, wrapper

QUICKSTART = ROOT / "docs/quickstart.md"


def pip(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def install(folder: Path) -> Path:
    """The folder into which a wheel of the tracked files was installed; the libraries are those at hand."""
    source, wheels, site = folder / "source", folder / "wheels", folder / "site"
    for name in subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (ROOT / name).exists() and not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name, follow_symlinks=False)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(source))
    pip("install", "--no-deps", "--no-index", "--target", str(site), str(next(wheels.glob("speedlit-*.whl"))))
    shutil.rmtree(source)
    return site


def fresh(folder: Path) -> tuple[Path, dict[str, str]]:
    """An empty folder to work in, and the environment of somebody who has installed speedlit and nothing else."""
    installed, home, place = install(folder), folder / "home", folder / "somewhere"
    home.mkdir()
    place.mkdir()
    wrapper(installed / "bin/python", sys.executable)
    keep = ("LANG", "TMPDIR", "SSL_CERT_FILE")
    env = {
        **{name: os.environ[name] for name in keep if name in os.environ},
        "HOME": str(home),
        "PATH": f"{installed / 'bin'}:/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": str(installed),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    where = subprocess.run([sys.executable, "-c", "import speedlit; print(speedlit.__file__)"], cwd=place, env=env, capture_output=True, text=True, check=True)
    assert where.stdout.startswith(str(installed)), "the wheel is what runs, not the repository"
    return place, env


def check_hour(place: Path, printed: list[str]) -> None:
    """What somebody has after an hour."""
    assert any("What" in text for text in printed), "transformers wrote on from the prompt"
    assert "<table" in (place / "runs/smoke/report.html").read_text(encoding="utf-8")
    assert not (place / "runs/sums/model/model.safetensors").exists(), "LoRA leaves the adapter alone"
    assert (place / "runs/sums/model/adapter_model.safetensors").is_file()
    assert (place / "my-generator/model.safetensors").is_file()
    scores = [json.loads(path.read_text(encoding="utf-8")) for path in (place / "results").rglob("Arithmetic.json")]
    assert 0 < scores[0]["scores"]["test"][0]["main_score"] <= 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_first_hour_but_for_the_demo(tmp_path: Path) -> None:
    place, env = fresh(tmp_path)
    check_hour(place, [run(block, place, env) for block in blocks(QUICKSTART) if not block.mark])
