"""The stages of a run, in their order; each works on the files of the run directory.

dataset.py   snapshot + the base's template -> tokenised examples
plan.py      every hyperparameter, from the number of examples and the size of the base
export.py    base + adapter -> model.gguf and Modelfile
verify.py    model.gguf in llama.cpp, against the base
run.py       one after the other, with their times
"""
