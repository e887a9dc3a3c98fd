"""Every command with all its options, read from the command line itself."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

import typer
from markdown_tables import code, table
from value_words import default_in_words, in_words

from edgeclean import cli


def commands() -> dict[str, Any]:
    """The commands by name, as and in the order in which ``edgeclean --help`` lists them."""
    main: Any = typer.main.get_command(cli.app)
    return {name: one for name, one in main.commands.items() if not one.hidden}


def overview() -> str:
    """One line for each command."""
    rows = [
        (f"[`edgeclean {name}`](commands.md#{name})", _first_sentence(command.help))
        for name, command in commands().items()
    ]
    return table(["command", "what it does"], rows)


def reference() -> str:
    """A section for each command: what it does, its usage, its arguments and options."""
    return "\n".join(_section(name, command) for name, command in commands().items())


def _section(name: str, command: Any) -> str:
    hints = get_type_hints(command.callback)
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option"]
    usage = " ".join(_usage(one) for one in arguments)
    lines = [f"## {name}", "", inspect.cleandoc(command.help or ""), ""]
    lines += ["```text", f"edgeclean {name} {usage} [OPTIONS]".replace("  ", " "), "```", ""]
    if arguments:
        rows = [(code(one.name.upper()), one.help or "") for one in arguments]
        lines += [table(["argument", "meaning"], rows)]
    panels: dict[str, list[Any]] = {}
    for one in options:
        if one.name != "help":
            panels.setdefault(one.rich_help_panel or "Options", []).append(one)
    for panel, members in panels.items():
        lines += [f"**{panel}**", ""]
        lines += [
            table(["option", "value", "default", "meaning"], [_row(o, hints) for o in members])
        ]
    return "\n".join(lines)


def _usage(argument: Any) -> str:
    name = str(argument.name).upper()
    return name if argument.required else f"[{name}]"


def _row(option: Any, hints: dict[str, Any]) -> tuple[str, str, str, str]:
    names = ", ".join(code(one) for one in [*option.opts, *option.secondary_opts])
    kind = "" if option.is_flag else in_words(hints[option.name])
    lowest, highest = getattr(option, "min", None), getattr(option, "max", None)
    if lowest is not None:
        kind += f", at least {lowest}"
    if highest is not None:
        kind += f", at most {highest}"
    default = "required" if option.required else default_in_words(option.default)
    return names, kind, "" if option.is_flag else default, option.help or ""


def _first_sentence(text: str | None) -> str:
    return " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split())
