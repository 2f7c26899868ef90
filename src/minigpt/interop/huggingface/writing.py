"""A model of ours as a folder that transformers loads: `AutoModelForCausalLM` and `AutoTokenizer`.

Written are config.json (with the keys of transformers 4 and of 5), generation_config.json, the weights (in files of at
most 5 GB, with an index if there are several), and the tokenizer as `PreTrainedTokenizerFast`: the classes that
transformers has for single families would make another pre-tokenizer of the same vocabulary.
"""

import importlib.util
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minigpt.config import RequestError, WorkError
from minigpt.interop.begin import with_begin
from minigpt.interop.exporting import ExportSource, Log
from minigpt.interop.huggingface.families import FAMILIES
from minigpt.interop.huggingface.reading import build_model
from minigpt.interop.huggingface.represent import Representation, as_represented, represent
from minigpt.interop.tensors import to_ours, to_theirs
from minigpt.interop.verify import TOLERANCE, Logits, verify
from minigpt.model import GPT
from minigpt.storage.fs import write_file
from minigpt.storage.tensors import save_tensors
from minigpt.tokenizer import Tokenizer
from minigpt.tokenizer.pieces import PieceTokenizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHARD_BYTES = 5_000_000_000
"""Largest weight file, as transformers writes them (a tensor that is larger has a file of its own)."""
KEPT_IN_FP32 = ("e_score_correction_bias",)
"""Ends of names of tensors that transformers keeps in fp32 whatever the model's dtype is."""


def export_hf(source: ExportSource, folder: Path, dtype: str, log: Log) -> Path:
    """Write a Hugging Face folder into an existing empty one and verify it (see `exporting.Exporter`)."""
    as_theirs = represent(source.config, FAMILIES)
    require_same_tokens(source.tokenizer)
    kind = DTYPES[dtype]
    state = as_represented(source.model.state_dict(), source.config, as_theirs)
    rules = as_theirs.family.rules(as_theirs.config)
    rounded = dict(_rounded(to_theirs(rules, state), kind))

    words = source.tokenizer
    settings = {} if words is None else _write_tokenizer(words, source, folder)
    special = _special_ids(words, settings)
    write_weights(folder, rounded.items(), SHARD_BYTES)
    _write_json(folder / "config.json", _config_json(as_theirs, dtype, special))
    _write_json(folder / "generation_config.json", _generation_json(words, special))
    log(f"written as {as_theirs.family.architecture}" + _because(as_theirs))

    expected = source.model
    if kind != torch.float32:  # what rounding changes is not the file's fault
        verify(_network(as_theirs, state), expected, what="the model as that class")
        expected = _network(as_theirs, dict(to_ours(rules, rounded.__getitem__)))
        moved = verify(expected, source.model, tolerance=float("inf"))
        log(f"rounding to {dtype} moves the logits by up to {moved:.1e} of the largest one")
    _verify(folder, as_theirs.family.architecture, expected, log)
    return folder


def write_weights(folder: Path, tensors: Iterable[tuple[str, Tensor]], limit: int) -> None:
    """model.safetensors, or, of more than `limit` bytes, several files and their index. Raises `OSError`."""
    shards: list[list[str]] = []
    waiting: dict[str, Tensor] = {}
    total = size = 0

    def write() -> None:
        shards.append(list(waiting))
        save_tensors(folder / f"part-{len(shards)}", waiting)
        waiting.clear()

    for name, tensor in tensors:
        if waiting and size + tensor.nbytes > limit:
            write()
            size = 0
        waiting[name] = tensor
        size += tensor.nbytes
        total += tensor.nbytes
    write()
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
        where = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        _write_json(
            folder / "model.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))},
        )
    for number, name in enumerate(names, start=1):
        os.rename(folder / f"part-{number}", folder / name)


def require_same_tokens(tokenizer: Tokenizer | None) -> None:
    """RequestError if the tokenizer has no tokenizer.json that gives the same ids."""
    if isinstance(tokenizer, PieceTokenizer):
        tokenizer.tokenizer_json()


