"""`python -m ollama_trainer` is `ollama-trainer`."""

import sys

from ollama_trainer.cli import main

if __name__ == "__main__":
    sys.exit(main())
