"""The tokenizer of a GGUF file as one of ours: a byte-level BPE with a splitting rule that is known here.

The tokens that are no text are words of the vocabulary too, as in GPT-2's tokenizer.json, so that each keeps its
number.
"""

import json
from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models

from minigpt.config import RequestError
from minigpt.interop.begin import with_begin
from minigpt.interop.gguf.tokens import CONTROL, MERGING_RULES, RULES, UNUSED, USER_DEFINED
from minigpt.tokenizer import HuggingFaceTokenizer
from minigpt.tokenizer.patterns import WHOLE_WORDS_FIRST, pre_tokenizer

PATTERNS = {rule: pattern for rules in (RULES, MERGING_RULES) for pattern, rule in rules.items()}
"""Our splitting rules by llama.cpp's names."""


def rebuilt_tokenizer(keys: Mapping[str, Any]) -> HuggingFaceTokenizer:
    """The tokenizer that a file's keys describe. RequestError: it is of another kind, or damaged."""
    kind, rule = keys.get("tokenizer.ggml.model"), keys.get("tokenizer.ggml.pre")
    if kind != "gpt2":
        raise RequestError(f"GGUF's tokenizer {kind!r} cannot be taken over: give the model's own with --tokenizer")
    if rule not in PATTERNS:
        raise RequestError(f"GGUF's splitting rule {rule!r} is not known here: give the model's own with --tokenizer")
    tokens, types = keys.get("tokenizer.ggml.tokens", []), keys.get("tokenizer.ggml.token_type", [])
    if len(types) != len(tokens) or not all(isinstance(token, str) for token in tokens):
        raise RequestError("the tokenizer of the GGUF file is damaged: give the model's own with --tokenizer")
    words = {token: i for i, (token, of) in enumerate(zip(tokens, types, strict=True)) if of != UNUSED}
    try:
        merges = [tuple(merge.split(" ", 1)) for merge in keys.get("tokenizer.ggml.merges", [])]
        whole = rule == RULES[PATTERNS[rule]] and PATTERNS[rule] in WHOLE_WORDS_FIRST
        backend = tokenizers.Tokenizer(models.BPE(words, merges, ignore_merges=whole))
    except Exception as error:  # the library raises plain Exceptions
        raise RequestError(f"the tokenizer of the GGUF file cannot be used: {error}") from error
    backend.pre_tokenizer = pre_tokenizer(PATTERNS[rule])
    backend.decoder = decoders.ByteLevel()
    for of, special in ((CONTROL, True), (USER_DEFINED, False)):
        names = [token for token, each in zip(tokens, types, strict=True) if each == of]
        added = [AddedToken(name, special=special, normalized=False) for name in names]
        backend.add_special_tokens(added) if special else backend.add_tokens(added)
    if begin := begin_of(keys):
        content = with_begin(json.loads(backend.to_str()), {tokens[i]: i for i in begin if i < len(tokens)})
        backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    named = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding"}
    ids = {setting: keys.get(f"tokenizer.ggml.{name}_token_id") for setting, name in named.items()}
    settings = {name: tokens[i] for name, i in ids.items() if isinstance(i, int) and i < len(tokens)}
    if isinstance(template := keys.get("tokenizer.chat_template"), str):
        settings["chat_template"] = template
    return HuggingFaceTokenizer(backend, settings=settings)


def begin_of(keys: Mapping[str, Any]) -> tuple[int, ...]:
    """What llama.cpp puts before every text; where a file does not say, the usual of its kind of tokenizer."""
    pieces = keys.get("tokenizer.ggml.model") == "llama"
    usual = pieces or keys.get("tokenizer.ggml.pre") == RULES["llama3"]
    begin = keys.get("tokenizer.ggml.bos_token_id", 1 if pieces else None)
    wanted = keys.get("tokenizer.ggml.add_bos_token", usual) is True
    return (begin,) if wanted and isinstance(begin, int) and begin >= 0 else ()
