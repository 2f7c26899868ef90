"""What stands before every text that a model was trained on, such as Llama's <|begin_of_text|> or Gemma's <bos>.

Models of this package have nothing there; many others give poor text without it. A Hugging Face folder says it in its
tokenizer.json (`post_processor`) or beside its tokenizer.model (`add_bos_token`), a model folder of ours that was made
of another program's in its config.json.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minigpt.storage.model_folder import MODEL_TYPE, read_model_json

BEGINNING = ("LlamaTokenizer", "LlamaTokenizerFast", "GemmaTokenizer", "GemmaTokenizerFast")
"""Classes of transformers that put a token there unless told not to."""
KEY = "begin_ids"
"""Where a model folder keeps the ids, under `extra` of its config.json."""


def begin_ids(folder: Path) -> tuple[int, ...]:
    """The ids before every text, of any model folder; none where it does not say so."""
    content = read_model_json(folder)
    if content["model_type"] == MODEL_TYPE:
        extra = content.get("extra")
        return _ids(extra.get(KEY)) if isinstance(extra, Mapping) else ()
    if not (folder / "tokenizer.json").is_file() and (folder / "tokenizer.model").is_file():
        settings = _content(folder / "tokenizer_config.json")
        usual = settings.get("tokenizer_class") in BEGINNING
        return _ids([content.get("bos_token_id")]) if settings.get("add_bos_token", usual) is True else ()
    return _template_begin(_content(folder / "tokenizer.json").get("post_processor"))


def _content(path: Path) -> Mapping[str, Any]:
    """Of a JSON file; nothing if it cannot be read, since whoever needs the tokenizer says what is wrong with it."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, Mapping) else {}


def with_begin(content: Mapping[str, Any], names: Mapping[str, int]) -> dict[str, Any]:
    """A tokenizer.json that puts these tokens (ids by name), and nothing else, before every text."""
    processor = content.get("post_processor")
    if _template_begin(processor) == tuple(names.values()):
        return dict(content)
    parts = processor["processors"] if processor and processor["type"] == "Sequence" else [processor]
    parts = [part for part in parts if part and part["type"] != "TemplateProcessing"]
    if names:
        first = [{"SpecialToken": {"id": name, "type_id": 0}} for name in names]
        text, second = ({"Sequence": {"id": letter, "type_id": 0}} for letter in "AB")
        special = {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in names.items()}
        single, pair = [*first, text], [*first, text, second]
        parts.append({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special})
    several = {"type": "Sequence", "processors": parts}
    return {**content, "post_processor": several if len(parts) > 1 else next(iter(parts), None)}


def _template_begin(processor: Any) -> tuple[int, ...]:
    """The special tokens before the text in a template of the `tokenizers` library."""
    match processor:
        case {"type": "Sequence", "processors": [*parts]}:
            return next((ids for part in parts if (ids := _template_begin(part))), ())
        case {"type": "TemplateProcessing", "single": [*pieces], "special_tokens": Mapping() as special}:
            found: list[int] = []
            for piece in pieces:
                match piece:
                    case {"SpecialToken": {"id": str(name)}} if isinstance(special.get(name), Mapping):
                        found += _ids(special[name].get("ids"))
                    case _:
                        return tuple(found)
    return ()


def _ids(value: Any) -> tuple[int, ...]:
    """A list of token ids, or nothing if it is anything else."""
    sound = isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
    return tuple(value) if sound else ()
