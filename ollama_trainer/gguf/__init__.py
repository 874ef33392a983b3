"""Base GGUF + adapter -> GGUF, without ever rounding to nearest what lies on a grid already.

file.py           reads a GGUF's header with its byte ranges, and writes one
architectures.py  what is known of each architecture
grids.py          scales and codes of each tensor type
rounding.py       how a value becomes a code
tensors.py        which adapter module is which tensor, and in which order of rows
merge.py          the streaming pass
"""
