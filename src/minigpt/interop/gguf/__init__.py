"""GGUF, the file format of llama.cpp: our models go out in it, and such files come back in.

Needs the package `gguf` (extra `gguf`), which knows the bytes of the format; what a model's keys and tensors mean is
written here, as llama.cpp's loaders (src/models) understand them. llama.cpp's own converter cannot be used: it takes
no tokenizer that it does not know by its hash.
"""

from minigpt.interop.gguf.reading import read_gguf
from minigpt.interop.gguf.writing import export_gguf

__all__ = ["export_gguf", "read_gguf"]
