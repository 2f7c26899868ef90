"""Writes a GGUF file and makes sure that it is the model.

The checks, on what was read back from the file: every key and every tensor is there; no number is further from ours
than its type explains; and the logits are those of the model, with its weights rounded likewise.
"""

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minigpt.config import WorkError
from minigpt.interop.exporting import ExportSource, Log
from minigpt.interop.folding import fold
from minigpt.interop.gguf import rotation
from minigpt.interop.gguf.architectures import Representation, represent
from minigpt.interop.gguf.library import gguf_library
from minigpt.interop.gguf.modelfile import modelfile
from minigpt.interop.gguf.numbers import KINDS, Kind, largest_error, rounded, stored, type_of
from minigpt.interop.gguf.reading import GGUFSource, build
from minigpt.interop.gguf.tensors import TABLE_TENSOR, rules
from minigpt.interop.gguf.tokens import vocabulary
from minigpt.interop.huggingface.represent import rewrite
from minigpt.interop.tensors import to_ours, to_theirs
from minigpt.interop.verify import TOLERANCE, verification_ids, verify
from minigpt.model import GPT
from minigpt.storage.fs import write_file

FILE = "model.gguf"
MODELFILE = "Modelfile"


def export_gguf(source: ExportSource, folder: Path, dtype: str, log: Log) -> Path:
    """Write model.gguf and a Modelfile for Ollama into an existing folder; gives the former.

    dtype: one of KINDS. RequestError: GGUF cannot say this model or its tokenizer, or not in these numbers, with the
    reason. WorkError: what was written is not the model.
    """
    library, kind = gguf_library(), KINDS[dtype]
    found = represent(source.config)
    tokens = vocabulary(source.tokenizer, found.config, source.begin)
    for note in tokens.notes:
        log(note)
    theirs = _tensors(source, found)
    types = {name: type_of(name, tensor, kind) for name, tensor in theirs.items()}
    architecture = found.architecture.name
    keys = {f"{architecture}.{key}" if "minigpt." not in key else key: value for key, value in _keys(found).items()}
    path = folder / FILE
    writer = library.GGUFWriter(path, architecture)
    _add_keys(writer, {"general.name": source.name, "general.file_type": kind.file_type, **keys, **tokens.keys})
    if any(type_name.startswith("Q") for type_name in types.values()):
        writer.add_quantization_version(library.GGML_QUANT_VERSION)
    _write(writer, theirs, types)
    _check(path, source, found, theirs, types, kind, log)
    write_file(folder / MODELFILE, modelfile(FILE, tokens, found.config).encode())
    return path


def _tensors(source: ExportSource, found: Representation) -> dict[str, Tensor]:
    """Theirs in fp32, by name."""
    state: dict[str, Tensor] = dict(source.model.state_dict())
    with_norms = source.config.model_copy(update={"norm_weight": found.folded.norm_weight})
    state = rewrite(state, source.config, with_norms)
    state = fold(state, source.config, found.folded)
    state = rewrite(state, found.folded, found.config)
    return dict(to_theirs(rules(found.architecture, found.config), state)) | _table(found)


def _keys(found: Representation) -> dict[str, Any]:
    keys = found.architecture.write(found.config)
    keys.pop(rotation.TABLE, None)
    return keys


def _table(found: Representation) -> dict[str, Tensor]:
    """The table of rotary frequencies, if the model needs one."""
    table = found.architecture.write(found.config).get(rotation.TABLE)
    return {} if table is None else {TABLE_TENSOR: torch.tensor(table, dtype=torch.float32)}


def _add_keys(writer: Any, keys: Mapping[str, Any]) -> None:
    """Whole numbers are written as uint32 (lists of them as int32), others as float32."""
    for key, value in keys.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)


def _write(writer: Any, tensors: Mapping[str, Tensor], types: Mapping[str, str]) -> None:
    """The file; one tensor at a time is in memory in the numbers of the file."""
    library = gguf_library()
    try:
        for name, tensor in tensors.items():
            type_name = library.GGMLQuantizationType[types[name]]
            block, size = library.GGML_QUANT_SIZES[type_name]
            if tensor.size(-1) % block:
                stored(name, tensor, types[name])  # says what is wrong
            count = tensor.numel() // block * size
            writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), count, raw_dtype=type_name)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in tensors.items():
            writer.write_tensor_data(stored(name, tensor, types[name]))
    except OSError as error:
        if error.errno is not None:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error  # numpy only says how far it got
    finally:
        writer.close()


def _check(
    path: Path,
    source: ExportSource,
    found: Representation,
    tensors: Mapping[str, Tensor],
    types: Mapping[str, str],
    kind: Kind,
    log: Log,
) -> None:
    """WorkError unless the file is the model."""
    written = GGUFSource(path)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise WorkError(f"the model's {name} has numbers that are not finite, so no export of it can be verified")
        error = largest_error(tensor, written.get(name), types[name])
        if not error <= 1:
            raise WorkError(f"the export is wrong: {name} is not what was written, so nothing was kept")
    read = build(written.config, written.tensors())
    if kind.error == 0:
        worst = verify(read, source.model, what="the GGUF file")
    else:
        mapping = rules(found.architecture, found.config)
        verify(build(found.config, to_ours(mapping, tensors.__getitem__)), source.model, what="the GGUF file")
        as_read = build(found.config, to_ours(mapping, lambda name: rounded(name, tensors[name], types[name])))
        worst = verify(read, as_read, what="the GGUF file")
        _tell_what_rounding_did(source.model, read, log)
    log(f"verified: read back, its logits differ by {worst:.1e} of the largest one ({TOLERANCE:.0e} is allowed)")


def _tell_what_rounding_did(model: GPT, read: GPT, log: Log) -> None:
    ids = verification_ids(model.config)
    with torch.no_grad():
        exact, got = model(ids).float(), read(ids).float()
    agree = float((exact.argmax(-1) == got.argmax(-1)).float().mean())
    drift = float((exact - got).abs().max() / exact.abs().max().clamp(min=1.0))
    log(
        f"rounding changes logits by up to {drift:.1e} of the largest one; the likeliest token stays "
        f"the same in {agree:.0%} of random contexts"
    )
