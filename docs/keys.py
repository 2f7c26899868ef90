"""Writes the tables of keys in docs/config.md from the code: python docs/keys.py"""

import re
from pathlib import Path
from typing import Any

from minigpt.cli.config_help import shown, with_choices
from minigpt.config import Config, SourceConfig, fields

PAGE = Path(__file__).with_name("config.md")
TABLE = re.compile(r"(^<!-- keys: (\w+) -->\n).*?(^<!-- end of keys -->$)", re.MULTILINE | re.DOTALL)


def updated(text: str) -> str:
    """The page with each table between `<!-- keys: SECTION -->` and `<!-- end of keys -->` made anew."""
    return TABLE.sub(lambda match: f"{match[1]}{table(match[2])}{match[3]}", text)


def table(section: str) -> str:
    """The keys of a section of the config, or of a `source` of text."""
    known = fields(SourceConfig) if section == "source" else fields(Config)
    rows = [row(key, *field) for key, field in known.items() if section in ("source", key.partition(".")[0])]
    return "\n".join(["", "| key | default | meaning |", "|---|---|---|", *rows, "", ""])


def row(key: str, kind: Any, default: Any, text: str) -> str:
    """A line of the table."""
    cells = (f"`{key}`", f"`{shown(default)}`", with_choices(text, kind))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text("utf-8")), "utf-8")
