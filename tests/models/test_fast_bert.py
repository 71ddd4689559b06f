import torch
from transformers import BertModel

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
