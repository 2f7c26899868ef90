"""How tensors are stored: in 32 or 16 bits, or in blocks of 32 numbers of 8 or 4 bits with a common scale.

Norms, biases, routers, tables of positions and of rotary frequencies stay in 32 bits, as llama.cpp's own tools have
it. In a file of 4 bits the embeddings and the head have 8: they suffer most and are a small part of a large model.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minigpt.config import RequestError
from minigpt.interop.gguf.library import gguf_library

BLOCK = 32
"""Numbers that have a scale together."""


@dataclass(frozen=True)
class Kind:
    """A type of file."""

    matrices: str
    """Type of the matrices, as the package `gguf` names it."""
    outer: str
    """Type of the embeddings and the head."""
    file_type: int
    """`general.file_type`: llama.cpp's `llama_ftype`."""
    error: float
    """Largest error of a number, as a part of the largest one of its block (of itself in 16 bits)."""


KINDS = {
    "f32": Kind("F32", "F32", 0, 0.0),
    "f16": Kind("F16", "F16", 1, 2.0**-11),
    "bf16": Kind("BF16", "BF16", 32, 2.0**-8),
    "q8_0": Kind("Q8_0", "Q8_0", 7, 1 / 254 + 2.0**-10),
    "q4_0": Kind("Q4_0", "Q8_0", 2, 1 / 8 + 2.0**-10),
}
"""By the name that users give."""

_IN_FULL = ("gate_inp.weight", "gate_inp_shexp.weight", "position_embd.weight", "rope_freqs.weight")


def type_of(name: str, tensor: Tensor, kind: Kind) -> str:
    """The type in which a tensor is written."""
    if tensor.dim() < 2 or name.endswith(_IN_FULL):
        return "F32"
    return kind.outer if name in ("token_embd.weight", "output.weight") else kind.matrices


def stored(name: str, tensor: Tensor, type_name: str) -> NDArray[np.generic]:
    """The tensor as it is written: an array of fp32 or fp16, or of the bytes of blocks.

    RequestError: its rows do not fit into blocks, or fp16 cannot hold a number of it.
    """
    library = gguf_library()
    if type_name.startswith("Q") and tensor.size(-1) % BLOCK:
        raise RequestError(
            f"{type_name.lower()} needs rows of a multiple of {BLOCK} numbers, and {name} has {tensor.size(-1)}: "
            "choose f16, bf16 or f32"
        )
    if type_name == "F16" and tensor.numel() and float(tensor.abs().max()) > torch.finfo(torch.float16).max:
        raise RequestError(f"{name} has numbers that are too large for f16: choose bf16 or f32")
    numbers = tensor.detach().float().contiguous().numpy()
    array: NDArray[np.generic] = library.quantize(numbers, library.GGMLQuantizationType[type_name])
    return array


def rounded(name: str, tensor: Tensor, type_name: str) -> Tensor:
    """The tensor as it is read again."""
    library = gguf_library()
    read = library.dequantize(stored(name, tensor, type_name), library.GGMLQuantizationType[type_name])
    return torch.from_numpy(np.ascontiguousarray(read, dtype=np.float32)).reshape(tensor.shape)


def largest_error(tensor: Tensor, read: Tensor, type_name: str) -> float:
    """By how much a tensor was changed at most, as a multiple of what its type explains (so above 1 it is wrong)."""
    exact, difference = tensor.float(), (tensor.float() - read).abs()
    if type_name == "F32":
        return float("inf") if bool(difference.any()) else 0.0
    bound = KINDS[type_name.lower()].error
    if type_name.startswith("Q"):
        exact, difference = exact.reshape(-1, BLOCK), difference.reshape(-1, BLOCK)
        allowed = bound * exact.abs().amax(dim=1, keepdim=True)
    else:
        allowed = bound * exact.abs()
    return float((difference / (allowed + 2.0**-24)).max())
