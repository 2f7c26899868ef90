"""The `datasets` library as this package uses it: silent, at the right address, and one sentence when it fails."""

import contextlib
import errno
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from minigpt.config import RequestError, WorkError
from minigpt.data.reading.download import DownloadError
from minigpt.data.reading.hub import ENDPOINT_VARIABLE, HUB, MIRROR_VARIABLE, TOKEN_VARIABLE, mirrored
from minigpt.storage.atomic import write_error

OFFLINE_VARIABLE = "HF_HUB_OFFLINE"
ELSEWHERE = "download it elsewhere and name its folder instead (hub: FOLDER)"
FULL = (errno.ENOSPC, errno.EDQUOT)
CLIENTS = ("httpx", "httpcore", "aiohttp", "requests", "urllib3", "huggingface_hub")
"""Modules, one of which a release of the library has its network errors from."""


def datasets_library() -> ModuleType:
    """The library. RequestError where it is not installed."""
    address = mirrored(f"{HUB}/").rstrip("/")
    added = {}
    if ENDPOINT_VARIABLE not in os.environ and address != HUB:  # an access token goes to the hub alone: reading/hub.py
        added = {ENDPOINT_VARIABLE: address, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        import datasets
        import huggingface_hub.utils
    except ImportError:
        raise RequestError('a source given by hub needs the library datasets: pip install "minigpt[hub]"') from None
    finally:  # it has read them now, and does not look again
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
    for library in (datasets, huggingface_hub.utils):
        library.disable_progress_bars()
        library.logging.set_verbosity(logging.CRITICAL)  # what goes wrong is said below, once
    return datasets


@contextlib.contextmanager
def explained(name: str, revision: str | None, *, is_folder: bool) -> Iterator[None]:
    """Turns what the library raises about a data set into one sentence that says what was tried and what to do."""
    try:
        yield
    except (RequestError, WorkError, MemoryError):
        raise
    except Exception as error:
        raise _in_a_sentence(error, name, revision, is_folder) from error


def _in_a_sentence(error: Exception, name: str, revision: str | None, is_folder: bool) -> Exception:
    from huggingface_hub import constants, errors

    causes = list(_causes(error))
    said = " ".join(str(error).split()).partition(" For more information")[0]
    said = re.sub(r"^\[Errno \d+\] ", "", said).rstrip(".") or type(error).__name__

    def is_a(kind: type[BaseException]) -> bool:
        return any(isinstance(cause, kind) for cause in causes)

    for cause in causes:
        if isinstance(cause, OSError) and cause.errno in FULL:
            return write_error(Path(constants.HF_HOME), cause)
    if is_folder:
        return RequestError(f"{name} cannot be read as a data set: {said}")
    if constants.HF_HUB_OFFLINE:
        return DownloadError(
            f"{name} is not in the hub's cache ({constants.HF_HOME}), and {OFFLINE_VARIABLE} says not to ask the hub: "
            f"unset it, or {ELSEWHERE}"
        )
    if is_a(errors.GatedRepoError):
        return RequestError(
            f"{name} is open to registered readers only: ask for access at {HUB}/datasets/{name} and set "
            f"{TOKEN_VARIABLE} to your access token"
        )
    if is_a(errors.RevisionNotFoundError):
        return RequestError(f"{name} has no revision {revision!r}: name a commit, a tag or a branch that it has")
    if is_a(errors.RepositoryNotFoundError) or is_a(errors.HFValidationError):
        return RequestError(
            f"{constants.ENDPOINT} has no data set {name} that you may read: mend the name, or set {TOKEN_VARIABLE} to "
            "an access token if it is private"
        )
    if "scripts are no longer supported" in said:
        return RequestError(
            f"{name} is read by a script of its own, which datasets does not run: try `revision: refs/convert/parquet`"
        )
    if not any(_is_of_the_network(cause) for cause in causes):
        return WorkError(f"{name} cannot be read: {said}")
    return DownloadError(
        f"{name} could not be had from {constants.ENDPOINT} ({said}): check the network, set {ENDPOINT_VARIABLE} or "
        f"{MIRROR_VARIABLE} to a mirror, or {ELSEWHERE}"
    )


def _is_of_the_network(error: BaseException) -> bool:
    return isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.startswith(CLIENTS)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
