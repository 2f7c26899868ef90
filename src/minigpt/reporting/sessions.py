"""Where and with what a run was made, session by session, and the steps that had to be skipped."""

import re
from typing import Any

from minigpt.reporting.runs import Run
from minigpt.reporting.settings import shown

MAX_SHOWN = 8  # sessions of one run
MAX_INCIDENTS = 100


def when(stamp: Any) -> str:
    """2026-11-21T00:05:09Z as 2026-11-21 00:05 UTC; what is no such stamp as it is."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\dZ", str(stamp))
    return f"{match[1]} {match[2]} UTC" if match else str(stamp)


def described(run: Run) -> list[dict[str, Any]]:
    """Each session: a title, the command, and (label, value) of what differs from the session before."""
    found: list[dict[str, Any]] = []
    before: dict[str, str] = {}
    for number, session in enumerate(run.sessions, 1):
        facts = _facts(session)
        same = {label for label, value in facts.items() if before.get(label) == value}
        said = [(label, value) for label, value in facts.items() if label not in same]
        if before and len(said) < len(facts):
            said.append(("The rest", "as in the session before"))
        before = facts
        step = session.get("step")
        begins = f"from step {step:,}" if isinstance(step, int) and step else "from the beginning"
        title = f"Session {number}, {when(session.get('started', 'at an unknown time'))}, {begins}"
        command = session.get("command")
        found.append({
            "title": title,
            "command": command if isinstance(command, str) else "",
            "facts": said,
        })  # fmt: skip
    if len(found) > MAX_SHOWN:
        left = len(found) - MAX_SHOWN
        found[1]["title"] += f" (the {left} sessions after it are left out)"
        found = [*found[:2], *found[-(MAX_SHOWN - 2) :]]
    return found


def incidents(run: Run) -> list[str]:
    """A sentence for every bad step and every time that the run went back."""
    said = []
    for entry in run.incidents[:MAX_INCIDENTS]:
        reason = shown(entry.get("reason", "unknown"))
        if "restored_to" in entry:
            first, target = shown(entry.get("first_bad_step", "?")), shown(entry["restored_to"])
            said.append(f"From step {first} on several steps in a row were bad ({reason}): back to step {target}.")
        else:
            said.append(f"Step {shown(entry.get('step', '?'))} made no update: {reason}.")
    return said


def _facts(session: dict[str, Any]) -> dict[str, str]:
    """What is known of a session's machine and programs, by label."""
    machine, versions, git = (_table(session, key) for key in ("machine", "versions", "git"))
    facts = {
        "GPU": _text(machine.get("gpu")),
        "Processor": _text(machine.get("cpu")),
        "Cores": _text(machine.get("cores")),
        "Threads": _text(machine.get("threads")),
        "Memory": f"{_text(machine['memory_gb'])} GB" if machine.get("memory_gb") else "",
        "System": _text(machine.get("system")),
        "Versions": ", ".join(f"{name} {_text(value)}" for name, value in versions.items() if value is not None),
        "Git commit": _text(git.get("commit"))[:12] + (" with uncommitted changes" if git.get("dirty") is True else ""),
    }
    return {label: value for label, value in facts.items() if value}


def _table(session: dict[str, Any], key: str) -> dict[str, Any]:
    found = session.get(key)
    return found if isinstance(found, dict) else {}


def _text(value: Any) -> str:
    return "" if value is None else shown(value)
