"""The `minigpt` command: its frame. What went wrong becomes one sentence on stderr and an exit status.

Status 0: done; 1: the work failed; 2: the request was wrong; 130 and 143: stopped by SIGINT and SIGTERM. Nothing is
imported here but the standard library, so that an interrupt while the rest is being imported ends quietly as well.
"""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from typer import TyperException

STOPPED = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""Exit status after each signal: 128 + its number, as shells report it."""

_NO_MEMORY = "can't allocate memory"
"""What PyTorch says, in a RuntimeError, if there is not enough on the CPU."""


class Terminated(BaseException):
    """SIGTERM arrived. Like KeyboardInterrupt not an Exception, so that only `main` and `finally` clauses see it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (default: this process's) and give its exit status. Errors are reported, never raised."""
    try:
        with _streams(), _sigterm():
            try:
                status = _run(sys.argv[1:] if arguments is None else list(arguments))
                sys.stdout.flush()
                return status
            except Exception as error:
                return _report(error)
    except KeyboardInterrupt:
        status = STOPPED[signal.SIGINT]
    except Terminated:
        status = STOPPED[signal.SIGTERM]
    _flush_quietly()
    return status


def _run(arguments: list[str]) -> int:
    from typer import TyperException
    from typer.main import get_command

    from minigpt.cli.app import app
    from minigpt.config import RequestError

    try:
        # Not standalone: errors are raised. The result is an `Exit`'s status, or what the command returned (None here).
        return get_command(app).main(arguments, prog_name="minigpt", standalone_mode=False) or 0
    except TyperException as error:  # the parser's: an unknown option, a missing argument, ...
        raise RequestError(_usage_sentence(error)) from error
    except SystemExit as stop:  # how typer ends when the reader of stdout has gone away, and after shell completion
        _flush_quietly()
        return stop.code if isinstance(stop.code, int) else 1


def _usage_sentence(error: "TyperException") -> str:
    """The parser's message in this command's style: one clause, and where to read more."""
    context, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
    option, possible = getattr(error, "option_name", ""), getattr(error, "possibilities", None)
    problems = getattr(error.__cause__, "errors", None)
    if "." in option and option.startswith("--"):
        return f"no such option: {option}; config keys are written without dashes, as {option[2:]}=VALUE"
    if possible:
        message = f"no such option: {option} (did you mean {' or '.join(possible)}?)"
    elif problems is not None and parameter is not None:  # a value of the wrong type
        metavar = parameter.metavar or ""
        name = parameter.opts[0] if parameter.opts[0].startswith("-") else metavar or parameter.name
        wanted = problems()[0]["msg"].removeprefix("Input should be ").partition(",")[0]
        wanted = " or ".join(metavar.split("|")) if "|" in metavar else wanted
        message = f"{name}={problems()[0]['input']} is not possible: it should be {wanted}"
    else:
        text = error.format_message().strip()
        first, _, hint = text.partition(". Did you mean ")
        message = f"{first[:1].lower()}{first[1:]}".rstrip(".") + (
            f" (did you mean {hint.rstrip('.')})" if hint else ""
        )
    return f"{message}; see {context.command_path if context is not None else 'minigpt'} --help"


def _report(error: Exception) -> int:
    """One line on stderr about `error`, and its exit status. MINIGPT_DEBUG=1 adds the traceback."""
    from minigpt.config import RequestError, WorkError
    from minigpt.config.extension import blamed

    if os.environ.get("MINIGPT_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error)
    if isinstance(error, BrokenPipeError):  # `minigpt ... | head`: nobody reads on, there is nothing to say
        _flush_quietly()
        return 1
    if isinstance(error, RequestError | WorkError):
        message = str(error)
    elif isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _NO_MEMORY in str(error):
        said = "of this machine" if _NO_MEMORY in str(error) else str(error)  # a place in PyTorch's C++, mostly
        message = f"out of memory ({said or 'of this machine'}): use a smaller batch, context or model"
    elif isinstance(error, OSError) and error.strerror:
        message = f"{error.filename}: {error.strerror}" if error.filename is not None else str(error.strerror)
    else:
        where = blamed(error) or "internal error"
        message = f"{where}: {type(error).__name__}: {error} (set MINIGPT_DEBUG=1 to see where)"
    _flush_quietly()  # what was printed so far comes first
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(message.split()))
    if "RANK" in os.environ:
        from minigpt.parallel.failures import report

        report(line)
    else:
        print("minigpt:", line, file=sys.stderr)
    return 2 if isinstance(error, RequestError) else 1


def _prefix() -> str:
    """What a line for people begins with: of several processes, each says which one it is."""
    if "RANK" not in os.environ:
        return "minigpt:"
    from minigpt.parallel.failures import prefix

    return prefix()


def _flush_quietly() -> None:
    """Write out what stdout still holds; if it cannot be, drop it, or the interpreter would complain at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        try:
            descriptor = sys.stdout.fileno()
        except OSError:  # not a file of the system's: nothing is flushed at the end
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


@contextmanager
def _streams() -> Iterator[None]:
    """UTF-8 on stdout (on a terminal: its own encoding, with ? for what it lacks), and the log's warnings on stderr."""
    _configure(sys.stdout)
    _configure(sys.stderr)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"{_prefix()} %(message)s"))
    logger = logging.getLogger("minigpt")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _configure(stream: TextIO) -> None:
    reconfigure = getattr(stream, "reconfigure", None)  # a replaced stream (a test's, a notebook's) may have none
    if reconfigure is not None:
        errors = "replace" if stream is sys.stdout else "backslashreplace"
        if stream.isatty():
            reconfigure(errors=errors)
        else:
            reconfigure(encoding="utf-8", errors=errors)


@contextmanager
def _sigterm() -> Iterator[None]:
    """SIGTERM raises `Terminated`, as SIGINT raises KeyboardInterrupt; `train` has handlers of its own, which save."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not the main thread, so no signal comes here
        yield
        return
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:  # one of several processes, which is ending already
            signal.signal(signal.SIGTERM, before)
