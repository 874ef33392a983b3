"""Chat templates for bases that bring none: files of the folder modelfiles/, one a family."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

from ollama_trainer.errors import BaseModelError
from ollama_trainer.gguf.file import GgufFile
from ollama_trainer.gguf.vocabulary import tokens as tokens_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """When a template is the right one."""

    #: Name of its file, without the ending.
    name: str
    #: Architectures in a GGUF's words; empty: any.
    architectures: tuple[str, ...] = ()
    #: Tokens that the vocabulary must hold, since the template would spell them otherwise.
    tokens: tuple[str, ...] = ()

    def fits(self, gguf: GgufFile, tokens: frozenset[str]) -> bool:
        known = not self.architectures or gguf.architecture in self.architectures
        return known and tokens.issuperset(self.tokens)


#: The last resort: it needs nothing but a token that ends a text.
PLAIN = Family(name="plain")
#: In the order in which they are tried.
FAMILIES = (
    Family(
        name="llama3",
        architectures=("llama",),
        tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    Family(
        name="gemma",
        architectures=("gemma", "gemma2", "gemma3"),
        tokens=("<start_of_turn>", "<end_of_turn>"),
    ),
    Family(
        name="granite",
        architectures=("granite",),
        tokens=("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
    ),
    Family(name="phi3", architectures=("phi3",), tokens=("<|user|>", "<|assistant|>", "<|end|>")),
    Family(name="olmo2", architectures=("olmo2",), tokens=("<|endoftext|>",)),
    Family(name="starcoder2", architectures=("starcoder2",), tokens=("<|endoftext|>",)),
    Family(name="chatml", tokens=("<|im_start|>", "<|im_end|>")),
    Family(name="mistral", architectures=("llama", "mistral3"), tokens=("[INST]", "[/INST]")),
)


def family_of(gguf: GgufFile) -> Family:
    """The family whose template a base without one is given.

    Raises:
        BaseModelError: not even the plain one can be used, for want of an end-of-text token.
    """
    tokens = frozenset(tokens_of(gguf))
    for family in FAMILIES:
        if family.fits(gguf, tokens):
            return family
    if gguf.get("tokenizer.ggml.eos_token_id") is None:
        raise BaseModelError(
            f"{gguf.path.name} has no chat template, and its vocabulary has no token that ends a"
            " text, so that a model tuned on it would never stop",
            "Choose a chat or instruct model.",
        )
    return PLAIN


def template_of(family: Family) -> str:
    """The family's Jinja template."""
    return (_folder() / f"{family.name}.jinja").read_text(encoding="utf-8")


def _folder() -> Traversable:
    """modelfiles/: inside the package where it was installed, beside it in a checkout."""
    package = files("ollama_trainer")
    installed = package / "modelfiles"
    return installed if installed.is_dir() else package / ".." / "modelfiles"
