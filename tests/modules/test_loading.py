"""What a process under fsdp holds at most while a large base is loaded: its share and one slice, not the whole model."""

from __future__ import annotations

import ctypes
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import barrier

from scripts.bench.memory import status
from speedlit.data.shards import write_shards
from speedlit.files import read_json, write_json
from speedlit.modules import base
from speedlit.pipeline import fitting
from tests.helpers import sft_rows, tiny_llama
from tests.modules.recipes import in_ranks, recipe

fit = partial(fitting.fit, progress=False)


def loads(settings: dict[str, Any], place: Path, whole: bool) -> None:
    """The beginning of a fit; leaves how far the resident memory rose at most while its network was made, in MiB."""
    load = base.SpeedModule.configure_model

    def watched(module: Any) -> None:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier tests have freed would take up what is loaded
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        load(module)
        write_json(place / f"risen.{os.environ['RANK']}.json", status("VmHWM") - before)
        barrier()
        os._exit(0)  # no step is needed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base.SpeedModule, "configure_model", watched)
        if whole:
            patch.setattr(base, "to_be_filled", lambda *_: None)
        fit(settings, place)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the kernel doesn't let a process reset its memory's peak")
def test_a_rank_never_holds_a_large_base_whole(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "base", hidden_size=1024, intermediate_size=4096, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=8)
    size = (tmp_path / "base" / "model.safetensors").stat().st_size / 2**20
    assert 350 < size < 450
    write_shards(sft_rows(4), tmp_path / "sft", "sft")
    trainer = {"max_epochs": None, "max_steps": 1, "devices": 2, "strategy": "fsdp"}
    settings = recipe(tmp_path, "sft", data={"batch_size": 2, "micro_batch": 1}, trainer=trainer)
    for name in ("slices", "whole"):
        assert in_ranks(2, loads, settings, tmp_path / name, name == "whole") == [0, 0]
    risen = {name: [read_json(tmp_path / name / f"risen.{rank}.json") / size for rank in (0, 1)] for name in ("slices", "whole")}
    assert all(share < 0.7 for share in risen["slices"]), risen  # half of the weights, one slice, and what adapters take
    assert all(share > 1.0 for share in risen["whole"]), risen
