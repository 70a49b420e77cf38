"""Makes docs/settings.md, the table of settings, from the configuration model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from rareclass.config import format_duration, schema

ISO_DURATION = re.compile(r"P(\d+D)?(T(\d+[HMS])+)?")
HEAD = """# Settings

Made from the configuration model by `make golden`. Durations are written `30s`, `15m`, `12h`, `7d`, `2w`; paths are relative to the folder the command runs in. `rareclass run --set section.field=value` overrides.

Every setting can come from the environment too: `RARECLASS_SEARCH__SECONDS=30` is `search.seconds`, `RARECLASS_DATA__CHECKS__LEAK_AP=0.9` is `data.checks.leak_ap`, `RARECLASS_NAME=fraud` is `name`. The environment is stronger than the file and weaker than `--set`; a value is read as `--set` reads it (YAML: a list or a mapping is given as a whole, `RARECLASS_DATA__DROP='[id, note]'`), an empty one counts as not set. A name with two underscores that is no setting's is refused with the nearest one.
"""  # noqa: E501


def settings(target: Path) -> None:
    """The page of settings: one table per section, nested ones under their path."""
    root = schema()
    parts = [HEAD, *_section(root, "", root)]
    target.write_text("\n".join(parts), encoding="utf-8")


def _section(model: dict[str, Any], path: str, root: dict[str, Any]) -> Iterator[str]:
    lines, below = [], []
    required = set(model.get("required", ()))
    for name, field in model["properties"].items():
        inner, many = _model(field, root)
        full = f"{path}{name}"
        if inner is not None:
            below.append((inner, f"{full}[]." if many else f"{full}."))
        if inner is None or many:
            lines.append(f"| `{full}` | {_default(field, name in required)} | {_text(field)} |")
    yield f"## {path.rstrip('.') or 'Top level'}\n"
    if model.get("description"):
        yield model["description"] + "\n"
    if lines:
        yield "\n".join(["| setting | default | what it is |", "|---|---|---|", *lines]) + "\n"
    for inner, deeper in below:
        yield from _section(inner, deeper, root)


def _model(field: dict[str, Any], root: dict[str, Any]) -> tuple[dict[str, Any] | None, bool]:
    """The model that a field holds, and whether it holds a list of them."""
    many = field.get("type") == "array"
    reference = (field.get("items") if many else field) or {}
    name = reference.get("$ref", "").removeprefix("#/$defs/")
    return (root["$defs"][name] if name else None), many


def _default(field: dict[str, Any], required: bool) -> str:
    if required:
        return "required"
    value = field.get("default")
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if field.get("format") == "duration" or (isinstance(value, str) and ISO_DURATION.fullmatch(value)):
        value = format_duration(TypeAdapter(timedelta).validate_python(value))
    return f"`{value}`" if value not in ([], {}, "") else "empty"


def _text(field: dict[str, Any]) -> str:
    said = field.get("description", "").replace("|", "\\|")
    choices = field.get("enum")
    return f"{said} ({', '.join(f'`{each}`' for each in choices)})" if choices else said
