"""Makes docs/commands.md, a page of every command and its options, from the command line itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from rareclass import cli

HEAD = """# Commands

Made from the command line by `make golden`. What each of them writes, and what its exit codes mean, is in the [reference](reference.md).
"""  # noqa: E501


def commands(target: Path) -> None:
    """The page of commands: one table of arguments and options each."""
    root: Any = typer.main.get_command(cli.app)
    target.write_text("\n".join([HEAD, *_group(root, "rareclass")]), encoding="utf-8")


def _group(group: Any, path: str) -> Iterator[str]:
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            yield from _group(command, f"{path} {name}")
        else:
            yield from _command(command, f"{path} {name}")


def _command(command: Any, path: str) -> Iterator[str]:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    usage = " ".join([path, *(_usage(each) for each in arguments), "[OPTIONS]"])
    yield f"## {path}\n"
    yield f"```text\n{usage}\n```\n"
    yield f"{command.help}\n"
    lines = [f"| {_names(each)} | {_cell(each.help)} |" for each in command.params]
    if lines:
        yield "\n".join(["| argument or option | what it is |", "|---|---|", *lines]) + "\n"


def _usage(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return name if argument.required else f"[{name}]"


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`"
    flags = ", ".join(f"`{flag}`" for flag in (*parameter.opts, *parameter.secondary_opts))
    return f"{flags} `{parameter.metavar}`" if parameter.metavar and not parameter.is_flag else flags


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")
