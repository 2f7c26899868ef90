"""How help looks: the plain two columns of a Unix manual, which fit in 80 characters."""

from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperGroup

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Command(TyperCommand):
    """A command whose usage and arguments are shown as `MODEL [KEY=VALUE]...`."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["[OPTIONS]", *(_name(p) for p in self.params if isinstance(p, TyperArgument))]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        arguments = [(_name(p), p.help or "") for p in self.params if isinstance(p, TyperArgument)]
        others = [p.get_help_record(ctx) for p in self.get_params(ctx) if not isinstance(p, TyperArgument)]
        for title, rows in (("Arguments", arguments), ("Options", [row for row in others if row is not None])):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


class Group(TyperGroup):
    """A family of commands; by itself it prints its help."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["--help"])


def _name(argument: TyperArgument) -> str:
    name = str(argument.metavar or argument.name).upper()
    name = name if argument.required else f"[{name}]"
    return name + "..." if argument.nargs == -1 else name
