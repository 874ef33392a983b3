"""Secrets in examples: hidden, counted, or the reason to refuse the data set."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ollama_trainer.errors import DatasetError
from ollama_trainer.formats._text import canonical, parse
from ollama_trainer.records import DatasetOptions, Example, Message
from ollama_trainer.secrets import SecretFinder

#: Lines with secrets that are told when a data set is refused.
_MOST_TOLD = 10


class Redactor:
    """Takes the secrets out of examples, as the options say."""

    def __init__(self, options: DatasetOptions) -> None:
        self._mode = options.secrets
        finder = SecretFinder(emails=options.redact_emails)
        self._suspects, self._redact = finder.suspects, finder.redact
        #: Kind of secret -> how many.
        self.found: Counter[str] = Counter()
        self._told: list[str] = []

    def redacted(self, example: Example) -> Example | str:
        """The example without secrets; a sentence where they cannot be taken out."""
        if self._mode == "off" or (is_plain(example) and not self._suspects(_joined(example))):
            return example
        before = self.found.total()
        try:
            context = tuple(self._message(message) for message in example.context)
            answer = self._message(example.answer)
            tools = tuple(self._nested(tool) for tool in example.tools)
        except ValueError:
            return "a secret stands where it cannot be taken out"
        if self.found.total() == before:
            return example
        if len(self._told) < _MOST_TOLD:
            self._told.append(f"line {example.line}")
        return example._replace(context=context, answer=answer, tools=tools)

    def refuse(self) -> None:
        """Raises:
        DatasetError: there were secrets, and the options refuse them.
        """
        if self._mode == "refuse" and self.found:
            kinds = ", ".join(f"{kind}: {count}" for kind, count in self.found.most_common())
            lines = ", ".join(dict.fromkeys(self._told))
            raise DatasetError(
                f"The data set has secrets ({kinds}; {lines})",
                "Take them out, or set secrets to redact.",
            )

    def _message(self, message: Message) -> Message:
        text = self._text(message["content"])
        if len(message) == 2:
            return message if text is message["content"] else {**message, "content": text}
        others = {key: value for key, value in message.items() if key != "content"}
        return {**self._nested(others), "content": text}

    def _nested(self, value: Any) -> Any:
        """As one text, so that the names of fields are seen beside their values."""
        text = canonical(value)
        changed = self._text(text)
        return value if changed is text else parse(changed)

    def _text(self, text: str) -> str:
        changed, kinds = self._redact(text)
        self.found.update(kinds)
        return changed


def is_plain(example: Example) -> bool:
    """Whether an example is one question with a text for an answer, as nearly all are."""
    first = example.context[0]
    return (
        len(example.context) == 1
        and len(first) == len(example.answer) == 2
        and not example.tools
        and first["role"] == "user"
    )


def _joined(example: Example) -> str:
    """Both texts: one search in what holds nothing costs less than two."""
    return f"{example.context[0]['content']}\n\n{example.answer['content']}"
