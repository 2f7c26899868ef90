"""Model files of llama2.c (https://github.com/karpathy/llama2.c), version 0, in and out.

The file, all little-endian: seven int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len; a
negative vocab_size says that the head is not the embedding), then fp32 tensors without names in the order of `_layout`,
each kind for all layers before the next kind. Version 0 also has tables of cos and sin, which run.c does not read.

run.c fixes what the header does not say: RMSNorm with 1e-5, rotary positions with base 10,000 in the interleaved
layout, SwiGLU, no biases.
"""

import math
import struct
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from minigpt.config import ModelConfig, RequestError
from minigpt.interop.exporting import ExportSource, Log
from minigpt.interop.huggingface.family import Family, unrepresented
from minigpt.interop.huggingface.options import model_config
from minigpt.interop.huggingface.represent import lack
from minigpt.interop.importing import Imported
from minigpt.interop.llama2c_tokenizer import tokenizer_bin
from minigpt.interop.resize import resize
from minigpt.interop.tensors import (
    Rule,
    check_source,
    half_from_interleaved,
    interleaved_from_half,
    rows,
    same,
    to_ours,
    to_theirs,
)
from minigpt.interop.verify import TOLERANCE, verify
from minigpt.model import GPT
from minigpt.storage import CorruptFolderError
from minigpt.storage.atomic import read_error
from minigpt.tokenizer import load_llama2c
from minigpt.tokenizer.llama2c import BIN_FILE

MODEL_FILE = "model.bin"
FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
HEADER = struct.Struct("<7i")
NEWER = 0x616B3432  # "ak42", which versions 1 (fp32) and 2 (int8) begin with
EPS, THETA = 1e-5, 10000.0  # run.c: rmsnorm and the rotation in forward
UNNAMED = ("freqs_cos", "freqs_sin")


