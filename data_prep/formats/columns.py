"""Extraction of text from a table row: columns by dotted names, lists of strings, and chat messages by a named template."""

from collections.abc import Callable
from typing import Any

from ..config import Template
from .records import Columns, Context, Fault, RawDocument

MISSING = object()
SHOWN_KEYS = 20


def lookup(row: Columns, name: str) -> Any:
    """The value of a column; `a.b` is the key `a.b` if there is one, else the key `b` of the object under `a`.

    Of a list of objects it is the list of their values. `MISSING` if there is none.
    """
    if name in row:
        return row[name]
    value: Any = row
    for key in name.split("."):
        value = _step(value, key)
        if value is MISSING or value is None:
            return value
    return value


def _step(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return value.get(key, MISSING)
    if isinstance(value, list):
        inner = [_step(item, key) for item in value]
        return MISSING if MISSING in inner else inner
    return MISSING


def names_of(row: Columns, depth: int = 2) -> list[str]:
    """Column names of a row; those of nested objects are dotted."""
    names = []
    for key, value in row.items():
        names.append(key)
        if isinstance(value, dict) and depth > 1:
            names += [f"{key}.{inner}" for inner in names_of(value, depth - 1)]
    return names


def listed(names: list[str]) -> str:
    """Column names in one line for messages, cut off after `SHOWN_KEYS`."""
    return ", ".join(names[:SHOWN_KEYS]) + (" ..." if len(names) > SHOWN_KEYS else "")


def row_document(row: Columns, line: int, context: Context) -> RawDocument | Fault:
    """The document of a row; a row whose text is null is a document without text, which the filters leave out."""
    config = context.config
    value = lookup(row, config.text_column)
    if value is MISSING:
        names = listed(names_of(row)) or "(the record has no keys)"
        return context.fault(line, f"no text under {config.text_column!r}: set text_column to one of {names}")
    try:
        text = "" if value is None else text_of(value, config.template)
    except ValueError as error:
        return context.fault(line, f"no text under {config.text_column!r}: {error}")
    return context.document(text, row, line)


def text_of(value: Any, template: Template | None) -> str:
    """The text of a column's value.

    Raises:
        ValueError: it is neither a string nor what the template is for.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list) and template is None:
        raise ValueError("it is a list: set template to paragraphs, lines, chatml or dialogue")
    if not isinstance(value, list) or template is None:
        raise ValueError(f"it is of type {type(value).__name__}, not a string: set text_column to another")
    return TEMPLATES[template](value)


def _joined(separator: str) -> Callable[[list[Any]], str]:
    def join(values: list[Any]) -> str:
        if not all(isinstance(value, str) for value in values):
            raise ValueError("not a list of strings: set template to chatml or dialogue, or text_column to a key of it")
        return separator.join(values)

    return join


def _chatml(messages: list[Any]) -> str:
    return "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in map(_message, messages))


def _dialogue(messages: list[Any]) -> str:
    return "\n\n".join(f"{role}: {content}" for role, content in map(_message, messages))


def _message(message: Any) -> tuple[str, str]:
    """Role and content of a message, in OpenAI's form (`role`, `content`) or ShareGPT's (`from`, `value`)."""
    if isinstance(message, dict):
        for role, content in (("role", "content"), ("from", "value")):
            if isinstance(message.get(role), str) and role in message and content in message:
                return message[role], _content(message[content])
    raise ValueError("a message has no role and content (or from and value)")


def _content(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        return "".join(part["text"] for part in content)
    raise ValueError("the content of a message is not text")


# A template and the function from a column's list to the document.
TEMPLATES: dict[Template, Callable[[list[Any]], str]] = {
    "paragraphs": _joined("\n\n"),
    "lines": _joined("\n"),
    "chatml": _chatml,
    "dialogue": _dialogue,
}
