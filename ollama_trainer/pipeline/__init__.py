"""The stages of a run, in their order; each works on the files of the run directory.

base.py      the base's name -> its file, the same one for the whole of a run
keep.py      that file stays readable, also where Ollama removes it
survey.py    every model in Ollama, as a base
memory.py    what a training takes, estimated
dataset.py   snapshot + the base's template -> tokenised examples
parity.py    the prompts of that template, compared with Ollama's
plan.py      every hyperparameter, from the number of examples and the size of the base
export.py    base + adapter -> model.gguf and Modelfile
verify.py    model.gguf in llama.cpp, against the base
golden.py    answers that are known before it is published
attempt.py   what the stages share and tell
run.py       one after the other
"""
