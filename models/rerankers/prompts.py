"""What is said to a language model that judges, and how it is laid out.

A `Question` is part of a score: its digest belongs to the reranker's fingerprint. Runtimes that differ in template
or answer tokens rank differently with the same weights (QwenLM/Qwen3-Embedding issue 71 and its kin).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from chamfer.core.artifact import digest_of
from chamfer.core.types import Document, Query

Content = list[dict[str, Any]]
Message = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A yes-or-no question about one pair.

    `query` and `document` stand before the two parts, `closing` after them; `answer_start` is what the model's answer
    is made to begin with. The probabilities of all spellings in `positive` (`negative`) that are one token are added.
    """

    system: str
    instruction: str
    query: str
    document: str
    closing: str
    answer_start: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Of all its texts."""
        return digest_of("question", asdict(self))


# The form in which Qwen3-Reranker and Qwen3-VL-Reranker were trained (their model cards); the former's answer begins
# after an empty thought.
_QWEN_SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
QWEN3_VL_RERANKER = Question(
    system=_QWEN_SYSTEM,
    instruction="<Instruct>: Given a search query, retrieve relevant candidates that answer the query.",
    query="<Query>:",
    document="\n<Document>:",
    closing="",
    answer_start="",
    positive=("yes",),
    negative=("no",),
)
QWEN3_RERANKER = Question(
    system=_QWEN_SYSTEM,
    instruction="<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n",
    query="<Query>: ",
    document="\n<Document>: ",
    closing="",
    answer_start="<think>\n\n</think>\n\n",
    positive=("yes",),
    negative=("no",),
)
# MM-Embed section 4 asks any chat model, without training, for True or False.
TRUE_FALSE = Question(
    system="",
    instruction="",
    query="Query: ",
    document="\nCandidate: ",
    closing="\nDoes the candidate satisfy what the query asks for? Answer with True or False only.",
    answer_start="",
    positive=("True", " True", "true", " true"),
    negative=("False", " False", "false", " false"),
)
# UniME-V2-Reranker: the same model is asked about one candidate, or which of a numbered list is right.
UNIME_PAIR = Question(
    system="",
    instruction="",
    query="Query: ",
    document="\nCandidate: ",
    closing="\nDoes the candidate meet the requirement of the query? Answer yes or no only.",
    answer_start="",
    positive=("Yes", "yes", " yes", " Yes"),
    negative=("No", "no", " no", " No"),
)
LIST_OPENING = "Query: "
LIST_CLOSING = "\nWhich candidate meets the requirement of the query best? Answer with its number in parentheses."
LIST_ANSWER_START = "("


def pair_messages(question: Question, query: Query, document: Document) -> list[Message]:
    """The conversation about one pair. A missing part is left out, not left empty; images stand before text."""
    content: Content = []
    _say(content, question.instruction)
    _say(content, question.query)
    _show(content, query.image, query.text)
    _say(content, question.document)
    _show(content, document.image, document.content)
    _say(content, question.closing)
    return _conversation(question.system, content)


def list_messages(query: Query, documents: Sequence[Document]) -> list[Message]:
    """The conversation about a numbered list of candidates, numbers from 1."""
    content: Content = []
    _say(content, LIST_OPENING)
    _show(content, query.image, query.text)
    for number, document in enumerate(documents, 1):
        _say(content, f"\n({number}) ")
        _show(content, document.image, document.content)
    _say(content, LIST_CLOSING)
    return _conversation("", content)


def embedding_messages(instruction: str, image: Any, text: str) -> list[Message]:
    """What is said to a model whose last state is taken as a vector; an empty text still has a conversation."""
    content: Content = []
    _say(content, instruction)
    _show(content, image, text)
    return _conversation("", content)


def images_of(messages: Sequence[Message]) -> list[Any]:
    """The images of a conversation, in order."""
    return [part["image"] for message in messages for part in message["content"] if part["type"] == "image"]


def as_text(messages: Sequence[Message]) -> list[Message]:
    """The conversation in the form that templates of text models read: each content one string."""
    return [
        {"role": message["role"], "content": "".join(part["text"] for part in message["content"])}
        for message in messages
    ]


def _say(content: Content, text: str) -> None:
    """Adds text, to the text before it if that is what stands there: templates may put something between parts."""
    if not text:
        return
    if content and content[-1]["type"] == "text":
        content[-1]["text"] += text
    else:
        content.append({"type": "text", "text": text})


def _show(content: Content, image: Any, text: str) -> None:
    if image is not None:
        content.append({"type": "image", "image": image})
    _say(content, text)


def _conversation(system: str, content: Content) -> list[Message]:
    opening = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
    return [*opening, {"role": "user", "content": content}]
