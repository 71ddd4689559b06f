import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import BertModel

from speedlit.models import fast_bert
from speedlit.models.fast_bert import speed_up_bert
from tests.helpers import tiny_bert


def test_the_fast_forward_gives_the_same_hidden_states(tmp_path):
    plain = BertModel.from_pretrained(tiny_bert(tmp_path / "m")).eval()
    for dtype, near in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        fast = BertModel.from_pretrained(tmp_path / "m", dtype=dtype).eval()
        assert speed_up_bert(fast) == 1
        ids = torch.randint(3, 400, (3, 11), generator=torch.Generator().manual_seed(0))
        mask = torch.ones_like(ids)
        for real in (11, 6):  # without and with padding
            mask[1, real:] = 0
            with torch.no_grad():
                one, two = plain(ids, mask).last_hidden_state, fast(input_ids=ids, attention_mask=mask).last_hidden_state
            assert two.dtype == dtype and (one - two.float())[mask.bool()].abs().max() < near
    one = fast(ids, mask).last_hidden_state  # with gradients the class's own forward computes
    one.float().sum().backward()
    assert fast.encoder.layer[0].output.dense.weight.grad is not None


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("length", [9, 80])
@pytest.mark.parametrize("size", [1, 40])  # 40: scores that exponentials alone would not bear
def test_attention_equals_torchs_with_and_without_padding(dtype, near, length, size, monkeypatch):
    monkeypatch.setattr(fast_bert, "ROOM", 2 * 4 * 80 * 80)  # two long texts at a time, then the last one
    generator = torch.Generator().manual_seed(length)
    qkv = torch.randn(3, length, 3, 4, 8, generator=generator)
    qkv[:, :, :2] *= size**0.5
    for real in (None, torch.arange(length) < torch.tensor([[length], [1], [length - 3]])):
        mask = None if real is None else real[:, None, None, :]
        usual = scaled_dot_product_attention(*qkv.to(dtype).float().permute(2, 0, 3, 1, 4), attn_mask=mask).transpose(1, 2).reshape(3 * length, -1)
        found = fast_bert._attend(qkv.to(dtype), real)
        assert found.dtype == dtype and found.isfinite().all()
        assert (found.float() - usual).norm() < near * size**0.5 * usual.norm()


def test_one_short_text_alone_keeps_its_steep_scores():
    qkv = torch.randn(1, 6, 3, 4, 8, generator=torch.Generator().manual_seed(0)) * 12
    usual = scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4)).transpose(1, 2).reshape(6, -1)
    assert (fast_bert._attend(qkv, None) - usual).abs().max() < 1e-4
