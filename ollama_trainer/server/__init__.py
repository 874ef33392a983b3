"""The HTTP service: a thin layer over the queue."""

from ollama_trainer.server.app import create_app, serve

__all__ = ["create_app", "serve"]
