"""The tokenizer of a run: trained on its text and kept in the cache, downloaded, or found where the config says."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from minigpt.config import Config, RequestError, WorkError
from minigpt.config.tokenizer import HUB_PREFIX, TRAINED
from minigpt.data import Progress, iter_training_text, require_text
from minigpt.data.reading.download import AbsentError, DownloadError, download
from minigpt.data.reading.hub import ENDPOINT_VARIABLE, HUB, MIRROR_VARIABLE
from minigpt.data.reading.sources import identity
from minigpt.storage import atomic_folder, cache_dir, cache_entry_lock, resolve_model
from minigpt.tokenizer import Tokenizer, build_tokenizer, load_tokenizer
from minigpt.tokenizer.tiktoken_ranks import ENCODINGS, SUFFIX, rank_file_url

# GPT-2's vocabulary as its authors published it; hashes as in OpenAI's tiktoken, tiktoken_ext/openai_public.py.
GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
GPT2_FILES = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}

HUB_TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
"""The files that are a tokenizer in a folder of the hub; the first of these that is there is taken."""
HUB_EXTRAS = ("tokenizer_config.json", "chat_template.jinja")


def make_tokenizer(config: Config, on_progress: Progress | None = None) -> Tokenizer:
    """The tokenizer that the config asks for. One that is trained is kept in the cache, by its text and settings."""
    wanted = config.tokenizer
    if config.model.init_from is not None:
        folder = resolve_model(config.model.init_from)
        if folder.tokenizer_path is None:
            raise RequestError(
                f"model.init_from={config.model.init_from} has no tokenizer: give it one by "
                f"minigpt import {config.model.init_from} OUT --tokenizer PATH, and begin from OUT"
            )
        return load_tokenizer(folder.tokenizer_path)
    if wanted.kind in TRAINED:
        return _trained_tokenizer(config, on_progress)
    path = wanted.path
    if path is None:
        is_gpt2 = wanted.kind == "gpt2" or wanted.encoding == "gpt2"
        path = str(download_gpt2(on_progress) if is_gpt2 else download_ranks(wanted.encoding, on_progress))
    elif path.startswith(HUB_PREFIX):
        path = str(download_hub_tokenizer(path.removeprefix(HUB_PREFIX), on_progress))
    return build_tokenizer(wanted.model_copy(update={"path": path}), lambda: iter(()))


def _trained_tokenizer(config: Config, on_progress: Progress | None) -> Tokenizer:
    cache, wanted, data = cache_dir(), config.tokenizer, config.data
    require_text(data)
    key = {
        "format": 2,
        "tokenizer": wanted.model_dump(),
        "sources": [identity(s, cache, on_progress) for s in data.train or []],
        "val": [identity(s, cache, on_progress) for s in data.val or []] if wanted.kind == "char" else [],
        "split": None if data.val is not None else [data.is_mixture, data.streaming, data.val_fraction],
        "val_documents": data.val_documents if data.streaming else None,
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    folder = cache / "tokenizers" / name
    with cache_entry_lock(f"tokenizer-{name}"):
        if not folder.exists():
            tokenizer = train_tokenizer(config, on_progress)
            folder.parent.mkdir(parents=True, exist_ok=True)
            with atomic_folder(folder) as unfinished:
                tokenizer.save(unfinished)
    return load_tokenizer(folder)


def train_tokenizer(config: Config, on_progress: Progress | None = None) -> Tokenizer:
    """A tokenizer trained on the text of the config, as `tokenizer.kind` says. RequestError: it cannot be."""
    wanted, is_char = config.tokenizer, config.tokenizer.kind == "char"
    separator = None if is_char or not wanted.special_tokens else wanted.special_tokens[0]

    def texts() -> Iterable[str]:
        return iter_training_text(
            config.data,
            cache_dir(),
            separator=separator,
            include_val=is_char,
            sample_characters=None if is_char else wanted.sample_characters,
            on_progress=on_progress,
        )

    def read(characters: int) -> None:
        if on_progress is not None:
            on_progress("train the tokenizer (characters)", characters, None)

    return build_tokenizer(wanted, texts, read)


def download_gpt2(on_progress: Progress | None = None) -> Path:
    """The folder of GPT-2's encoder.json and vocab.bpe, downloaded into the cache."""
    target = cache_dir() / "gpt2"
    target.mkdir(parents=True, exist_ok=True)
    for name, sha256 in GPT2_FILES.items():
        if not (target / name).exists():
            try:
                found = download(GPT2_URL + name, cache_dir(), sha256=sha256, on_progress=on_progress)
            except WorkError as error:
                raise WorkError(
                    f"{error}; without a network, set tokenizer.path to a folder with encoder.json and vocab.bpe"
                ) from None
            shutil.copyfile(found, target / f"{name}.part")
            os.replace(target / f"{name}.part", target / name)
    return target


def download_ranks(encoding: str, on_progress: Progress | None = None) -> Path:
    """tiktoken's rank file of an encoding (not gpt2, which has none), downloaded into the cache."""
    try:
        return download(
            rank_file_url(encoding), cache_dir(), sha256=ENCODINGS[encoding].sha256, on_progress=on_progress
        )
    except WorkError as error:
        raise WorkError(f"{error}; without a network, set tokenizer.path to the file {encoding}{SUFFIX}") from None


def download_hub_tokenizer(name: str, on_progress: Progress | None = None) -> Path:
    """The folder of a tokenizer of Hugging Face's hub, `OWNER/NAME` or `OWNER/NAME@REVISION`, downloaded once.

    RequestError: no such name, or no tokenizer there. WorkError: it cannot be reached. Neither leaves anything.
    """
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", name, re.ASCII):
        raise RequestError(
            f"{HUB_PREFIX}{name} is no name on the hub: write {HUB_PREFIX}OWNER/NAME, or @REVISION after it"
        )
    repository, _, revision = name.partition("@")
    address = f"{HUB}/{repository}/resolve/{revision or 'main'}"
    key = hashlib.sha256(address.encode()).hexdigest()[:32]
    folder = cache_dir() / "hub-tokenizers" / key
    with cache_entry_lock(f"hub-tokenizer-{key}"):
        if folder.exists():
            return folder

        def fetched(file: str) -> Path | None:
            try:
                return download(f"{address}/{file}", cache_dir(), on_progress=on_progress)
            except AbsentError:
                return None
            except DownloadError as error:
                raise WorkError(
                    f"{error}; without a network, set tokenizer.path to a folder with the tokenizer, or "
                    f"{ENDPOINT_VARIABLE} or {MIRROR_VARIABLE} to a server that has it"
                ) from None

        found: dict[str, Path] = {}
        for files in HUB_TOKENIZERS:
            found = {file: path for file in files if (path := fetched(file))}
            if len(found) == len(files):
                break
        else:
            raise RequestError(
                f"hub:{name} has no tokenizer at {address}: neither tokenizer.json nor tokenizer.model, nor vocab.json "
                "and merges.txt"
            )
        found |= {file: path for file in HUB_EXTRAS if (path := fetched(file))}
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder) as unfinished:
            for file, path in found.items():
                shutil.copyfile(path, unfinished / file)
    return folder
