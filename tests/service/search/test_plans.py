"""Plans: presets on what a collection has, validation, and refusals that name what there is."""

from __future__ import annotations

import tomllib

import pytest
from pydantic import ValidationError

from chamfer.core.errors import InvalidInput
from chamfer.core.types import VectorKind
from chamfer.service.search.plan_fields import RelevanceModel, Rocchio
from chamfer.service.search.plans import (
    FIRST_STAGE_WEIGHTS,
    ChannelPlan,
    Features,
    Interpolation,
    Plan,
    ReciprocalRank,
    named_plans,
    preset,
    resolve,
)

FULL = Features(("dense", "lexical", "multivector"), ("multivector",), ("judge",))


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
    best = preset("best", Features(("lexical",)))
    assert list(best.channels) == ["lexical"]
    assert best.rescore is None
    assert best.rerank is None


def test_token_vectors_retrieve_only_where_nothing_else_can() -> None:
    best = preset("best", Features(("multivector",), ("multivector",)))
    assert list(best.channels) == ["multivector"]
    assert best.rescore is None


def test_a_channel_of_an_unknown_name_takes_part_in_balanced() -> None:
    assert set(preset("balanced", Features(("dense", "splade"))).channels) == {"dense", "splade"}


def test_a_collection_without_usable_channels_has_no_plans() -> None:
    assert named_plans(Features(()), {}) == {}


def test_an_explicit_plan_that_names_a_missing_channel_is_refused_with_what_there_is() -> None:
    plan = Plan(channels={"dens": ChannelPlan()})
    with pytest.raises(InvalidInput, match=r"'dens'.*dense, lexical, multivector.*did you mean 'dense'"):
        resolve(plan, FULL, {})


def test_rescoring_and_reranking_name_what_the_collection_has() -> None:
    with pytest.raises(InvalidInput, match="channels that can rescore multivector"):
        resolve(Plan.model_validate({"channels": {"dense": {}}, "rescore": {"channel": "dense"}}), FULL, {})
    with pytest.raises(InvalidInput, match="has no rerankers"):
        resolve(
            Plan.model_validate({"channels": {"dense": {}}, "rerank": {"model": "judge"}}), Features(("dense",)), {}
        )


def test_an_unknown_plan_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidInput, match=r"balanced, best, fast.*did you mean 'fast'"):
        resolve("fsat", FULL, named_plans(FULL, {}))


def test_configured_plans_may_replace_presets_and_are_left_out_where_they_cannot_run() -> None:
    mine, impossible = Plan(channels={"lexical": ChannelPlan()}), Plan(channels={"colour": ChannelPlan()})
    plans = named_plans(FULL, {"fast": mine, "impossible": impossible})
    assert plans["fast"].plan is mine
    assert "impossible" not in plans


def test_one_model_reads_toml_and_json() -> None:
    text = """
    fusion = { method = "rrf", k = 20 }
    rescore = { channel = "multivector", depth = 50, interpolate = 0.5 }
    [channels.dense]
    depth = 200
    [channels.lexical]
    weight = 2
    """
    plan = Plan.model_validate(tomllib.loads(text))
    assert plan == Plan.model_validate_json(plan.model_dump_json())
    assert plan.fusion == ReciprocalRank(method="rrf", k=20)
    assert (plan.channels["dense"].depth, plan.channels["lexical"].weight) == (200, 2.0)


def test_fusion_is_interpolation_by_default() -> None:
    assert Plan.model_validate({"channels": {"dense": {}}, "fusion": {"normalisation": "z_score"}}).fusion == (
        Interpolation(normalisation="z_score")
    )


