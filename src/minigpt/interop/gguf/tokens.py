"""A tokenizer in GGUF's keys, if llama.cpp's own implementations give the same ids.

It has two that ours can be: `gpt2`, byte-level BPE with the splitting rules that it knows by name
(`tokenizer.ggml.pre`), and `llama`, SentencePiece's BPE, which merges by score. What each does is in its
src/llama-vocab.cpp.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers

from minigpt.config import ModelConfig, RequestError
from minigpt.interop.gguf.pieces import piece_keys
from minigpt.tokenizer import CharTokenizer, Tokenizer
from minigpt.tokenizer.patterns import CL100K, REGEXES, regex_of
from minigpt.tokenizer.pieces import PieceTokenizer

RULES = {"gpt2": "gpt-2", "llama3": "llama-bpe", "qwen2": "qwen2", "gpt4o": "gpt-4o"}
"""llama.cpp's names of our splitting rules."""
MERGING_RULES = {"llama3": "smaug-bpe"}
"""Its names of rules whose usual name also says that a word of the vocabulary is taken whole, for those that merge."""
CHAT_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")
"""Tokens by which chat models end a turn."""

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama_token_type


@dataclass(frozen=True)
class Vocabulary:
    """What is written about a tokenizer."""

    keys: dict[str, Any]
    chat_template: str | None = None
    ends: tuple[str, ...] = ()
    """Names of the tokens that end a text or a turn."""
    notes: tuple[str, ...] = field(default=())
    """What to tell people."""


def vocabulary(tokenizer: Tokenizer | None, config: ModelConfig, begin: Sequence[int] = ()) -> Vocabulary:
    """The keys of a model's tokenizer, and what stands before every text.

    RequestError: llama.cpp has none that gives the same ids, with the reason.
    """
    if len(begin) > 1:
        raise _impossible(f"{len(begin)} tokens stand before every text, and llama.cpp can put one there")
    if tokenizer is None:
        note = "the model has no tokenizer, so only programs that give token ids can use the file"
        return Vocabulary({"tokenizer.ggml.model": "no_vocab"}, notes=(note,))
    if config.vocab_size is not None and tokenizer.vocab_size > config.vocab_size:
        raise RequestError(
            f"the tokenizer has {tokenizer.vocab_size} ids and the model only {config.vocab_size}: they do not belong "
            "together"
        )
    if isinstance(tokenizer, CharTokenizer):
        raise _impossible("llama.cpp knows no vocabulary of single characters: train a tokenizer.kind=bpe")
    with tempfile.TemporaryDirectory() as name:
        tokenizer.save(Path(name))
        settings = json.loads((Path(name) / "tokenizer_config.json").read_text("utf-8"))
        template_file, json_file = Path(name) / "chat_template.jinja", Path(name) / "tokenizer.json"
        template = template_file.read_text("utf-8") if template_file.is_file() else settings.get("chat_template")
        content = json_file.read_text("utf-8") if json_file.is_file() else None
    size = config.vocab_size or tokenizer.vocab_size
    notes: list[str] = []
    if isinstance(tokenizer, PieceTokenizer):
        keys = piece_keys(tokenizer.model, size)
    elif content is None:
        raise _impossible("it has no tokenizer.json")
    else:
        keys = _byte_level_keys(json.loads(content), size, notes)
    keys |= {"tokenizer.ggml.add_bos_token": bool(begin)}
    if begin:
        keys["tokenizer.ggml.bos_token_id"] = begin[0]
    keys |= _special_keys(tokenizer, settings, keys)
    if isinstance(template, str):
        keys["tokenizer.chat_template"] = template
    ids = {keys["tokenizer.ggml.eos_token_id"], keys["tokenizer.ggml.eot_token_id"]}
    ends = tuple(keys["tokenizer.ggml.tokens"][i] for i in sorted(ids))
    return Vocabulary(keys, template if isinstance(template, str) else None, ends, tuple(notes))


