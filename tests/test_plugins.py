"""A third-party package adds a module, a data source, a callback and a loss without a change here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from speedlit.data.shards import write_shards
from speedlit.modules.dpo import find_loss
from tests.helpers import preference_rows, tiny_llama

EXAMPLE = Path(__file__).parent / "plugin_example"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package installed in ``site``, a base, shards, and a recipe."""
    root = tmp_path_factory.mktemp("plugin")
    shutil.copytree(EXAMPLE, root / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(root / "site")]
    subprocess.run([*pip, str(root / "source")], check=True, capture_output=True)
    tiny_llama(root / "base")
    write_shards(preference_rows(32), root / "pairs", "preference")
    (root / "reward.yaml").write_text(
        f"seed_everything: 3\nmodel:\n  class_path: RewardModule\n  init_args: {{backbone: {{name: {root / 'base'}}}, adapter: {{class_path: LoRA, "
        f"init_args: {{r: 4}}}}}}\noptimizer: {{class_path: AdamW, init_args: {{lr: 0.01}}}}\ndata: {{class_path: ShortPairs, init_args: {{shards: "
        f"{root / 'pairs'}}}}}\ntrainer: {{accelerator: cpu, max_steps: 4, callbacks: [{{class_path: Margins}}]}}\n"
    )
    return root


def call(place: Path, *words: str) -> str:
    """Standard output of a command line in a process that sees the package."""
    paths = os.pathsep.join([str(place / "site"), str(Path(__file__).parent.parent)])
    done = subprocess.run([sys.executable, "-m", "speedlit", *words], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, cwd=place)
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses(folder: Path) -> list[float]:
    return [float(line.split()[1]) for line in (folder / "margins.txt").read_text().splitlines()]


def test_it_is_listed(place: Path) -> None:
    shown = call(place, "list")
    for name in ("RewardModule", "ShortPairs", "Margins", "margin_loss"):
        assert f"  {name} " in shown


def test_its_module_data_and_callback_train_by_their_short_names(place: Path) -> None:
    fit = ("fit", "--config", "reward.yaml", "--trainer.default_root_dir")
    call(place, *fit, "straight")
    straight = losses(place / "straight")
    assert len(set(straight)) == 4
    assert (place / "straight" / "model" / "score.safetensors").is_file()


def test_its_loss_is_named_like_ours(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(place / "site"))
    assert find_loss("margin_loss")(torch.ones(2), torch.zeros(2), 1.0).tolist() == pytest.approx([0.3133, 0.3133], abs=1e-4)
    assert find_loss("speedlit_example.parts.margin_loss") is find_loss("margin_loss")
