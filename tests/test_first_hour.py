"""A person's first hour: docs/quickstart.md, block after block, with an installed wheel, an empty home and no network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.blocks import ROOT, blocks, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def pip(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The folder into which a wheel of the tracked files was installed; the libraries are those at hand."""
    source, wheels, site = tmp_path / "source", tmp_path / "wheels", tmp_path / "site"
    for name in subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (ROOT / name).exists() and not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name, follow_symlinks=False)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(source))
    pip("install", "--no-deps", "--no-index", "--target", str(site), str(next(wheels.glob("speedlit-*.whl"))))
    shutil.rmtree(source)
    return site


def test_the_first_hour(installed: Path, tmp_path: Path) -> None:
    home, place = tmp_path / "home", tmp_path / "somewhere"
    home.mkdir()
    place.mkdir()
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
    printed = [run(block, place, env) for block in blocks(ROOT / "docs/quickstart.md") if not block.why]
    assert any("What" in text for text in printed), "transformers wrote on from the prompt"
    assert "<table" in (place / "runs/smoke/report.html").read_text(encoding="utf-8")
    assert not (place / "runs/sums/model/model.safetensors").exists(), "LoRA leaves the adapter alone"
    assert (place / "runs/sums/model/adapter_model.safetensors").is_file()
    assert (place / "my-generator/model.safetensors").is_file()
    scores = [json.loads(path.read_text(encoding="utf-8")) for path in (place / "results").rglob("Arithmetic.json")]
    assert 0 < scores[0]["scores"]["test"][0]["main_score"] <= 1
