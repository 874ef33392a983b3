"""The data set compiler: a file, whatever wrote it -> examples that a model should learn from.

lines.py    the file, line by line, however large
quality.py  examples that would teach nothing, or something wrong
index.py    which examples repeat, contradict or pair with one another, in bounded memory
near.py     examples whose inputs are nearly the same
method.py   how they are trained on, and why
compile.py  all of it: `compile_dataset`
report.py   what a person is told
"""

from ollama_trainer.compiler.compile import (
    Compiled,
    compile_dataset,
    content,
    nothing_left,
)
from ollama_trainer.compiler.redaction import is_plain

__all__ = ["Compiled", "compile_dataset", "content", "is_plain", "nothing_left"]
