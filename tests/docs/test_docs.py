"""The documentation is complete and true as far as a machine can tell."""

from __future__ import annotations

import importlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import rareclass
from rareclass import cli, config
from rareclass.core.calibration import METHODS
from rareclass.core.detectors import DETECTORS
from rareclass.core.learners import LEARNERS
from rareclass.core.resampling import RESAMPLERS
from rareclass.core.thresholds import OBJECTIVES
from rareclass.core.transfer import TRANSFERS
from rareclass.core.verdicts import EXIT_CODES
from rareclass.core.weighting import WEIGHTINGS
from rareclass.services.serving.serve import PIN

ROOT = Path(__file__).parents[2]
REFERENCE = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
FAMILIES = {
    "Resamplers": RESAMPLERS,
    "Learners": LEARNERS,
    "Detectors": DETECTORS,
    "Weightings": WEIGHTINGS,
    "Objectives of a threshold": OBJECTIVES,
    "Calibrations": METHODS,
    "A neighbour's labels": TRANSFERS,
}


def pages() -> list[Path]:
    """Every Markdown file that is, or is about to be, in the repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def section(title: str) -> str:
    """The part of the reference below a heading."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", REFERENCE, re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/reference.md has no heading '{title}'"
    return found[1]


def listed(text: str) -> set[str]:
    """The names in the first column of the tables of a text."""
    cells = re.findall(r"^\| (`[^|]*`) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def commands(group: Any, before: str = "rareclass") -> Iterator[str]:
    """Every command as it is typed."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before} {name}")
        else:
            yield f"{before} {name}"


def settings() -> Iterator[str]:
    """Every setting as section.field, from the model's own schema."""
    root = config.schema()

    def walk(node: dict[str, Any], before: str) -> Iterator[str]:
        for name, field in node["properties"].items():
            inner = field.get("items", field) if field.get("type") == "array" else field
            reference = inner.get("$ref", "").removeprefix("#/$defs/") if isinstance(inner, dict) else ""
            if not reference or field.get("type") == "array":
                yield f"{before}{name}"
            if reference:
                suffix = "[]." if field.get("type") == "array" else "."
                yield from walk(root["$defs"][reference], f"{before}{name}{suffix}")

    yield from walk(root, "")


COMMANDS = sorted(commands(typer.main.get_command(cli.app)))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_member_of_a_family_is_documented_and_nothing_else(family: str) -> None:
    assert listed(section(family)) == set(FAMILIES[family])


def test_every_command_is_documented_and_nothing_else() -> None:
    assert listed(section("Commands")) == set(COMMANDS)
    for verdict, code in EXIT_CODES.items():
        assert f"{code} {verdict}" in section("Commands")


def test_every_setting_is_documented() -> None:
    text = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    known = listed(text)
    missing = sorted(set(settings()) - known)
    assert not missing, f"docs/settings.md lacks {', '.join(missing)}: run `make golden`"


def test_every_environment_variable_is_documented() -> None:
    known = listed(section("Environment variables"))
    assert {*config.ENVIRONMENT, PIN} <= known
    sources = [each.read_text(encoding="utf-8") for each in (ROOT / "src").rglob("*.py")]
    named = {name for text in sources for name in re.findall(r"\"(RARECLASS_[A-Z_]+|MLFLOW_RUN_ID)\"", text)}
    read = {
        name for text in sources for name in re.findall(r"(?:environ|environment)(?:\.get)?[\[(]\"(M[A-Z_]+)\"", text)
    }
    assert named | read <= known


@pytest.mark.parametrize("page", ["reference", "settings", "commands"])
def test_a_table_says_each_thing_once(page: str) -> None:
    text = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
    for part in re.split(r"^## ", text, flags=re.MULTILINE):
        names = re.findall(r"^\| (`[^|]+`) \|", part, re.MULTILINE)
        assert sorted(names) == sorted(set(names)), part.partition("\n")[0]


def paths(cell: str) -> list[str]:
    return [each for each in re.findall(r"`([^`]+)`", cell) if "/" in each]


def test_the_price_of_a_change_names_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.split("## The price of a change")[1].split("\n## ")[0]
    found = [path for line in table.splitlines() if line.startswith("| ") for path in paths(line)]
    assert len(found) > 8
    for path in found:
        # NAME stands for the new member: its folder is what has to be there
        real = path.rpartition("/")[0] if "NAME" in path else path
        assert (ROOT / real).exists(), f"CONTRIBUTING names {path}"


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_point_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"!?\[[^\]]*\]\(([^)\s]+)\)", text):
        if "://" in link or link.startswith(("#", "mailto:")):
            continue
        target = page.parent / link.partition("#")[0]
        assert target.exists(), f"{link} points nowhere"


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_a_page_shows_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    fenced = re.findall(r"```(?:console|sh|bash)\n(.*?)```", text, re.DOTALL)
    shown = "\n".join([*fenced, *re.findall(r"`((?:make|rareclass) [^`\n]*)`", text)])
    for target in re.findall(r"^(?:\$ )?make ([a-z][a-z0-9-]*)", shown, re.MULTILINE):
        assert target in targets, f"there is no `make {target}`"
    words = {name.split()[1] for name in COMMANDS}
    for word in re.findall(r"^(?:\$ )?(?:\.venv/bin/)?rareclass ([a-z]+)\b", shown, re.MULTILINE):
        assert word in words, f"there is no `rareclass {word}`"


@pytest.mark.parametrize("page", [ROOT / "README.md"], ids=["README"])
def test_configurations_in_the_readme_are_valid(page: Path) -> None:
    found = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    for text in found:
        config.parse(yaml.safe_load(text))


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_names_a_place_of_one_machine(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = re.findall(
        r"(?<![\w.])/(?:work|tmp|home|root)/[\w./-]+|\b(?:pypi|files\.pythonhosted)\.org\b|\bregistry\.npmjs\.org\b",
        text,
    )
    assert not found


def test_every_example_has_a_page_and_a_tutorial_and_says_when_it_is_synthetic() -> None:
    for folder in filter(Path.is_dir, (ROOT / "examples").iterdir()):
        if not (folder / "config.yaml").is_file():
            continue
        tutorial = ROOT / "docs/tutorials" / f"{folder.name}.md"
        for page in (folder / "README.md", tutorial):
            text = page.read_text(encoding="utf-8").lower()
            assert ("synthetic" in text) == (folder / "generate.py").is_file(), page
            assert f"examples/{folder.name}/config.yaml" in text


def test_every_decision_is_numbered_once() -> None:
    decisions = sorted((ROOT / "docs/decisions").glob("*.md"))
    numbers = [each.name[:4] for each in decisions]
    assert len(set(numbers)) == len(numbers) > 0
    for each, number in zip(decisions, numbers, strict=True):
        assert each.read_text(encoding="utf-8").startswith(f"# {number}. "), f"{each.name} has another number inside"


def test_the_python_page_documents_every_public_name_where_it_lives() -> None:
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^::: (\S+)", page, flags=re.MULTILINE))
    homes = {f"{module}.{name}" for module, name in rareclass._HOME.values()}
    assert homes - documented == set()
    for each in sorted(documented):
        module, _, name = each.rpartition(".")
        home = importlib.import_module(module)
        assert getattr(home, name).__module__ == module, f"{each} lives elsewhere"
