"""Models of other programs: Hugging Face folders, GGUF, llama2.c and nanoGPT files in and out, and merging."""

from minigpt.interop.importing import Imported, import_model, read_model

__all__ = ["Imported", "import_model", "read_model"]