def test_feedback_reads_from_toml_and_json_with_the_papers_defaults() -> None:
    text = """
    [channels]
    dense = {}
    lexical = { weight = 0.5 }
    [feedback]
    interpolate = "after"
    guard = { low = 1, high = 2 }
    [feedback.channels]
    dense = {}
    lexical = { method = "rm3", original = 0.25 }
    """
    plan = Plan.model_validate(tomllib.loads(text))
    assert plan == Plan.model_validate_json(plan.model_dump_json())
    assert plan.feedback is not None
    assert plan.feedback.channels == {
        "dense": Rocchio(alpha=0.4, beta=0.6, length="query"),
        "lexical": RelevanceModel(method="rm3", original=0.25),
    }
    assert (plan.feedback.depth, plan.feedback.interpolate, plan.feedback.source) == (3, "after", None)


def test_feedback_names_what_the_collection_has_and_what_its_vectors_are() -> None:
    features = Features(("dense", "lexical"), expandable={"dense": VectorKind.DENSE})
    plan = {"channels": {"dense": {}, "lexical": {}}, "feedback": {"channels": {"lexical": {}}}}
    with pytest.raises(
        InvalidInput, match="'lexical' for feedback; the collection has the channels with feedback dense"
    ):
        resolve(Plan.model_validate(plan), features, {})
    plan["feedback"] = {"channels": {"dense": {"method": "rm3"}}}
    with pytest.raises(InvalidInput, match="sparse vectors for feedback by 'rm3'; channel 'dense' has dense ones"):
        resolve(Plan.model_validate(plan), features, {})


@pytest.mark.parametrize(
    ("feedback", "message"),
    [
        ({"channels": {"lexical": {}}}, "neither retrieves from nor rescores by"),
        ({"channels": {"dense": {}}, "source": "lexical"}, "does not retrieve from"),
        ({"channels": {"dense": {}}, "guard": {"low": 4.0, "high": 3.0}}, "low 4.0 is above high 3.0"),
        ({"channels": {"dense": {"method": "magic"}}}, "'rocchio', 'average', 'rm3' or 'expansion'"),
        ({"channels": {}}, "at least 1"),
        ({"channels": {"dense": {"beta": -1.0}}}, "greater than or equal to 0"),
        ({"channels": {"dense": {"method": "average", "alpha": 1.0}}}, "Extra inputs"),
    ],
)
def test_faulty_feedback_is_refused_with_the_reason(feedback: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Plan.model_validate({"channels": {"dense": {}}, "feedback": feedback})


@pytest.mark.parametrize(
    "fault",
    [
        {"channels": {}},
        {"channels": {"dense": {"depth": 0}}},
        {"channels": {"dense": {"depth": 10**9}}},
        {"channels": {"dense": {"depth": "10"}}},
        {"channels": {"dense": {"weight": -1}}},
        {"channels": {"dense": {"weight": float("nan")}}},
        {"channels": {"dense": {"weight": 0}}},
        {"channels": {"dense": {"dpeth": 10}}},
        {"channels": {"dense": {}}, "fusion": {"method": "sum"}},
        {"channels": {"dense": {}}, "fusion": {"method": ["rrf"]}},
        {"channels": {"dense": {}}, "fusion": 5},
        {"channels": {"dense": {}}, "fusion": {"method": "interpolation", "k": 60}},
        {"channels": {"dense": {}}, "fusion": {"method": "rrf", "k": 0}},
        {"channels": {"dense": {}}, "rescore": {"depth": 10}},
        {"channels": {"dense": {}}, "rescore": {"channel": "x", "interpolate": 1.5}},
        {"channels": {"dense": {}}, "rerank": {"model": ""}},
        {"channels": {str(n): {} for n in range(17)}},
        {"channels": {"dense": {}}, "name": "x"},
    ],
)
def test_a_faulty_plan_is_refused(fault: object) -> None:
    with pytest.raises(ValidationError):
        Plan.model_validate(fault)


@pytest.mark.parametrize("depth", [0, 10_001, "some", 2.5])
def test_a_rescoring_depth_is_a_number_or_all(depth: object) -> None:
    with pytest.raises(ValidationError):
        Plan.model_validate({"channels": {"dense": {}}, "rescore": {"channel": "multivector", "depth": depth}})
