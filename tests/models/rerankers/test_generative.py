"""Chat models as rerankers, with small random models of the real classes: the code path is tested, not the quality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support_judges import picture, tiny_llava_judge, tiny_qwen3_vl, tiny_text_judge

from chamfer.core.errors import InvalidInput
from chamfer.core.types import Document, Query
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.networks.chat_model import LanguageModel, load_language_model
from chamfer.models.registry import load_reranker
from chamfer.models.rerankers.generative import GenerativeReranker, log_odds
from chamfer.models.rerankers.listwise import ListwiseConfig, ListwiseReranker
from chamfer.models.rerankers.prompts import QWEN3_RERANKER, QWEN3_VL_RERANKER, TRUE_FALSE, list_messages, pair_messages

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers warns about tiny models

CONFIG = DeviceConfig(device="cpu", batch_tokens=256)
QUERY = Query("q", "which fox?")
DOCUMENTS = [Document("a", "the fox"), Document("b", "the crow and the pitcher " * 8), Document("c", "tail")]
SHOWN = [*DOCUMENTS, Document("d", "crow", image=picture(1)), Document("e", "", image=picture(2, 100, 40))]


@pytest.fixture(scope="module")
def text_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text_judge(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def text_model(text_path: Path) -> LanguageModel:
    return load_language_model(str(text_path), CONFIG)


@pytest.fixture(scope="module")
def llava_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava_judge(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def llava(llava_path: Path) -> LanguageModel:
    return load_language_model(str(llava_path), CONFIG)


@pytest.fixture(scope="module")
def qwen_vl() -> LanguageModel:
    model, processor = tiny_qwen3_vl()
    return LanguageModel("qwen3-vl", model, processor, 4096)


def test_the_yes_no_score_is_the_difference_of_two_logits_after_the_published_prompt(
    text_path: Path, text_model: LanguageModel
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(text_path), AutoModelForCausalLM.from_pretrained(text_path)
    prompt = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: Given a '
        "web search query, retrieve relevant passages that answer the query\n<Query>: which fox?\n<Document>: the fox"
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    with torch.inference_mode():
        last = model(**tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)).logits[0, -1]
    yes, no = (tokenizer.encode(word)[0] for word in ("yes", "no"))
    score = GenerativeReranker("judge", text_model, QWEN3_RERANKER).score(QUERY, DOCUMENTS[:1])
    np.testing.assert_allclose(score, [float(last[yes] - last[no])], atol=1e-4)


@pytest.mark.parametrize("model", ["text_model", "llava", "qwen_vl"])
def test_scores_do_not_depend_on_the_batch(model: str, request: pytest.FixtureRequest) -> None:
    judge = request.getfixturevalue(model)
    reranker = GenerativeReranker("judge", judge, QWEN3_VL_RERANKER)
    documents = SHOWN if judge.reads_images else DOCUMENTS
    together = reranker.score(QUERY, documents)
    np.testing.assert_allclose(together, [reranker.score(QUERY, [d])[0] for d in documents], atol=1e-4)
    assert len(set(np.round(together, 4).tolist())) == len(documents)
    turned = reranker.score(QUERY, documents[::-1])
    np.testing.assert_allclose(turned[::-1], together, atol=1e-4)


@pytest.mark.parametrize("model", ["llava", "qwen_vl"])
def test_images_of_queries_and_documents_affect_the_score(model: str, request: pytest.FixtureRequest) -> None:
    reranker = GenerativeReranker("judge", request.getfixturevalue(model), QWEN3_VL_RERANKER)
    one, other = (
        reranker.score(Query("q", "fox", image=picture(seed)), [SHOWN[4], Document("f", "", image=picture(9))])
        for seed in (5, 6)
    )
    assert np.abs(one - other).min() > 1e-4
    assert abs(float(one[0] - one[1])) > 1e-4


@pytest.mark.parametrize("question", [QWEN3_RERANKER, QWEN3_VL_RERANKER, TRUE_FALSE])
def test_the_rendered_prompt_holds_query_and_document_and_images(qwen_vl: LanguageModel, question: Any) -> None:
    prompt = qwen_vl.prompt(pair_messages(question, QUERY, SHOWN[3]), question.answer_start)
    assert prompt.text.index("which fox?") < prompt.text.index("<|image_pad|>") < prompt.text.index("crow")
    assert len(prompt.images) == 1
    assert prompt.text.endswith("assistant\n" + question.answer_start)


def test_a_missing_part_of_a_prompt_is_omitted(qwen_vl: LanguageModel) -> None:
    [message] = pair_messages(TRUE_FALSE, Query("q", "", image=picture(1)), Document("d", "", image=picture(2)))
    assert [part["type"] for part in message["content"]] == ["text", "image", "text", "image", "text"]


def test_a_long_document_is_truncated_and_the_question_after_it_is_not(text_model: LanguageModel) -> None:
    short = text_model.shortened("the fox and the crow " * 500, 20)
    assert short == ("the fox and the crow " * 500)[: len(short)]
    assert len(text_model._tokenizer(short)["input_ids"]) == 20
    reranker = GenerativeReranker("judge", text_model, TRUE_FALSE)
    prompt = reranker._prompt(QUERY, Document("d", "tail " * 300_000))
    assert "True or False only." in prompt.text
    assert prompt.tokens < 5000


def test_probabilities_of_single_token_spellings_are_added_up(text_model: LanguageModel) -> None:
    assert len(text_model.answer_ids(("True", " True", "true", "a very long answer"))) == 3
    with pytest.raises(InvalidInput, match="single token"):
        text_model.answer_ids(("a very long answer",))


@given(
    st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=2),
    st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3),
    st.floats(-100, 100),
)
@settings(max_examples=100, deadline=None)
def test_log_odds_ignore_a_constant_and_change_sign_when_the_answers_are_exchanged(
    positive: list[float], negative: list[float], constant: float
) -> None:
    p, n = np.array([positive]), np.array([negative])
    odds = log_odds(p, n)
    np.testing.assert_allclose(log_odds(p + constant, n + constant), odds, atol=1e-6)
    np.testing.assert_allclose(log_odds(n, p), -odds, atol=1e-9)
    share = np.exp(p).sum() / (np.exp(p).sum() + np.exp(n).sum())
    np.testing.assert_allclose(1 / (1 + np.exp(-odds[0])), share, rtol=1e-6, atol=1e-300)


@pytest.mark.parametrize("bad", [b"", b"not an image", picture(1)[:60], b"GIF89a"])
def test_bytes_that_are_not_an_image_are_refused(qwen_vl: LanguageModel, bad: bytes) -> None:
    reranker = GenerativeReranker("judge", qwen_vl, QWEN3_VL_RERANKER)
    with pytest.raises(InvalidInput, match="image"):
        reranker.score(QUERY, [Document("d", "", image=bad)])


def test_a_text_model_refuses_an_image_without_text(text_model: LanguageModel) -> None:
    for reranker in (
        GenerativeReranker("judge", text_model, TRUE_FALSE),
        ListwiseReranker("list", text_model, ListwiseConfig()),
    ):
        with pytest.raises(InvalidInput, match="text only"):
            reranker.score(QUERY, [SHOWN[4]])


def test_a_list_is_scored_by_the_logits_of_its_numbers(llava: LanguageModel) -> None:
    reranker = ListwiseReranker("list", llava, ListwiseConfig(pairwise_up_to=2))
    scores = reranker.score(QUERY, SHOWN)
    prompt = llava.prompt(list_messages(QUERY, SHOWN), "(")
    assert all(f"({number}) " in prompt.text for number in range(1, 6))
    ids = [llava.answer_ids([str(number)])[0] for number in range(1, 6)]
    logits = llava.next_logits([prompt], ids)[0].astype(np.float64)
    np.testing.assert_allclose(scores, logits - np.log(np.exp(logits).sum()), atol=1e-5)


def test_a_short_list_is_scored_pair_by_pair(text_model: LanguageModel) -> None:
    reranker = ListwiseReranker("list", text_model, ListwiseConfig(pairwise_up_to=3))
    np.testing.assert_allclose(
        reranker.score(QUERY, DOCUMENTS), [reranker.score(QUERY, [d])[0] for d in DOCUMENTS], atol=1e-4
    )


def test_with_all_rotations_the_position_in_the_list_has_no_effect(text_model: LanguageModel) -> None:
    reranker = ListwiseReranker("list", text_model, ListwiseConfig(pairwise_up_to=1, window=4, step=2, rotations=4))
    documents = [*DOCUMENTS, Document("d", "number")]
    scores = reranker.score(QUERY, documents)
    turned = reranker.score(QUERY, documents[1:] + documents[:1])
    np.testing.assert_allclose(np.roll(turned, 1), scores, atol=1e-4)


class Preferring(ListwiseReranker):
    """Ranks each window by a fixed order, so that the sliding is tested alone."""

    def _window_scores(self, query: Query, documents: Any) -> Any:
        self.windows.append(len(documents))
        return np.array([-float(document.doc_id) for document in documents], dtype=np.float32)


@given(st.permutations(range(15)), st.integers(2, 9), st.data())
@settings(max_examples=40, deadline=None)
def test_the_sliding_window_carries_the_best_to_the_top(
    text_model: LanguageModel, order: list[int], window: int, data: Any
) -> None:
    step = data.draw(st.integers(1, window - 1))
    reranker = Preferring("list", text_model, ListwiseConfig(pairwise_up_to=1, window=window, step=step))
    reranker.windows = []  # type: ignore[attr-defined]  # of the class above
    scores = reranker.score(QUERY, [Document(str(number), "x") for number in order])
    best = [order[index] for index in np.argsort(-scores, kind="stable")]
    assert sorted(best) == list(range(15))
    assert best[: window - step] == list(range(window - step))
    assert max(reranker.windows) == window  # type: ignore[attr-defined]


@pytest.mark.parametrize("options", [{"window": 10}, {"window": 1}, {"step": 0}, {"step": 9}, {"rotations": 0}])
def test_an_invalid_listwise_configuration_is_refused(options: Any) -> None:
    with pytest.raises(InvalidInput):
        ListwiseConfig(**options)


def test_reranker_names_load_the_right_class(text_path: Path, llava_path: Path) -> None:
    kinds = {name: load_reranker(f"{name}:{text_path}", CONFIG) for name in ("yes_no", "true_false", "unime")}
    assert [type(r).__name__ for r in kinds.values()] == [
        "GenerativeReranker",
        "GenerativeReranker",
        "ListwiseReranker",
    ]
    assert len({r.fingerprint for r in kinds.values()}) == 3
    assert [r.score_kind for r in kinds.values()] == ["logit", "logit", "list"]
    assert load_reranker(f"true_false:{llava_path}", CONFIG).reads_images
    for wrong in ("yes_no:", "remote:nobody"):
        with pytest.raises(InvalidInput):
            load_reranker(wrong, CONFIG)
