"""Presets on what a collection has, named plans, and refusals that list what the collection has."""

from __future__ import annotations

import pytest

from chamfer.core.errors import InvalidInput
from chamfer.core.types import VectorKind
from chamfer.service.search.plans import ChannelPlan, Plan
from chamfer.service.search.presets import FIRST_STAGE_WEIGHTS, Capabilities, named_plans, preset, resolve

FULL = Capabilities(("dense", "lexical", "multivector"), ("multivector",), ("judge",))


def test_presets_on_a_full_collection() -> None:
    fast, balanced, best = (preset(name, FULL) for name in ("fast", "balanced", "best"))
    assert list(fast.channels) == ["lexical"], "it costs no inference"
    assert {name: c.weight for name, c in balanced.channels.items()} == {
        name: FIRST_STAGE_WEIGHTS[name] for name in ("dense", "lexical")
    }
    assert balanced.rescore is None
    assert best.channels == balanced.channels
    assert best.rescore is not None
    assert (best.rescore.channel, best.rescore.depth) == ("multivector", 100)
    assert best.rerank is not None
    assert best.rerank.model == "judge"


def test_presets_leave_out_what_the_collection_lacks() -> None:
    best = preset("best", Capabilities(("lexical",)))
    assert list(best.channels) == ["lexical"]
    assert best.rescore is None
    assert best.rerank is None


def test_token_vectors_retrieve_only_where_nothing_else_can() -> None:
    best = preset("best", Capabilities(("multivector",), ("multivector",)))
    assert list(best.channels) == ["multivector"]
    assert best.rescore is None


def test_a_channel_of_an_unknown_name_takes_part_in_balanced() -> None:
    assert set(preset("balanced", Capabilities(("dense", "splade"))).channels) == {"dense", "splade"}


def test_a_collection_without_usable_channels_has_no_plans() -> None:
    assert named_plans(Capabilities(()), {}) == {}


def test_a_plan_that_names_a_missing_channel_is_refused_with_the_available_channels() -> None:
    plan = Plan(channels={"dens": ChannelPlan()})
    with pytest.raises(InvalidInput, match=r"'dens'.*dense, lexical, multivector.*did you mean 'dense'"):
        resolve(plan, FULL, {})


def test_rescoring_and_reranking_name_what_the_collection_has() -> None:
    with pytest.raises(InvalidInput, match="channels that can rescore multivector"):
        resolve(Plan.model_validate({"channels": {"dense": {}}, "rescore": {"channel": "dense"}}), FULL, {})
    with pytest.raises(InvalidInput, match="has no rerankers"):
        resolve(
            Plan.model_validate({"channels": {"dense": {}}, "rerank": {"model": "judge"}}), Capabilities(("dense",)), {}
        )


def test_an_unknown_plan_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidInput, match=r"balanced, best, fast.*did you mean 'fast'"):
        resolve("fsat", FULL, named_plans(FULL, {}))


def test_configured_plans_may_replace_presets_and_are_omitted_if_they_cannot_run() -> None:
    mine, impossible = Plan(channels={"lexical": ChannelPlan()}), Plan(channels={"colour": ChannelPlan()})
    plans = named_plans(FULL, {"fast": mine, "impossible": impossible})
    assert plans["fast"].plan is mine
    assert "impossible" not in plans


def test_feedback_errors_name_the_channels_and_their_kinds_of_vectors() -> None:
    capabilities = Capabilities(("dense", "lexical"), expandable={"dense": VectorKind.DENSE})
    plan = {"channels": {"dense": {}, "lexical": {}}, "feedback": {"channels": {"lexical": {}}}}
    with pytest.raises(
        InvalidInput, match="'lexical' for feedback; the collection has the channels that support feedback dense"
    ):
        resolve(Plan.model_validate(plan), capabilities, {})
    plan["feedback"] = {"channels": {"dense": {"method": "rm3"}}}
    with pytest.raises(InvalidInput, match="sparse vectors for feedback by 'rm3'; channel 'dense' has dense vectors"):
        resolve(Plan.model_validate(plan), capabilities, {})
