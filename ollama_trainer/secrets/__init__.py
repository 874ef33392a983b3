"""Finds secrets in texts and hides them, before a model could learn them."""

from __future__ import annotations

from ollama_trainer.secrets.finder import SecretFinder
from ollama_trainer.secrets.found import Secret

__all__ = ["Secret", "SecretFinder"]
