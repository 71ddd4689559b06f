"""A text that equals the positive or the query is never a negative."""

from __future__ import annotations

import torch

from speedlit.losses.contrastive import DIRECTIONS, allowed_documents, allowed_queries, candidates, info_nce, without_false_negatives


def masks(texts: list[list[int]], asked: list[int], query_text: list[int], **options: bool) -> list[list[int]]:
    t, a, q = torch.tensor(texts), torch.tensor(asked), torch.tensor(query_text)
    settings = {"in_batch": True, "mask_equal": True, **options}
    return allowed_documents(t, a, q, t, a, 0, **settings).int().tolist()


def test_equal_texts_are_masked() -> None:
    texts = [[10, 11], [10, 12], [13, 20]]  # the second row's positive equals the first's; the third's negative equals the first's query
    assert masks(texts, [1, 2, 3], [20, 21, 22]) == [[0, 1, 0, 1, 1, 0], [0, 1, 0, 1, 1, 1], [1, 1, 1, 1, 0, 1]]
    assert masks(texts, [1, 2, 3], [20, 21, 22], mask_equal=False) == [[1] * 6] * 3


def test_the_positive_of_the_same_question_is_no_negative() -> None:
    assert masks([[10, 11], [12, 13]], [5, 5], [50, 50]) == [[0, 1, 0, 1], [0, 1, 0, 1]]


def test_empty_slots_never_count_and_in_batch_can_be_off() -> None:
    assert masks([[10, 0], [12, 13]], [1, 2], [50, 51], mask_equal=False) == [[1, 0, 1, 1], [1, 0, 1, 1]]
    assert masks([[10, 11], [12, 13]], [1, 2], [50, 51], in_batch=False) == [[0, 1, 0, 0], [0, 0, 0, 1]]


def test_queries_with_the_same_text_or_positive_are_no_negatives_backwards() -> None:
    texts, asked = torch.tensor([[10, 11], [10, 12], [13, 14]]), torch.tensor([1, 2, 1])
    assert allowed_queries(texts, asked, texts, asked, True).int().tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_a_masked_document_gets_no_gradient_and_the_positive_always_counts() -> None:
    torch.manual_seed(0)
    query, documents = torch.randn(1, 4), torch.randn(3, 4, requires_grad=True)
    matched = {"query_to_doc": torch.tensor([0])}

    def loss(allowed: list[bool]) -> torch.Tensor:
        return info_nce({"query_to_doc": query @ documents.T}, {"query_to_doc": torch.tensor([allowed])}, matched, 0.5)

    loss([True, True, False]).sum().backward()
    assert documents.grad[2].abs().sum() == 0
    assert documents.grad[0].abs().sum() > 0
    assert loss([True, False, False]).item() == 0.0


def test_each_direction_has_its_own_candidates() -> None:
    texts, asked = torch.tensor([[10, 11], [12, 13], [10, 0], [0, 0]]), torch.tensor([1, 2, 3, 0])  # the last place is empty
    found, matched = candidates(DIRECTIONS, texts, asked, asked[:2] + 50, texts[:2], asked[:2], 0, True, True)
    assert matched["query_to_doc"].tolist() == [0, 2]
    assert found["query_to_doc"].int().tolist() == [[1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0]]
    assert found["doc_to_query"].int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]  # the third query has the first one's positive
    assert found["query_to_query"].int().tolist() == [[0, 1, 0, 0], [1, 0, 1, 0]]
    assert found["doc_to_doc"].int().tolist() == [[0, 0, 1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 1, 0, 0, 0]]


def test_candidates_nearer_than_the_positive_by_more_than_the_margin_are_dropped() -> None:
    scores = {"query_to_doc": torch.tensor([[0.5, 0.55, 0.65, 0.1]]), "query_to_query": torch.tensor([[1.0, 0.6]])}
    allowed = {name: torch.ones_like(found, dtype=torch.bool) for name, found in scores.items()}
    matched = {"query_to_doc": torch.tensor([0])}
    found = without_false_negatives(scores, allowed, matched, 0.1)
    assert found["query_to_doc"].tolist() == [[True, True, False, True]]
    assert found["query_to_query"].tolist() == [[False, True]]
    assert without_false_negatives(scores, allowed, matched, -1.0)["query_to_doc"].tolist() == [[True, False, False, False]]
