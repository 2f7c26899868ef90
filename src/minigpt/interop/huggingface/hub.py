"""Models of Hugging Face's hub by name, through its own library, so that they are kept where others keep them too.

`HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_HOME` and `HF_TOKEN` mean what they mean everywhere. `MINIGPT_MIRROR` stands for
the hub too where `HF_ENDPOINT` is not set, and gets no token.
"""

import contextlib
import errno
import logging
import os
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from minigpt.config import RequestError, WorkError
from minigpt.storage.atomic import write_error
from minigpt.storage.model_folder import CONFIG_FILE, FOREIGN_WEIGHTS

PREFIX = "hub:"
NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(@[\w./-]+)?", re.ASCII)
"""gpt2 or OWNER/NAME, and @REVISION where it is not the newest."""
OTHERS = (
    "generation_config.json",
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "*chat_template*",
    "special_tokens_map.json",
)
"""What is taken besides config.json and the weights."""
TIMEOUT = 10.0  # seconds without an answer
MIRROR_VARIABLE, ENDPOINT_VARIABLE = "MINIGPT_MIRROR", "HF_ENDPOINT"
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
MEANWHILE = "download it elsewhere and give its folder"


def is_name(text: str) -> bool:
    """Whether a text can be a name on the hub: not a path."""
    return NAME.fullmatch(text.removeprefix(PREFIX)) is not None


def hub_folder(name: str) -> Path:
    """The folder of a model of the hub, `NAME`, `OWNER/NAME` or `OWNER/NAME@REVISION`, downloaded where it is not yet.

    Raises `RequestError` for a name that is not there or that may not be read, and where the library is not installed;
    `WorkError` if the hub cannot be reached or the disk is full.
    """
    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    try:
        from huggingface_hub import constants, snapshot_download
    except ImportError:
        raise RequestError(
            f'{name}: models of the hub need the library huggingface_hub: pip install "minigpt[hub]"'
        ) from None
    try:
        with _quiet():
            wanted = _wanted(name, _names(repository, revision or None))
            folder = snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=wanted,
                etag_timeout=TIMEOUT,
                cache_dir=constants.HF_HUB_CACHE,
                **_server(),
            )
    except (RequestError, WorkError):
        raise
    except Exception as error:  # errors of the library, and of whichever client it speaks through
        raise _in_a_sentence(error, name) from error
    if not (Path(folder) / CONFIG_FILE).is_file():
        raise _absent(name)
    return Path(folder)


def _server() -> dict[str, Any]:
    """Where the hub is; a mirror gets no access token, which goes to the hub alone."""
    from huggingface_hub import constants

    mirror = os.environ.get(MIRROR_VARIABLE)
    if mirror and ENDPOINT_VARIABLE not in os.environ:
        return {"endpoint": f"{mirror.rstrip('/')}/huggingface.co", "token": False}
    return {"endpoint": constants.ENDPOINT, "token": None}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No bars where nobody looks, and no lines of the library's: what goes wrong is said once, by us."""
    utils: Any = import_module("huggingface_hub.utils")
    verbosity, silent = utils.logging.get_verbosity(), utils.are_progress_bars_disabled()
    utils.logging.set_verbosity(logging.CRITICAL)
    if not sys.stderr.isatty():
        utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.logging.set_verbosity(verbosity)
        if not silent:
            utils.enable_progress_bars()


def _names(repository: str, revision: str | None) -> set[str] | None:
    """The names of the model's files; None if the hub cannot be asked: what is in its cache is found without it."""
    from huggingface_hub import HfApi, constants, errors

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        about = HfApi(**_server()).model_info(repository, revision=revision, timeout=TIMEOUT)
    except (errors.HfHubHTTPError, errors.HFValidationError):  # it was reached, and said no
        raise
    except Exception:  # the network's: what is said of it is said once, by the download
        return None
    return {file.rfilename for file in about.siblings or []}


def _wanted(name: str, names: set[str] | None) -> list[str]:
    """Which files to take: of the ways in which the weights are there, one."""
    if names is None:  # asking for more would only make the library miss what was not taken before
        return [CONFIG_FILE]
    weights = next((found for found in FOREIGN_WEIGHTS if found in names), None)
    if weights is None or CONFIG_FILE not in names:
        missing = CONFIG_FILE if CONFIG_FILE not in names else f"{FOREIGN_WEIGHTS[0]} and no {FOREIGN_WEIGHTS[2]}"
        raise RequestError(f"{name} on the hub is no model that minigpt can read: it has no {missing}")
    shards = [_shards(weights)] if weights.endswith(".index.json") else []
    return [CONFIG_FILE, weights, *shards, *OTHERS]


def _shards(index: str) -> str:
    """The names of the files that an index speaks of: model-00001-of-00002.safetensors."""
    stem, ending = index.removesuffix(".index.json").rsplit(".", 1)
    return f"{stem}-*-of-*.{ending}"


def _absent(name: str) -> RequestError:
    return RequestError(f"{name} is neither a folder here nor a model on the hub: check the name (OWNER/NAME)")


def _in_a_sentence(error: Exception, name: str) -> Exception:
    from huggingface_hub import constants, errors

    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)

    def is_a(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if is_a(errors.GatedRepoError):
        return RequestError(f"{name} may only be read by those who were let in: ask on its page, then set HF_TOKEN")
    if is_a(errors.RevisionNotFoundError):
        return RequestError(f"{name}: the model is on the hub, but not this revision of it")
    if is_a(errors.RepositoryNotFoundError, errors.HFValidationError):
        return _absent(name)
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno in UNWRITABLE:
            return write_error(Path(constants.HF_HUB_CACHE), cause)
    if constants.HF_HUB_OFFLINE:
        return RequestError(
            f"{name} is neither a folder here nor in the hub's cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE "
            f"says not to ask the hub: unset it, or {MEANWHILE}"
        )
    said = re.sub(r"^\[Errno -?\d+\] ", "", " ".join(str(causes[-1]).split())) or type(causes[-1]).__name__
    return WorkError(
        f"{name} is no folder here, and could not be had from {_server()['endpoint']} ({said[:200]}): check the "
        f"network, set {ENDPOINT_VARIABLE} to a server that has it, or {MEANWHILE}"
    )
