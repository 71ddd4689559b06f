"""The fast paths compute what the plain network computes: values and gradients, in float32 to 1e-5, in bfloat16 as near to the truth."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from speedlit.models import attention, fast
from speedlit.models.adapter import LoRA
from speedlit.models.backbone import Backbone, hidden_states
from speedlit.modules.base import output_head
from tests.helpers import tiny_bert, tiny_llama, tiny_mistral, tiny_qwen3

MAKERS: dict[str, Any] = {"llama": tiny_llama, "mistral": tiny_mistral, "qwen3": tiny_qwen3, "bert": tiny_bert}


def adapted(folder: Path, kind: str, attend: str = "causal", dropout: float = 0.0, **over: Any) -> Any:
    """A network with a LoRA whose B is not zero."""
    place = MAKERS[kind](folder / kind, **over)
    model = LoRA(4, 8, dropout).apply(Backbone(str(place), attention=attend).build(head=kind != "bert")).train()
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


def sums(model: Any, ids: torch.Tensor, mask: torch.Tensor | None, mixed: bool = False) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Hidden states at real tokens, and the gradient of a fixed function of them."""
    torch.manual_seed(2)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        hidden = hidden_states(model, ids, mask)
    real = hidden if mask is None else hidden * mask[..., None]
    (real.float().sin() * torch.linspace(-1, 1, hidden.shape[-1])).sum().backward()
    return real.detach(), {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def batch(length: int = 12, padded: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
    ids = torch.randint(3, 390, (3, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0
    return ids, mask if padded else None


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("kind", "attend"), [*((k, "causal") for k in ("llama", "mistral", "qwen3")), ("llama", "bidirectional"), ("bert", "bidirectional")])
def test_fast_equals_plain(tmp_path: Path, kind: str, attend: str, padded: bool) -> None:
    plain = adapted(tmp_path, kind, attend)
    quick = copy.deepcopy(plain)
    assert fast.speed_up(quick) >= 12  # all linear layers, and in decoders of a known family their blocks
    ids, mask = batch(padded=padded)
    (one, grads), (two, others) = sums(plain, ids, mask), sums(quick, ids, mask)
    assert torch.allclose(one, two, atol=1e-5)
    assert grads.keys() == others.keys() != set()
    for name, grad in grads.items():
        assert torch.allclose(grad, others[name], atol=1e-5 * float(grad.abs().max()) + 1e-7), name
    # in mixed precision both round, each in its own places: neither may be further from the truth
    (_, rough), (_, quick_rough) = sums(plain, ids, mask, mixed=True), sums(quick, ids, mask, mixed=True)
    error = lambda found: sum(float((found[n] - g).square().sum()) for n, g in grads.items()) ** 0.5  # noqa: E731
    assert error(quick_rough) < 1.3 * error(rough)


@pytest.mark.parametrize("attend", ["causal", "bidirectional"])
def test_rows_of_several_blocks(tmp_path: Path, attend: str) -> None:
    """With a mask as well, a causal block computes only what comes before its end, and one that attends both ways computes all."""
    plain = adapted(tmp_path, "llama", attend)
    quick = copy.deepcopy(plain)
    fast.speed_up(quick)
    ids, mask = batch(2 * attention.BLOCK + 20, padded=True)
    assert mask is not None
    (_, grads), (_, rough), (_, others) = sums(plain, ids, mask.flip(1)), sums(plain, ids, mask.flip(1), mixed=True), sums(quick, ids, mask.flip(1), mixed=True)
    error = lambda found: sum(float((found[n] - g).square().sum()) for n, g in grads.items()) ** 0.5  # noqa: E731
    assert error(others) < 1.3 * error(rough)


@pytest.mark.parametrize("attend", ["causal", "bidirectional"])
def test_only_what_is_read_is_computed_in_the_last_layer(tmp_path: Path, attend: str) -> None:
    """The states that are asked for, and the gradients of all adapters, are those of the whole network; the others are left out."""
    plain = adapted(tmp_path, "llama", attend)
    quick = copy.deepcopy(plain)
    fast.speed_up(quick)
    ids, mask = batch(padded=True)
    wanted = (torch.tensor([0, 0, 1, 2]), torch.tensor([3, 11, 5, 0]))
    found = []
    for model in (plain, quick):
        hidden = hidden_states(model, ids, mask, wanted=wanted)
        hidden[wanted].sin().sum().backward()
        found.append((hidden, [weight.grad for weight in model.parameters() if weight.requires_grad]))
    (one, grads), (two, others) = found
    assert torch.allclose(one[wanted], two[wanted], atol=1e-5)
    assert not two[2, 5].any() and one[2, 5].any()
    assert all(torch.allclose(grad, other, atol=1e-5) for grad, other in zip(grads, others, strict=True))


def test_dropout_of_the_update_is_kept(tmp_path: Path) -> None:
    plain = adapted(tmp_path, "llama", dropout=0.5)
    quick = copy.deepcopy(plain)
    fast.speed_up(quick)
    (one, grads), (two, others) = sums(plain, *batch()), sums(quick, *batch())
    assert torch.allclose(one, two, atol=1e-5)
    assert all(torch.allclose(grad, others[name], atol=1e-4) for name, grad in grads.items())
    assert not torch.allclose(one, sums(quick.eval(), *batch())[0], atol=1e-3)


def test_the_adapter_can_be_switched_off_and_frozen_weights_may_change(tmp_path: Path) -> None:
    model = adapted(tmp_path, "llama")
    bare = Backbone(str(tmp_path / "llama")).build(head=True)
    fast.speed_up(model)
    ids, _ = batch()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with model.disable_adapter():
            assert torch.allclose(hidden_states(model, ids, None), hidden_states(bare, ids, None), atol=0.05)
        before = hidden_states(model, ids, None)
        layer = model.get_base_model().model.layers[0].mlp.down_proj.get_base_layer()
        layer.weight.mul_(3)
        assert not torch.allclose(before, hidden_states(model, ids, None), atol=0.05)  # the kept cast is made anew


def test_what_is_not_recognised_stays_plain(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    place = tiny_llama(tmp_path / "llama")
    model = get_peft_model(Backbone(str(place)).build(head=True), LoraConfig(r=4, use_dora=True, target_modules=["q_proj"]))
    quick = copy.deepcopy(model)
    fast.speed_up(quick)
    (one, grads), (two, others) = sums(model, *batch()), sums(quick, *batch())
    assert torch.allclose(one, two, atol=1e-5)
    assert all(torch.allclose(grad, others[name], atol=1e-5) for name, grad in grads.items())


def test_the_head_is_not_touched(tmp_path: Path) -> None:
    model = adapted(tmp_path, "llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fast.speed_up(model)
    sums(model, *batch(), mixed=True)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())
    assert output_head(model)[0].dtype == torch.float32
    model.save_pretrained(tmp_path / "saved")
    model.get_base_model().config.save_pretrained(tmp_path / "config")
    assert attention.NAME not in (tmp_path / "config" / "config.json").read_text() + (tmp_path / "saved" / "adapter_config.json").read_text()


@pytest.mark.parametrize("shape", ["causal", "full", "bool mask", "float mask", "causal float mask"])
@pytest.mark.parametrize("length", [5, 400])
def test_attention_equals_torch(shape: str, length: int) -> None:
    generator = torch.Generator().manual_seed(3)
    q, k, v, grad = (torch.randn(2, 3, length, 8, generator=generator) for _ in range(4))
    mask = None
    if "mask" in shape:
        mask = torch.rand(2, 1, length, length, generator=generator) > 0.3
        mask |= torch.eye(length, dtype=torch.bool)
    if "float" in shape and mask is not None:
        mask = mask.tril() if "causal" in shape else mask
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    found = []
    for attend in (attention.attend, lambda q, k, v, m, c: scaled_dot_product_attention(q, k, v, m, is_causal=c and m is None)):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = attend(*leaves, mask, "causal" in shape)
        found.append([out.detach(), *torch.autograd.grad(out, leaves, grad)])
    for one, two in zip(*found, strict=True):
        assert torch.allclose(one, two, atol=1e-5)
