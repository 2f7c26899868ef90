"""Checkpoints of nanoGPT (https://github.com/karpathy/nanoGPT), the file ckpt.pt of its train.py.

The file is a pickle of {"model": named tensors, "model_args": sizes, ...}, read by PyTorch's restricted reader: nothing
in it can run. The network is GPT-2's with the exact GELU and, if trained with bias=False, without any biases; names in
a compiled model begin with `_orig_mod.`. The vocabulary is not in the file: nanoGPT uses GPT-2's, or for characters a
pickle of its own, meta.pkl, which is not read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from minigpt.config import ModelConfig, RequestError, WorkError
from minigpt.interop.huggingface.options import Options, model_config
from minigpt.interop.importing import Imported
from minigpt.interop.sources import RenamedSource, TorchSource, load_pickle
from minigpt.interop.tensors import Rule, check_source, same, to_ours
from minigpt.model import GPT

PROGRAM = "nanoGPT"
COMPILED = "_orig_mod."
HEAD, EMBED = "lm_head.weight", "transformer.wte.weight"
UNNAMED = (r"transformer\.h\.\d+\.attn\.bias", HEAD)
"""The causal mask, which old versions saved, and the head, which is the embedding."""
EPS = 1e-5  # F.layer_norm in its model.py
SIZES = {"n_layer": "n_layer", "n_head": "n_head", "n_embd": "n_embd", "context_length": "block_size",
         "vocab_size": "vocab_size"}  # fmt: skip


def read_nanogpt(path: Path) -> Imported:
    """The model of a ckpt.pt.

    Raises RequestError: it is no checkpoint of nanoGPT. WorkError: it would run code, or its tensors are not those of
    its sizes. CorruptFolderError: it is damaged.
    """
    content = load_pickle(path)
    if not isinstance(content, Mapping) or not all(
        isinstance(content.get(k), Mapping) for k in ("model", "model_args")
    ):
        raise RequestError(f"{path} is not a checkpoint of nanoGPT: it has no model and model_args")
    source = TorchSource(path, "model")
    names = {name.removeprefix(COMPILED): name for name in source.names()}
    named = RenamedSource(source, names)
    config = _read_config(content["model_args"], any(name.endswith("ln_1.bias") for name in names))
    rules = _rules(config)
    with torch.device("meta"):
        expected = GPT(config).state_dict()
    check_source(rules, expected, named, UNNAMED)
    if HEAD in names and not torch.equal(named.get(HEAD), named.get(EMBED)):
        raise WorkError(f"{path} has a head of its own ({HEAD}), which nanoGPT's models do not have")
    note = "nanoGPT keeps the vocabulary elsewhere: give it with --tokenizer (GPT-2's, mostly)"
    return Imported(config, to_ours(rules, named.get), notes=[note])


def _read_config(arguments: Mapping[str, Any], biased: bool) -> ModelConfig:
    """biased: whether there are biases, for files of the time before the option `bias`."""
    options = Options(arguments, PROGRAM)
    return model_config(
        PROGRAM,
        **{ours: options.whole(theirs) for ours, theirs in SIZES.items()},
        bias=options.flag("bias", biased),
        dropout=options.number("dropout", 0.0),
        norm="layernorm",
        norm_eps=EPS,
        position="learned",
        mlp="gelu",
        qk_norm="none",
        tie_embeddings=True,
    )


def _rules(config: ModelConfig) -> list[Rule]:
    """GPT-2's names, all matrices as (out, in)."""
    pairs = [("norm", "ln_f")]
    for i in range(config.n_layer):
        layers = {"attention_norm": "ln_1", "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj",
                  "mlp_norm": "ln_2", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}  # fmt: skip
        pairs += [(f"blocks.{i}.{ours}", f"h.{i}.{theirs}") for ours, theirs in layers.items()]
    kinds = ("weight", "bias") if config.bias else ("weight",)
    tables = [same("embed.weight", EMBED), same("position.weight", "transformer.wpe.weight")]
    return tables + [same(f"{ours}.{kind}", f"transformer.{theirs}.{kind}") for ours, theirs in pairs for kind in kinds]
