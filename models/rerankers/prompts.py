"""Prompts for chat models that judge relevance, and the conversations that they become.

A `JudgePrompt` is part of a score: its digest belongs to the reranker's fingerprint. Runtimes that differ in template
or answer tokens rank differently with the same weights (QwenLM/Qwen3-Embedding issue 71, for example).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from chamfer.core.artifact import digest_of
from chamfer.core.types import Document, Query
from chamfer.models.networks.chat_messages import Content, Message, add_part, add_text, conversation


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgePrompt:
    """A yes-or-no question about one (query, document) pair.

    system              the system message
    instruction         opens the user message
    query, document     labels in front of the two parts
    closing             ends the user message
    answer_start        the beginning of the answer, which the model continues
    positive, negative  spellings of the two answers; the probabilities of those that are a single token are added up

    The names of the fields are part of the digest.
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
        """SHA-256 over all its texts."""
        return digest_of("question", asdict(self))


# As Qwen3-Reranker and Qwen3-VL-Reranker were trained (their model cards); the former answers after an empty thought.
_QWEN_SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
QWEN3_VL_RERANKER = JudgePrompt(
    system=_QWEN_SYSTEM,
    instruction="<Instruct>: Given a search query, retrieve relevant candidates that answer the query.",
    query="<Query>:",
    document="\n<Document>:",
    closing="",
    answer_start="",
    positive=("yes",),
    negative=("no",),
)
QWEN3_RERANKER = JudgePrompt(
    system=_QWEN_SYSTEM,
    instruction="<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n",
    query="<Query>: ",
    document="\n<Document>: ",
    closing="",
    answer_start="<think>\n\n</think>\n\n",
    positive=("yes",),
    negative=("no",),
)
# Section 4 of MM-Embed asks any chat model, without further training, for True or False.
TRUE_FALSE = JudgePrompt(
    system="",
    instruction="",
    query="Query: ",
    document="\nCandidate: ",
    closing="\nDoes the candidate satisfy what the query asks for? Answer with True or False only.",
    answer_start="",
    positive=("True", " True", "true", " true"),
    negative=("False", " False", "false", " false"),
)
# UniME-V2-Reranker judges one candidate alone, or names the right one of a numbered list.
UNIME_PAIR = JudgePrompt(
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


def pair_messages(prompt: JudgePrompt, query: Query, document: Document) -> list[Message]:
    """The conversation about one pair. Missing parts leave no trace; images come before text."""
    content: Content = []
    add_text(content, prompt.instruction)
    add_text(content, prompt.query)
    add_part(content, query.image, query.text)
    add_text(content, prompt.document)
    add_part(content, document.image, document.content)
    add_text(content, prompt.closing)
    return conversation(prompt.system, content)


def list_messages(query: Query, documents: Sequence[Document]) -> list[Message]:
    """The conversation about a list of candidates numbered from 1."""
    content: Content = []
    add_text(content, LIST_OPENING)
    add_part(content, query.image, query.text)
    for number, document in enumerate(documents, 1):
        add_text(content, f"\n({number}) ")
        add_part(content, document.image, document.content)
    add_text(content, LIST_CLOSING)
    return conversation("", content)
