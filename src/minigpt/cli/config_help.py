"""What `minigpt train --help` adds: the presets, and every key of the config with its default and meaning."""

import json
import re
from importlib import resources
from typing import Any, Literal, get_args, get_origin

from minigpt.cli.help import Command
from minigpt.config import Config, fields, preset_names
from minigpt.config.depth import DEEPEST, SHALLOWEST
from minigpt.config.yaml import dump_yaml

COLUMN = 34
"""Widest `key=default` that has its text beside it; a wider one has a line of its own."""


class ConfigCommand(Command):
    """A command that takes a config: its help ends with the presets and the keys."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        super().format_epilog(ctx, formatter)
        with formatter.section("Presets (give one as CONFIG, or build on it in a file with preset: NAME)"):
            dial = f"d{SHALLOWEST} ... d{DEEPEST}", "So many layers; width, rates, batch and length of the run follow."
            formatter.write_dl([(name, preset_summary(name)) for name in preset_names()] + [dial])
        known = fields()
        for section, field in Config.model_fields.items():
            rows = [
                (f"{key}={shown(default)}", with_choices(text, kind))
                for key, (kind, default, text) in known.items()
                if key.startswith(f"{section}.")
            ]
            if rows:
                with formatter.section(f"Keys of {section} ({_lower((field.description or '').rstrip('.'))})"):
                    formatter.write_dl(rows, col_max=COLUMN)


def preset_summary(name: str) -> str:
    """The first sentence of the comment that a preset begins with."""
    text = (resources.files("minigpt.presets") / f"{name}.yaml").read_text("utf-8")
    lines: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return re.split(r"(?<=\.)(?<!\bal\.) ", " ".join(lines))[0]


def shown(value: Any) -> str:
    """A default as one would write it in an override."""
    if isinstance(value, str):
        return value if value else '""'
    if isinstance(value, list):
        return json.dumps(value)
    return dump_yaml([value]).strip()[1:-1].strip()


def with_choices(text: str, kind: Any) -> str:
    """The help text, and the values to choose from unless it names them all."""
    options = [choice for part in (kind, *get_args(kind)) if get_origin(part) is Literal for choice in get_args(part)]
    if len(options) == 1 or all(str(choice) in text for choice in options):
        return text
    return f"{text} [{'|'.join(map(str, options))}]"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
