"""The trained heads against slow reference computations."""

from __future__ import annotations

import pytest
import torch

from chamfer.models.networks.heads import (
    CrossHead,
    CrossHeadConfig,
    SparseHead,
    SparseHeadConfig,
    TokenHead,
    TokenHeadConfig,
)
from chamfer.models.networks.token_pooling import MIN_TOKEN_WEIGHT
from chamfer.models.networks.transformer import LowRankUpdate, Tower, merge_adapter
from chamfer.models.rerankers.trained import CrossModule, pair_ids


@pytest.fixture
def states() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 20, (3, 5), generator=rng)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    return torch.randn((3, 5, 8), generator=rng), ids, mask


@pytest.fixture
def sparse() -> SparseHead:
    torch.manual_seed(0)
    head = SparseHead(8, 20, 6, SparseHeadConfig())
    head.embeddings.copy_(torch.nn.functional.normalize(torch.randn(20, 6), dim=-1))
    torch.nn.init.normal_(head.bias)
    torch.nn.init.normal_(head.presence.weight)
    return head


def test_weights_of_other_terms_are_the_activated_maximum_of_all_logits(
    sparse: SparseHead, states: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    hidden, _, mask = states
    logits = (sparse.scale * sparse.transform(hidden)) @ sparse.embeddings.T + sparse.bias
    best = logits.masked_fill(mask[:, :, None] == 0, -1e9).amax(dim=1)
    torch.testing.assert_close(sparse(hidden, mask), torch.log1p(torch.log1p(torch.relu(best))))


def test_weights_of_some_terms_are_those_among_all_and_unknown_ones_have_none(
    sparse: SparseHead, states: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    hidden, _, mask = states
    terms = torch.tensor([0, 3, 4, 9, 17, 20, 25])
    weights = sparse(hidden, mask, terms)
    torch.testing.assert_close(weights[:, :5], sparse(hidden, mask)[:, terms[:5]])
    assert not weights[:, 5:].any()


def test_the_weight_of_a_present_word_is_its_saturation_times_its_largest_presence(
    sparse: SparseHead, states: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    hidden = states[0]
    at = torch.tensor([[4, -1, 4, 30, -1], [-1, -1, -1, -1, -1], [7, 4, -1, -1, -1]])
    saturation = torch.rand(3, 5)
    terms = torch.tensor([4, 7, 9, 30])
    weights = sparse.present(hidden, at, saturation, terms).detach()
    presence = torch.nn.functional.softplus(sparse.presence(hidden)).squeeze(-1).detach()
    for row in range(3):
        for column, term in enumerate(terms):
            at_positions = [float(saturation[row, p] * presence[row, p]) for p in range(5) if at[row, p] == term]
            assert float(weights[row, column]) == pytest.approx(max(at_positions, default=0.0), abs=1e-6)


def test_an_untrained_sparse_head_gives_present_words_their_saturation_and_similar_words_a_weight() -> None:
    head = SparseHead(20, 20, 20, SparseHeadConfig())
    vocabulary = torch.eye(20)
    vocabulary[8, 7] = 2.0  # term 8 is like term 7: cosine 0.89
    head.embeddings.copy_(torch.nn.functional.normalize(vocabulary, dim=-1))
    hidden = torch.eye(20)[torch.tensor([[3, 7, 3, 1]])]
    weights = head(hidden, torch.tensor([[1, 1, 1, 0]]))
    assert weights.nonzero()[:, 1].tolist() == [3, 7, 8]
    assert 0 < weights[0, 8] < weights[0, 7]
    standing = head.present(
        hidden, torch.tensor([[3, 7, 3, -1]]), torch.tensor([[1.5, 1.0, 1.5, 0.0]]), torch.arange(20)
    )
    torch.testing.assert_close(standing[0, [3, 7]], torch.tensor([1.5, 1.0]), atol=1e-4, rtol=0)


def test_document_vectors_have_unit_length_and_query_lengths_are_weights(
    states: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    hidden, ids, _ = states
    head = TokenHead(8, TokenHeadConfig(dim=4), 20)
    assert head.weigh is not None
    documents, queries = head(hidden, ids, query=False), head(hidden, ids, query=True)
    torch.testing.assert_close(documents.norm(dim=-1), torch.ones(3, 5))
    torch.testing.assert_close(queries, documents, atol=1e-4, rtol=1e-4)
    torch.nn.init.normal_(head.weigh.weight)
    assert head(hidden, ids, query=True).norm(dim=-1).std() > 0.01
    torch.testing.assert_close(head(hidden, ids, query=False), documents)


def test_weights_of_terms_are_those_of_the_tokens_of_queries_alone(
    states: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    hidden, ids, _ = states
    head = TokenHead(8, TokenHeadConfig(dim=4, weighted=False, terms=True), 20)
    assert head.terms is not None
    head.terms.copy_(torch.arange(20) / 10)
    torch.testing.assert_close(head(hidden, ids, query=True).norm(dim=-1), ids / 10)
    torch.testing.assert_close(head(hidden, ids, query=False).norm(dim=-1), torch.ones(3, 5))


def test_the_pooling_weight_of_a_document_token_is_initially_its_term_weight_to_the_configured_power(
    states: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    hidden, ids, _ = states
    assert TokenHead(8, TokenHeadConfig(terms=True), 20).pooling_weights(hidden, ids) is None
    head = TokenHead(8, TokenHeadConfig(terms=True, pooled_power=2.0), 20)
    assert head.terms is not None
    assert head.count is not None
    head.terms.copy_(torch.arange(20) / 10)
    counts = head.pooling_weights(hidden, ids)
    assert counts is not None
    torch.testing.assert_close(counts, ((ids / 10) ** 2).clamp_min(MIN_TOKEN_WEIGHT), atol=1e-4, rtol=1e-4)
    torch.nn.init.normal_(head.count.weight)
    moved = head.pooling_weights(hidden, ids)
    assert moved is not None
    assert (moved[ids > 0] / counts[ids > 0]).std() > 0.1
    assert bool((moved >= MIN_TOKEN_WEIGHT).all())
    torch.testing.assert_close(head(hidden, ids, query=False).norm(dim=-1), torch.ones(3, 5))


class Recorder(torch.nn.Module):
    """A tower that records the segments that it receives."""

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
        self.segments = segments
        return torch.nn.functional.one_hot(ids, 20).float() * mask[:, :, None]


def test_segments_of_a_pair_follow_from_its_separators() -> None:
    tower = Recorder()
    module = CrossModule(tower, CrossHead(20, CrossHeadConfig(dim=20)), [2, 3])  # type: ignore[arg-type]
    ids = torch.tensor([[2, 8, 9, 3, 8, 7, 3, 0]])
    module(ids, torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0]]))
    assert tower.segments.tolist() == [[0, 0, 0, 0, 1, 1, 1, 0]]


def test_an_untrained_pair_score_is_the_mean_of_matches_over_the_query_tokens() -> None:
    head = CrossHead(20, CrossHeadConfig(dim=20))
    assert head.project is not None
    torch.nn.init.eye_(head.project.weight)
    module = CrossModule(Recorder(), head, [2, 3])  # type: ignore[arg-type]
    ids = torch.tensor([[2, 8, 9, 3, 8, 7, 3, 0]])  # 8 is in the document, 9 is not
    score = module(ids, (ids > 0).long()).item()
    cosine, same = head.gains.tolist()
    assert score == pytest.approx((cosine + same) / 2, abs=1e-3)


def test_padding_does_not_move_a_pair_score() -> None:
    module = CrossModule(Recorder(), CrossHead(20, CrossHeadConfig(dim=4)), [2, 3])  # type: ignore[arg-type]
    short = torch.tensor([[2, 8, 9, 3, 8, 7, 3]])
    padded = torch.nn.functional.pad(short, (0, 5))
    torch.testing.assert_close(module(short, (short > 0).long()), module(padded, (padded > 0).long()))


def test_joined_pairs_keep_their_special_tokens_and_the_limit() -> None:
    query, document = [2, *range(10, 20), 3], [2, *range(30, 60), 3]
    assert pair_ids([2, 8, 3], [2, 9, 3], 16) == [2, 8, 3, 9, 3]
    assert pair_ids([2, 8, 3], document, 8) == [2, 8, 3, 30, 31, 32, 33, 3]
    joined = pair_ids(query, document, 12)
    assert len(joined) == 12
    assert joined[:6] == [2, 10, 11, 12, 13, 3]
    assert joined[-1] == 3


def test_merging_an_adapter_adds_its_scaled_product() -> None:
    tower = Tower(torch.nn.ModuleDict({"layer": torch.nn.Linear(3, 4)}), [0])
    before = tower.transformer["layer"].weight.clone()
    down, up = torch.randn(2, 3), torch.randn(4, 2)
    merge_adapter(tower.transformer, {"layer": LowRankUpdate(down, up, 0.5)})
    torch.testing.assert_close(tower.transformer["layer"].weight, before + 0.5 * up @ down)
