"""Turns feedback on a model that you run in Ollama into a better model in the same Ollama."""

__version__ = "0.1.0"