def _rounded(tensors: Iterable[tuple[str, Tensor]], kind: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Each tensor in the dtype of the file. RequestError for one whose numbers are too large for it."""
    for name, tensor in tensors:
        new = tensor.to(torch.float32 if name.endswith(KEPT_IN_FP32) else kind)
        if new.dtype == torch.float16 and new.isinf().any() and not tensor.isinf().any():
            raise RequestError(f"the tensor {name} has numbers that are too large for fp16: choose bf16 or fp32")
        yield name, new


def _config_json(as_theirs: Representation, dtype: str, special: dict[str, Any]) -> dict[str, Any]:
    kind = str(DTYPES[dtype]).removeprefix("torch.")
    return {
        "architectures": [as_theirs.family.architecture],
        "model_type": as_theirs.family.model_type,
        **as_theirs.hf_config,
        **special,
        "use_cache": True,
        "torch_dtype": kind,  # transformers 4
        "dtype": kind,  # transformers 5
    }


def _special_ids(tokenizer: Tokenizer | None, settings: dict[str, Any]) -> dict[str, int | None]:
    """Always written, since what the classes take for granted belongs to other vocabularies."""
    ids: dict[str, int | None] = {}
    for name in ("bos", "eos", "pad"):
        token = settings.get(f"{name}_token")
        if isinstance(token, dict):  # an AddedToken written out
            token = token.get("content")
        ids[f"{name}_token_id"] = None if tokenizer is None else tokenizer.special_tokens.get(str(token))
    return ids


def _generation_json(tokenizer: Tokenizer | None, special: dict[str, int | None]) -> dict[str, Any]:
    """Text ends at the stated end (of a turn, in chat models) and at that of a document."""
    ends = {special["eos_token_id"], None if tokenizer is None else tokenizer.eot_id} - {None}
    return {**special, "eos_token_id": sorted(ends) if len(ends) > 1 else next(iter(ends), None)}


def _write_tokenizer(tokenizer: Tokenizer, source: ExportSource, folder: Path) -> dict[str, Any]:
    """Its files, with what stands before every text; gives the content of tokenizer_config.json."""
    tokenizer.save(folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_bytes())
    ids = {i: name for name, i in tokenizer.special_tokens.items()}
    changed = with_begin(content, {ids[i]: i for i in source.begin if i in ids})
    if changed != content:
        path.unlink()
        write_file(path, json.dumps(changed, ensure_ascii=False).encode())
    path = folder / "tokenizer_config.json"
    settings: dict[str, Any] = {**json.loads(path.read_bytes()), "model_max_length": source.config.context_length}
    path.unlink()
    _write_json(path, settings)
    return settings


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_file(path, (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _because(as_theirs: Representation) -> str:
    if not as_theirs.rewritten:
        return ""
    return f", the same function with another {', '.join(as_theirs.rewritten)}"


def _network(as_theirs: Representation, state: dict[str, Tensor]) -> GPT:
    with torch.device("meta"):
        model = GPT(as_theirs.config)
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def _verify(folder: Path, architecture: str, expected: GPT, log: Log) -> None:
    """By reading the folder ourselves, and by transformers where it is installed and knows the class."""
    worst = verify(build_model(folder), expected, what="what was written")
    log(f"verified: read back, its logits differ by {worst:.1e} of the largest one ({TOLERANCE:.0e} is allowed)")
    if importlib.util.find_spec("transformers") is None:
        log("not run by transformers, which is not installed")
        return
    try:
        import transformers
    except Exception as error:  # whatever a broken installation raises
        log(f"not run by transformers, which cannot be imported: {error}")
        return
    if not hasattr(transformers, architecture):
        log(f"not run by transformers: its version {transformers.__version__} has no {architecture}")
        return
    worst = verify(_transformers_logits(folder), expected, what="what transformers computes")
    log(f"verified: in transformers {transformers.__version__} its logits differ by {worst:.1e}")


def _transformers_logits(folder: Path) -> Logits:
    """The folder's network as transformers loads it, computing in fp32, without its progress bars."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        network = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            attn_implementation="eager",  # which alone has every option
        )
    except Exception as error:  # whatever it has to say against the folder
        raise WorkError(f"what was written is wrong: transformers cannot load it: {error}") from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
    network = network.float().eval()
    if hasattr(network.config, "_experts_implementation"):
        network.set_experts_implementation("eager")  # the others want widths that are multiples of four
    return lambda ids: network(ids, use_cache=False).logits
