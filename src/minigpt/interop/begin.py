"""What stands before every text that a model was trained on, such as Llama's <|begin_of_text|> or Gemma's <bos>.

Models of this package have nothing there; many others give poor text without it. A Hugging Face folder says it in its
tokenizer.json (`post_processor`), a model folder of ours that was made of another program's in its config.json.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minigpt.storage.model_folder import MODEL_TYPE, read_model_json

KEY = "begin_ids"
"""Where a model folder keeps the ids, under `extra` of its config.json."""


def begin_ids(folder: Path) -> tuple[int, ...]:
    """The ids before every text, of any model folder; none where it does not say so."""
    content = read_model_json(folder)
    if content["model_type"] == MODEL_TYPE:
        extra = content.get("extra")
        return _ids(extra.get(KEY)) if isinstance(extra, Mapping) else ()
    try:
        tokenizer = json.loads((folder / "tokenizer.json").read_bytes())
    except (OSError, ValueError, RecursionError):  # whoever needs the tokenizer says what is wrong with it
        return ()
    return _template_begin(tokenizer.get("post_processor")) if isinstance(tokenizer, Mapping) else ()


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
