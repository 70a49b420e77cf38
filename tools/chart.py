"""The chart's README and values.schema.json, made from the comments of its values.yaml.

``# --`` above a key describes it; ``# @schema`` above a key adds to what its default says about its type. A key whose
default is an empty map takes any map; every other map knows its keys and refuses others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "helm" / "rareclass"
HEAD = """# rareclass: one rare-class model on Kubernetes

{description}. One release is one model; several models are several releases, in one namespace or in many.

```sh
helm install flights helm/rareclass --namespace models --create-namespace -f my-values.yaml
helm test flights --namespace models
```

What it needs, how it is operated, backed up and removed: [docs/kubernetes.md](../../docs/kubernetes.md).
Values for a trial and for production: [ci/](ci/). This page is made from the comments of `values.yaml` by `make golden`.

| value | default | what it is |
| --- | --- | --- |
"""  # noqa: E501


@dataclass
class Value:
    """One key of values.yaml with what stands above it."""

    default: Any
    description: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, Value] = field(default_factory=dict)


def values() -> Value:
    """Read values.yaml with its comments."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    root = yaml.compose(text)
    return _read(root, yaml.safe_load(text), text.splitlines())


def _read(node: Any, default: Any, lines: list[str]) -> Value:
    found = Value(default)
    for key, child in node.value if isinstance(node, yaml.MappingNode) else ():
        if key.start_mark.line == node.start_mark.line and node.flow_style:  # a map in one line is a value
            return found
        one = _read(child, default[key.value], lines)
        one.description, one.extra = _above(lines, key.start_mark.line)
        if one.description:  # described as a whole
            one.keys = {}
        found.keys[key.value] = one
    return found


def _above(lines: list[str], line: int) -> tuple[str, dict[str, Any]]:
    description, extra = "", {}
    while line > 0 and lines[line - 1].lstrip().startswith("#"):
        line -= 1
        comment = lines[line].lstrip()
        if match := re.match(r"# -- (.*)", comment):
            description = match[1]
        elif match := re.match(r"# @schema (.*)", comment):
            extra = json.loads(match[1])
    return description, extra


def _leaves(value: Value, path: str = "") -> Iterator[tuple[str, Value]]:
    for name, each in value.keys.items():
        where = f"{path}.{name}" if path else name
        if each.keys:
            yield from _leaves(each, where)
        else:
            yield where, each


def readme(target: Path) -> None:
    """The chart's README: a table of every value. Fails when one is not described."""
    about = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    lines, missing = [], []
    for name, each in _leaves(values()):
        if not each.description:
            missing.append(name)
        default = json.dumps(each.default, ensure_ascii=False)
        lines.append(f"| `{name}` | `{default}` | {each.description.replace('|', chr(92) + '|')} |")
    if missing:
        raise SystemExit(f"values without a `# --` comment: {', '.join(missing)}")
    target.write_text(HEAD.format(description=about["description"]) + "\n".join(lines) + "\n", encoding="utf-8")


def schema(target: Path) -> None:
    """values.schema.json: closed, with the schema of the rareclass configuration inside."""
    from rareclass import config

    ours = config.schema()
    parts = ours.pop("$defs")
    # the chart's configuration is a part of it: what is missing is said when it is read
    parts["Config"] = {**ours, "required": []}
    made = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_schema(values()),
        "$defs": _loose(parts),
    }
    made["properties"]["global"] = {"type": "object"}
    target.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


def _loose(parts: dict[str, Any]) -> dict[str, Any]:
    """Only the configuration's names and types matter here;
    descriptions and defaults are in docs/config.schema.json.
    """

    def plain(node: Any, names: bool = False) -> Any:
        if isinstance(node, dict):
            return {
                key: plain(each, key == "properties")
                for key, each in node.items()
                if names or key not in ("description", "default", "title")
            }
        return [plain(each) for each in node] if isinstance(node, list) else node

    return {name: plain(each) for name, each in parts.items()}


def _schema(value: Value) -> dict[str, Any]:
    if value.keys:
        inner = {name: _schema(each) for name, each in value.keys.items()}
        return {"type": "object", "additionalProperties": False, "properties": inner}
    if "$ref" in value.extra:
        return value.extra
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    made: dict[str, Any] = {"type": kinds[type(value.default)]}
    if value.description:
        made["description"] = value.description
    return made | value.extra
