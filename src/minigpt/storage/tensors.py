"""Named tensors in one safetensors file. Nothing is pickled, so reading a file from a stranger runs no code.

Imports torch: the rest of storage imports this module only inside the functions that need it.
"""

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from minigpt.config import RequestError, WorkError
from minigpt.storage.atomic import CorruptFolderError, read_error
from minigpt.storage.tensor_files import TensorFiles, write_whole

_WRAPPER = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module)\.|^module\.")


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a new file; equal tensors give equal bytes, whatever the order of the mapping.

    Tensors may be on any device and of any layout; those that are contiguous on the CPU are written without a copy,
    and of those that lie in other files (`TensorFiles`) one at a time is in memory.
    Raises `OSError` as any write does, `ValueError` for a name with a wrapper's prefix (`_orig_mod.`, `module.`).
    """
    for name in tensors:
        if _WRAPPER.search(name):
            raise ValueError(f"tensor name {name!r} has a wrapper's prefix: save the state of the wrapped module")
    if isinstance(tensors, TensorFiles):
        write_whole(path, tensors)
        return
    # Sorted: safetensors orders by size of the data type and then by name, but only the former is promised.
    flat = {name: tensors[name].detach().to("cpu").contiguous() for name in sorted(tensors)}
    # safetensors publishes a private file (mode 0600); the others get what the user's umask says, so take it from one.
    path.touch(exist_ok=False)
    mode = path.stat().st_mode & 0o777
    try:
        save_file(flat, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise _as_os_error(error, path) from error
    path.chmod(mode)


def load_tensors(path: Path, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
    """Read a file. On the CPU the tensors are mapped from it: writing to them does not reach the disk.

    Raises `RequestError` if there is no such file, `CorruptFolderError` if it is not a whole safetensors file.
    """
    if not path.is_file():
        raise RequestError(f"{path} does not exist")
    try:
        return dict(load_file(path, device=str(device)))
    except SafetensorError as error:
        raise CorruptFolderError(path.parent, f"{path.name} is not a whole safetensors file ({error})") from error
    except OSError as error:
        raise read_error(path.parent, path.name, error) from error


def load_state_into(module: torch.nn.Module, path: Path) -> None:
    """Copy the tensors of a file into a module's parameters and buffers; every one must be there and fit.

    Raises `WorkError` naming the first tensor that is missing, unknown or of another shape.
    """
    state = load_tensors(path)
    expected = module.state_dict()
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    if missing:
        raise WorkError(f"{path} does not fit its config.json: it lacks the tensor {_listed(missing)}")
    if unknown:
        raise WorkError(f"{path} does not fit its config.json: it has the unknown tensor {_listed(unknown)}")
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape:
            raise WorkError(
                f"{path} does not fit its config.json: the tensor {name} has the shape {tuple(state[name].shape)} "
                f"instead of {tuple(tensor.shape)}"
            )
    module.load_state_dict(state)


def _listed(names: list[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def _as_os_error(error: SafetensorError, path: Path) -> OSError:
    """safetensors tells a full disk only in the text of its error, as Rust words it: `... (os error 28)`."""
    match = re.search(r"\(os error (\d+)\)", str(error))
    number = int(match[1]) if match else errno.EIO
    return OSError(number, os.strerror(number) if match else str(error), str(path))
