"""Fill the marked sections of README.md and docs/benchmarks.md from what the benchmarks measured.

    python tools/readme_tables.py            rewrite the sections whose benchmark has results
    python tools/readme_tables.py --check    only say whether every marker is closed and names a benchmark (exit code 1
    if not)

``<!-- bench:NAME -->`` ... ``<!-- /bench -->`` gets the claims of NAME, ``<!-- bench:NAME:table -->`` what it printed,
and ``<!-- bench:summary -->`` the claims of all that were run, ``<!-- bench:headlines -->`` ten of them. A section
whose benchmark was not run here keeps what it says.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HEADLINES = (
    ("quality", "against default XGBoost"),
    ("quality", "against AutoGluon"),
    ("quality", "mean Brier score"),
    ("prequential", "XGBoost of the handbook"),
    ("pipeline", "rareclass run on 1,000,000"),
    ("resampling", "enn on"),
    ("threshold", "f1"),
    ("serving", "ours, log: requests/s against bare MLServer, 1 x 1 "),
    ("monitor", "drift of 30 features, 100k"),
    ("faults", "PostgreSQL: rows lost"),
)
"""Benchmark and the words of the claim that the README shows, wins and misses alike; all of them are on the site."""

ROOT = Path(__file__).parents[1]
FILES = ("README.md", "docs/benchmarks.md")
SECTION = re.compile(r"(<!-- bench:([a-z0-9_]+)(:table)? -->\n)(.*?)(<!-- /bench -->)", re.DOTALL)
OPENING = re.compile(r"^<!-- bench:([a-z0-9_]+)(?::table)? -->$", re.MULTILINE)


def number(value: float | None) -> str:
    """A number as people write it."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def caption(found: dict[str, Any]) -> str:
    """When, where and against what was measured."""
    peers = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    size = "full size" if found["full"] else "short size"
    before, after = found["load"]
    return (
        f"*{found['at'][:10]}, {size}, {found['processors']} processors, load {before} before and {after} after, "
        f"{found['seconds']:.0f} s. {peers}.*"
    )


def claims(found: dict[str, Any]) -> str:
    """The claims as a Markdown table."""
    lines = ["| claim | ours | peer | ratio | goal | met |", "|---|---|---|---|---|---|"]
    for each in found["claims"]:
        values = " | ".join(number(each[key]) for key in ("ours", "peer", "ratio", "goal"))
        lines.append(f"| {each['claim']} | {values} | {'yes' if each['met'] else '**no**'} |")
    return "\n".join([*lines, "", caption(found)])


def printed(found: dict[str, Any]) -> str:
    """What the benchmark printed: its Markdown tables as they are, the rest as text between them."""
    blocks: list[tuple[bool, list[str]]] = []
    for line in found["text"].splitlines():
        markdown = line.startswith("|")
        if not line.strip():
            continue
        if not blocks or blocks[-1][0] != markdown:
            blocks.append((markdown, []))
        blocks[-1][1].append(line)
    shown = ["\n".join(lines) if markdown else "\n".join(["```text", *lines, "```"]) for markdown, lines in blocks]
    return "\n\n".join([*shown, caption(found)])


def summary(results: Path, only: Sequence[tuple[str, str]] | None = None, told: str = "") -> str | None:
    """The claims of every benchmark that has results (or those asked for), with the load it ran under; None without
    any.

    only : (benchmark, words of the claim), in the order to show
    told : what stands there now; of it a claim that has no results keeps its line
    """
    lines = [
        "| benchmark | claim | ours | peer | ratio | goal | met | size, load |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for file in sorted(results.glob("*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        ran = f"{'full' if found['full'] else 'short'}, {found['load'][0]}"
        for each in found["claims"]:
            values = " | ".join(number(each[key]) for key in ("ours", "peer", "ratio", "goal"))
            lines.append(
                f"| {found['benchmark']} | {each['claim']} | {values} | {'yes' if each['met'] else '**no**'} | {ran} |"
            )
    head, claimed = lines[:2], lines[2:]
    measured = {file.stem for file in results.glob("*.json")}
    if claimed:
        rows = [line for line in told.splitlines() if line.startswith("| ") and line not in head]
        claimed = sorted([*claimed, *(row for row in rows if _name(row) not in measured)], key=_name)
    if only is not None:
        chosen = [
            [line for line in claimed if line.startswith(f"| {name} |") and words in line] for name, words in only
        ]
        claimed = [matching[0] for matching in chosen if matching]
    return "\n".join([*head, *claimed]) if claimed else None


def _name(row: str) -> str:
    """The benchmark that a line of a summary is of."""
    return row.split("|")[1].strip()


def filled(text: str, results: Path) -> str:
    """Return a document with its sections filled."""

    def section(match: re.Match[str]) -> str:
        head, name, kind, _, end = match.groups()
        if name in ("summary", "headlines"):
            table = summary(results, HEADLINES if name == "headlines" else None, match[4])
            return match[0] if table is None else f"{head}\n{table}\n\n{end}"
        file = results / f"{name}.json"
        if not file.is_file():
            return match[0]
        found = json.loads(file.read_text(encoding="utf-8"))
        return f"{head}\n{printed(found) if kind else claims(found)}\n\n{end}"

    return SECTION.sub(section, text)


def wrong(text: str, known: set[str]) -> list[str]:
    """Return what is wrong with the markers of a document, a line each."""
    opened, closed = OPENING.findall(text), [match[1] for match in SECTION.findall(text)]
    unknown = [f"there is no benchmark '{name}'" for name in opened if name not in known]
    return unknown + (["a section is not closed with <!-- /bench -->"] if opened != closed else [])


def main(arguments: list[str]) -> int:
    """Exit code 1 when markers are wrong."""
    known = {file.stem for file in (ROOT / "benchmarks").glob("*.py") if not file.stem.startswith("_")}
    known |= {"summary", "headlines"}
    bad = 0
    for name in FILES:
        path = ROOT / name
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        for problem in wrong(text, known):
            print(f"{name}: {problem}", file=sys.stderr)
            bad = 1
        new = filled(text, ROOT / "benchmarks" / "results")
        if not bad and "--check" not in arguments and new != text:
            path.write_text(new, encoding="utf-8")
            print(f"{name}: tables are new")
    return bad


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
