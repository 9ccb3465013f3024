"""Conversations as chat templates read them: messages with text and image parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Content = list[dict[str, Any]]
Message = dict[str, Any]


def embedding_messages(instruction: str, image: Any, text: str) -> list[Message]:
    """The conversation whose last hidden state is taken as a vector; an empty text still has one."""
    content: Content = []
    add_text(content, instruction)
    add_part(content, image, text)
    return conversation("", content)


def images_of(messages: Sequence[Message]) -> list[Any]:
    """The images of a conversation, in order."""
    return [part["image"] for message in messages for part in message["content"] if part["type"] == "image"]


def as_text(messages: Sequence[Message]) -> list[Message]:
    """The conversation in the form that templates of text models read: each content one string."""
    return [
        {"role": message["role"], "content": "".join(part["text"] for part in message["content"])}
        for message in messages
    ]


def add_text(content: Content, text: str) -> None:
    """Appends text, joined to a text part before it: templates may put something between two parts."""
    if not text:
        return
    if content and content[-1]["type"] == "text":
        content[-1]["text"] += text
    else:
        content.append({"type": "text", "text": text})


def add_part(content: Content, image: Any, text: str) -> None:
    """Appends an image, if there is one, and then text."""
    if image is not None:
        content.append({"type": "image", "image": image})
    add_text(content, text)


def conversation(system: str, content: Content) -> list[Message]:
    """One user message after the system message, if there is one."""
    opening = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
    return [*opening, {"role": "user", "content": content}]
