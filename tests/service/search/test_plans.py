"""The schema of plans: accepted and refused plans."""

from __future__ import annotations

import tomllib

import pytest
from pydantic import ValidationError

from chamfer.core.errors import InvalidInput
from chamfer.service.search.plans import Interpolation, Plan, ReciprocalRank, RelevanceModel, Rocchio, parse_plan


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


@pytest.mark.parametrize(
    ("feedback", "message"),
    [
        ({"channels": {"lexical": {}}}, "neither retrieves from nor rescores by"),
        ({"channels": {"dense": {}}, "source": "lexical"}, "does not retrieve from"),
        ({"channels": {"dense": {}}, "guard": {"low": 4.0, "high": 3.0}}, "low is 4.0 and high is 3.0"),
        ({"channels": {"dense": {"method": "magic"}}}, "'rocchio', 'average', 'rm3' or 'expansion'"),
        ({"channels": {}}, "at least 1"),
        ({"channels": {"dense": {"beta": -1.0}}}, "greater than or equal to 0"),
        ({"channels": {"dense": {"method": "average", "alpha": 1.0}}}, "Extra inputs"),
    ],
)
def test_invalid_feedback_is_refused_with_the_reason(feedback: object, message: str) -> None:
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
def test_an_invalid_plan_is_refused(fault: object) -> None:
    with pytest.raises(ValidationError):
        Plan.model_validate(fault)


@pytest.mark.parametrize("depth", [0, 10_001, "some", 2.5])
def test_a_rescoring_depth_is_a_number_or_all(depth: object) -> None:
    with pytest.raises(ValidationError):
        Plan.model_validate({"channels": {"dense": {}}, "rescore": {"channel": "multivector", "depth": depth}})


def test_a_plan_from_json_names_its_first_invalid_field() -> None:
    assert parse_plan({"channels": {"dense": {"depth": 3}}}).channels["dense"].depth == 3
    with pytest.raises(InvalidInput, match=r"^plan/channels/dense/depth: .*greater than or equal to 1"):
        parse_plan({"channels": {"dense": {"depth": 0}}})
