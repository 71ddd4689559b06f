"""What a step needs is counted by its matrices."""

from __future__ import annotations

from pathlib import Path

from scripts.bench.data import build_model, needed
from speedlit.models.adapter import LoRA
from speedlit.models.backbone import Backbone
from speedlit.models.flops import matrix_sizes, step_flops


def test_the_count_of_a_real_network_is_that_of_the_bench(tmp_path: Path) -> None:
    model = LoRA(16, 32).apply(Backbone(str(build_model(tmp_path, 64))).build(head=True))
    frozen, trained, head = matrix_sizes(model)
    assert (head, trained) == (64 * 384, sum(weight.numel() for weight in model.parameters() if weight.requires_grad))
    assert step_flops(model, 100, 30) == 100 * (4 * frozen + 6 * trained) + 30 * 4 * head == needed(100, 30, 64)
