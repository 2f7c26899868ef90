"""The package `gguf`, which is optional."""

from types import ModuleType

from minigpt.config import RequestError


def gguf_library() -> ModuleType:
    """The module `gguf`. RequestError: it is not installed."""
    try:
        import gguf
    except ImportError:
        raise RequestError('GGUF files need the package gguf: pip install "minigpt[gguf]"') from None
    library: ModuleType = gguf
    return library
