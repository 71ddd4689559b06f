"""Local sampling: the same as transformers where it is greedy, and samples that depend on their own key alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from speedlit.context import Reply, Request, Sampling
from speedlit.errors import SpeedlitError
from speedlit.generation.local import LocalBackend, gumbel, pick
from tests.helpers import sentence, tiny_llama, tiny_mistral, tiny_qwen3


def requests(count: int, samples: int = 1, **sampling: float) -> list[Request]:
    settings = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 24, "seed": 3, **sampling}
    return [
        Request(f"r{i}", [{"role": "user", "content": sentence(i, 3 + i % 9)}], Sampling(**settings), index)
        for i in range(count)
        for index in range(samples)
    ]  # fmt: skip


def generate(folder: Path, wanted: list[Request], **settings: object) -> list[Reply]:
    backend = LocalBackend(folder, **{"batch_size": 8, "device": "cpu", **settings})
    try:
        return list(backend.generate(wanted))
    finally:
        backend.close()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("make", [tiny_llama, tiny_mistral, tiny_qwen3])
def test_greedy_equals_transformers(make: object, tmp_path: Path) -> None:
    """Padding, the growing cache, shared prompts and departed rows change nothing, also with sliding windows."""
    folder = make(tmp_path / "model")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    wanted = requests(9, 2, temperature=0.0, max_tokens=40)
    for request, reply in list(zip(wanted, generate(folder, wanted), strict=True))[::2]:
        ids = torch.tensor([[1, *tokenizer(request.messages[-1]["content"], add_special_tokens=False)["input_ids"]]])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, eos_token_id=2, pad_token_id=0)[0, ids.shape[1] :]
        assert reply.text == tokenizer.decode(out, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert reply.finish_reason == ("stop" if out[-1] == 2 else "length")
        assert (reply.tokens_in, reply.tokens_out) == (ids.shape[1], len(out))


def test_a_sample_does_not_depend_on_its_batch(llama: Path) -> None:
    wanted = requests(40, 2)
    whole = {(r.id, r.index): r.text for r in generate(llama, wanted)}
    assert len(set(whole.values())) > 70, "samples differ"
    for settings, subset in (({"batch_size": 3}, wanted), ({"window": 16}, wanted[::-1]), ({}, wanted[7:29:3])):
        assert {(r.id, r.index): r.text for r in generate(llama, subset, **settings)} == {(r.id, r.index): whole[r.id, r.index] for r in subset}


def test_replies_come_in_the_order_of_the_requests(llama: Path) -> None:
    wanted = requests(30, 3)
    assert [(r.id, r.index) for r in generate(llama, iter(wanted), window=32)] == [(r.id, r.index) for r in wanted]


def test_another_seed_gives_other_samples(llama: Path) -> None:
    first, second = generate(llama, requests(20)), generate(llama, requests(20, seed=4))
    assert sum(a.text != b.text for a, b in zip(first, second, strict=True)) > 15


SCRIPT = """
import json, multiprocessing, sys
from tests.generation.test_local import LocalBackend, requests
if __name__ == "__main__":
    backend = LocalBackend(sys.argv[1], batch_size=8, processes=2, window=32, device="cpu")
    texts = [reply.text for reply in backend.generate(requests(40, 2))]
    print(json.dumps([texts, [child.pid for child in multiprocessing.active_children()]]), flush=True)
    input()
"""


@pytest.mark.slow
def test_workers_give_what_one_process_gives_and_end_with_a_killed_run(llama: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    pipes = {"stdout": subprocess.PIPE, "stdin": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, str(script), str(llama)], **pipes, text=True, env=environment)
    assert process.stdout is not None and process.stdin is not None
    texts, workers = json.loads(process.stdout.readline())
    assert texts == [r.text for r in generate(llama, requests(40, 2), window=32)]
    assert len(workers) == 2
    process.kill()
    process.wait()
    process.stdout.close()
    process.stdin.close()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(_runs(pid) for pid in workers):
        time.sleep(0.2)
    assert not any(_runs(pid) for pid in workers)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False


def test_ways_of_sampling_can_be_mixed(llama: Path) -> None:
    wanted = requests(6) + requests(6, temperature=0.0) + requests(6, max_tokens=5)
    replies = generate(llama, wanted)
    assert [r.text for r in replies[6:12]] == [r.text for r in generate(llama, wanted[6:12])]
    assert all(r.tokens_out <= 5 for r in replies[12:])


def test_tokens_are_drawn_with_their_probabilities() -> None:
    rows = 40_000
    logits = torch.log(torch.tensor([[0.5, 0.0, 0.3, 0.2]])).repeat(rows, 1)
    keys = torch.randint(-(2**62), 2**62, (rows,), generator=torch.Generator().manual_seed(0))

    def share(temperature: float, top_p: float, step: int = 0) -> torch.Tensor:
        return torch.bincount(pick(logits, keys, step, temperature, top_p), minlength=4) / rows

    assert torch.allclose(share(1.0, 1.0), torch.tensor([0.5, 0.0, 0.3, 0.2]), atol=0.01) and share(1.0, 1.0)[1] == 0
    assert torch.allclose(share(1.0, 0.7), torch.tensor([0.625, 0.0, 0.375, 0.0]), atol=0.01)
    assert torch.allclose(share(0.5, 1.0), torch.tensor([0.25, 0.0, 0.09, 0.04]) / 0.38, atol=0.01)
    assert share(0.0, 1.0).tolist() == [1.0, 0.0, 0.0, 0.0]
    first, second = (pick(logits, keys, step, 1.0, 1.0) for step in (0, 1))
    assert abs((first == second).double().mean() - 0.38) < 0.01, "steps are independent"


def test_noise_is_never_infinite() -> None:
    """The hash of this key has 24 zero bits in this column. Infinite noise would draw the token whatever the model says."""
    noise = gumbel(torch.tensor([212]), 0, 7181)
    assert torch.isfinite(noise).all() and noise[0, 7180] > 17
    logits = torch.full((1, 7181), -torch.inf)
    logits[0, 5] = 0.0
    assert pick(logits, torch.tensor([212]), 0, 1.0, 1.0).item() == 5


def test_noise_is_gumbel_and_its_rows_are_unrelated() -> None:
    noise = gumbel(torch.arange(8), 5, 100_000)  # neighbouring keys are the hardest
    assert torch.allclose(noise.mean(1), torch.full((8,), 0.5772), atol=0.02) and torch.allclose(noise.var(1), torch.full((8,), 1.6449), atol=0.05)
    assert noise.isfinite().all()
    assert (torch.corrcoef(noise) - torch.eye(8)).abs().max() < 0.02
    assert torch.equal(noise[3:4, :50], gumbel(torch.tensor([3]), 5, 50)), "a column's noise depends on its own number only"


def test_a_prompt_without_room_is_an_error_of_that_request(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "short", max_position_embeddings=24)
    wanted = [Request("a", [{"role": "user", "content": sentence(1, 60)}], Sampling(seed=1, max_tokens=30)), *requests(3)]
    replies = generate(folder, wanted)
    assert replies[0].error == "prompt_too_long" and replies[0].text == ""
    assert all(not r.error and r.tokens_in + r.tokens_out <= 24 for r in replies[1:])


def test_a_folder_without_model_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SpeedlitError) as caught:
        generate(tmp_path / "nothing", requests(1))
    assert "\n" not in str(caught.value)