class Llama2c(Family):
    """What run.c computes. The keys of its configuration are FIELDS and `shared` (the head is the embedding)."""

    model_type = "llama2c"
    architecture = "llama2.c"

    def read(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        dim, inner, layers, heads, kv_heads, tokens, length = (hf_config[field] for field in FIELDS)
        return model_config(
            self.architecture, n_embd=dim, n_inner=inner, n_layer=layers, n_head=heads, n_kv_head=kv_heads,
            vocab_size=tokens, context_length=length, norm="rmsnorm", norm_eps=EPS, position="rope", rope_theta=THETA,
            mlp="swiglu", qk_norm="none", tie_embeddings=hf_config["shared"], bias=False,
        )  # fmt: skip

    def write(self, config: ModelConfig) -> dict[str, Any]:
        sizes = (config.n_embd, config.inner_size, config.n_layer, config.n_head, config.kv_heads, config.vocab_size,
                 config.context_length)  # fmt: skip
        return {**dict(zip(FIELDS, sizes, strict=True)), "shared": config.tie_embeddings}

    def rules(self, config: ModelConfig) -> list[Rule]:
        rules = [same("embed.weight", "tok_embeddings"), same("norm.weight", "norm")]
        for i in range(config.n_layer):
            ours = f"blocks.{i}"
            rules += [
                same(f"{ours}.attention_norm.weight", f"attention_norm.{i}"),
                _qkv(config, i),
                same(f"{ours}.attention.out.weight", f"wo.{i}"),
                same(f"{ours}.mlp_norm.weight", f"ffn_norm.{i}"),
                rows(f"{ours}.mlp.gate_up.weight", [f"w1.{i}", f"w3.{i}"], [config.inner_size] * 2),
                same(f"{ours}.mlp.down.weight", f"w2.{i}"),
            ]
        return rules if config.tie_embeddings else [*rules, same("head.weight", "wcls")]


def _qkv(config: ModelConfig, layer: int) -> Rule:
    """Queries, keys and values below each other, their rotating dimensions in the order of ours."""
    query, key = config.n_head * config.head_size, config.kv_heads * config.head_size
    rule = rows(f"blocks.{layer}.attention.qkv.weight", [f"w{name}.{layer}" for name in "qkv"], (query, key, key))
    for index, heads in enumerate((config.n_head, config.kv_heads)):
        rule = rule.changed(
            index,
            lambda tensor, heads=heads: half_from_interleaved(tensor, heads),  # type: ignore[misc]
            lambda tensor, heads=heads: interleaved_from_half(tensor, heads),  # type: ignore[misc]
        )
    return rule


def read_llama2c(path: Path) -> Imported:
    """The model of a file, with the tokenizer.bin beside it if that has as many tokens.

    Raises RequestError: it is no llama2.c file, or one of another version. CorruptFolderError: it is cut short.
    """
    source = Llama2cSource(path)
    family = Llama2c()
    config = family.read(source.header)
    rules = family.rules(config)
    with torch.device("meta"):
        expected = GPT(config).state_dict()
    check_source(rules, expected, source, UNNAMED)
    imported = Imported(config, to_ours(rules, source.get))
    beside = path.parent / BIN_FILE
    if beside.is_file():
        tokens = load_llama2c(beside).vocab_size
        if tokens == config.vocab_size:
            imported.tokenizer = beside
        else:
            imported.notes.append(
                f"{beside} has {tokens:,} tokens and the model {config.vocab_size:,}, so it is not taken"
            )
    return imported


class Llama2cSource:
    """The tensors of a file (see `minigpt.interop.tensors.TensorSource`); names as in llama2.c's model.py."""

    def __init__(self, path: Path) -> None:
        self.place, self._path = str(path), path
        try:
            with path.open("rb") as file:
                begin = file.read(HEADER.size)
                size = file.seek(0, 2)
        except OSError as error:
            raise read_error(path.parent, path.name, error) from error
        self.header = _read_header(path, begin)
        self._places: dict[str, tuple[int, tuple[int, ...]]] = {}
        kinds = list(_kinds(self.header))
        wanted = HEADER.size + sum(4 * (count or 1) * math.prod(shape) for _, shape, count in kinds)
        if size != wanted:  # before anything is made as long as a header says, which may be anything
            reason = f"it has {size:,} bytes and not the {wanted:,} that its header asks for"
            raise CorruptFolderError(path.parent, reason, f"{path} is not a whole llama2.c file: {reason}")
        at = HEADER.size
        for name, shape in _layout(self.header):
            self._places[name] = (at, shape)
            at += 4 * math.prod(shape)

    def names(self) -> Collection[str]:
        return self._places.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._places[name][1]

    def get(self, name: str) -> Tensor:
        at, shape = self._places[name]
        try:
            found = np.fromfile(self._path, dtype="<f4", count=math.prod(shape), offset=at)
        except OSError as error:
            raise read_error(self._path.parent, self._path.name, error) from error
        return torch.from_numpy(found.astype(np.float32, copy=False)).view(shape)


def _read_header(path: Path, begin: bytes) -> dict[str, Any]:
    if len(begin) < HEADER.size:
        raise RequestError(f"{path} is not a llama2.c file: it is too short")
    values = HEADER.unpack(begin)
    if values[0] == NEWER:
        raise RequestError(
            f"{path} is a llama2.c file of version {values[1]}: minigpt reads version 0, which export.py of llama2.c "
            "writes with --version 0"
        )
    header: dict[str, Any] = dict(zip(FIELDS, values, strict=True))
    header |= {"shared": header["vocab_size"] > 0, "vocab_size": abs(header["vocab_size"])}
    dim, heads, kv_heads = header["dim"], header["n_heads"], header["n_kv_heads"]
    possible = min(header[field] for field in FIELDS) > 0 and heads % kv_heads == 0 and dim % (2 * heads) == 0
    if not possible:
        said = ", ".join(f"{field}={value}" for field, value in zip(FIELDS, values, strict=True))
        raise RequestError(f"{path} is not a llama2.c file: its header would mean {said}")
    return header


def _kinds(header: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...], int | None]]:
    """Name, shape and number (None: one, which is not a layer's) of each kind of tensor, in the order of the file."""
    dim, hidden, layers, heads, kv_heads, tokens, length = (header[field] for field in FIELDS)
    kv_dim = dim // heads * kv_heads
    yield "tok_embeddings", (tokens, dim), None
    yield "attention_norm", (dim,), layers
    yield "wq", (dim, dim), layers
    yield "wk", (kv_dim, dim), layers
    yield "wv", (kv_dim, dim), layers
    yield "wo", (dim, dim), layers
    yield "ffn_norm", (dim,), layers
    yield "w1", (hidden, dim), layers
    yield "w2", (dim, hidden), layers
    yield "w3", (hidden, dim), layers
    yield "norm", (dim,), None
    for table in UNNAMED:
        yield table, (length, dim // heads // 2), None
    if not header["shared"]:
        yield "wcls", (tokens, dim), None


def _layout(header: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor, in the order of the file."""
    for kind, shape, count in _kinds(header):
        for name in [kind] if count is None else (f"{kind}.{i}" for i in range(count)):
            yield name, shape


def export_llama2c(source: ExportSource, folder: Path, dtype: str, log: Log) -> Path:
    """Write model.bin and tokenizer.bin into an existing empty folder and verify them (see `exporting.Exporter`)."""
    family = Llama2c()
    config = source.config.model_copy(update={"vocab_multiple": 1})
    different = unrepresented(family, config)
    if different:
        raise RequestError(
            f"llama2.c cannot say this model: it {' and '.join(lack(key, *pair) for key, pair in different.items())}"
        )
    tokens = None if source.tokenizer is None else tokenizer_bin(source.tokenizer, config.padded_vocab_size)
    state = dict(resize(source.config, source.model.state_dict().items(), vocab_multiple=1)[1])
    path = folder / MODEL_FILE
    with path.open("xb") as file:
        write_llama2c(file, config, state)
    if tokens is None:
        log(f"the model has no tokenizer, so there is no {BIN_FILE}, which run.c needs for text")
    else:
        (folder / BIN_FILE).write_bytes(tokens)

    imported = read_llama2c(path)
    with torch.device("meta"):
        written = GPT(imported.config)
    written.load_state_dict(dict(imported.tensors), assign=True)
    worst = verify(written.eval(), source.model, what="what was written")
    log(f"verified: read back, its logits differ by {worst:.1e} of the largest one ({TOLERANCE:.0e} is allowed)")
    return path


def write_llama2c(file: BinaryIO, config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    """Header and tensors of a model that llama2.c can say, `vocab_multiple` being 1. Raises `OSError`."""
    family = Llama2c()
    header = family.write(config)
    signs = {"vocab_size": 1 if header["shared"] else -1}
    file.write(HEADER.pack(*(header[field] * signs.get(field, 1) for field in FIELDS)))
    theirs = dict(to_theirs(family.rules(config), state))
    theirs |= dict(zip(UNNAMED, _tables(config), strict=True))
    for name, _ in _layout(header):
        file.write(theirs.pop(name).detach().cpu().numpy().astype("<f4", copy=False).tobytes())


def _tables(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """(length, head_dim / 2) cos and sin, computed as llama2.c's model.py does (precompute_freqs_cis)."""
    dim = config.head_size
    frequency = 1.0 / (THETA ** (torch.arange(0, dim, 2).float() / dim))
    angle = torch.outer(torch.arange(config.context_length), frequency).float()
    return angle.cos(), angle.sin()
