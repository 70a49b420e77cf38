"""Hooks of the documentation site: links that leave `docs/` name their file instead of pointing out of the site."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)\s]+)\)")
FENCE = re.compile(r"(```.*?```)", re.DOTALL)


def on_config(config: Any, **_: Any) -> Any:
    """List every decision, so that a new one needs no line in mkdocs.yml."""
    folder = Path(config["docs_dir"]) / "decisions"
    for section in config["nav"]:
        for part in next(iter(section.values())) if isinstance(next(iter(section.values())), list) else ():
            if "Decisions" in part:
                part["Decisions"] = [f"decisions/{page.name}" for page in sorted(folder.glob("*.md"))]
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by MkDocs with the text of each page."""
    folder = posixpath.dirname(f"docs/{page.file.src_uri}")

    def named(found: re.Match[str]) -> str:
        text, link = found.groups()
        path = posixpath.normpath(posixpath.join(folder, link.partition("#")[0]))
        return found[0] if path.startswith("docs/") else f"{text} (`{path}`)"

    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(named, part) for part in parts)