def _byte_level_keys(content: dict[str, Any], size: int, notes: list[str]) -> dict[str, Any]:
    """The keys of a tokenizer.json of a byte-level BPE, with tokens up to number `size`."""
    model, added = content["model"], content["added_tokens"]
    regex = regex_of(content["pre_tokenizer"])
    if model["type"] != "BPE" or content["decoder"] is None or content["decoder"]["type"] != "ByteLevel":
        raise _impossible("it is not a byte-level BPE")
    if any(model.get(key) for key in ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix", "unk_token")):
        raise _impossible("it does more than merge bytes")
    if regex == CL100K:
        raise _impossible("llama.cpp has no rule that treats white space at the end of a text as cl100k does")
    pattern = next((name for name, known in REGEXES.items() if known == regex), None)
    if pattern is None:
        raise _impossible(f"llama.cpp does not split text by its rule: it knows {', '.join(RULES)}")
    rule, whole_words = RULES[pattern], bool(model.get("ignore_merges"))
    if not whole_words and pattern in MERGING_RULES:
        rule = MERGING_RULES[pattern]
    elif whole_words and pattern not in MERGING_RULES and not _merges_make_all(content):
        raise _impossible("it takes words of its vocabulary whole that no merges make (ignore_merges)")
    notes += _differences(content, pattern)
    names = {i: name for name, i in model["vocab"].items()} | {token["id"]: token["content"] for token in added}
    kinds = {token["id"]: CONTROL if token["special"] else USER_DEFINED for token in added}
    for token in added:
        if not token["special"] and any(token.get(key) for key in ("lstrip", "rstrip", "single_word")):
            raise _impossible(f"its token {token['content']!r} takes the spaces around it")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": rule,
        "tokenizer.ggml.tokens": [names.get(i, f"[UNUSED_{i}]") for i in range(size)],
        "tokenizer.ggml.token_type": [kinds.get(i, NORMAL) if i in names else UNUSED for i in range(size)],
        "tokenizer.ggml.merges": merges,
    }


def _differences(content: dict[str, Any], pattern: str) -> list[str]:
    """What llama.cpp does otherwise with some texts, and cannot be told."""
    notes = []
    if content["normalizer"] is not None:
        kind = content["normalizer"]["type"]
        if kind not in ("NFC", "NFKC", "NFD", "NFKD"):
            raise _impossible(f"llama.cpp does not change texts first as its normalizer ({kind}) does")
        notes.append(f"llama.cpp does not normalise text to {kind}: text in another form gets other ids there")
    if pattern == "gpt4o":
        notes.append("llama.cpp may split words with capitals or accents outside ASCII elsewhere than gpt4o does")
    return notes


def _merges_make_all(content: dict[str, Any]) -> bool:
    """Whether the merges alone make every word of the vocabulary, so that to take words whole changes nothing."""
    special = {token["content"] for token in content["added_tokens"]}
    model = {**content["model"], "ignore_merges": False}
    merging = tokenizers.Tokenizer.from_str(json.dumps({**content, "model": model})).model
    return all(len(merging.tokenize(word)) == 1 for word in model["vocab"] if word not in special)


def _special_keys(tokenizer: Tokenizer, settings: dict[str, Any], keys: dict[str, Any]) -> dict[str, Any]:
    """Which tokens begin and end a text, and whether a beginning is put before every one."""
    specials = tokenizer.special_tokens
    begin, end, pad = (_named(settings, name, specials) for name in ("bos_token", "eos_token", "pad_token"))
    end = tokenizer.eot_id if end is None else end
    if end is None:
        raise _impossible("it has no token that ends a text, and llama.cpp would take token 11 for one")
    turn = next((specials[name] for name in CHAT_ENDS if name in specials), end)
    found = {
        "tokenizer.ggml.bos_token_id": keys.get("tokenizer.ggml.bos_token_id", end if begin is None else begin),
        "tokenizer.ggml.eos_token_id": end,
        "tokenizer.ggml.eot_token_id": turn,
        "tokenizer.ggml.add_eos_token": False,
    }
    return found if pad is None else {**found, "tokenizer.ggml.padding_token_id": pad}


def _named(settings: dict[str, Any], key: str, ids: dict[str, int]) -> int | None:
    """The id of a token that the settings name, as text or as an AddedToken written out."""
    value = settings.get(key)
    name = value.get("content") if isinstance(value, dict) else value
    return ids.get(name) if isinstance(name, str) else None


def _impossible(reason: str) -> RequestError:
    return RequestError(f"this tokenizer cannot be in a GGUF file: {reason}")
