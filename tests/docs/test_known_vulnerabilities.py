"""The images hold no version that docs/security.md knows to be vulnerable."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[2]
LEFT = {"pipeline": {"protobuf"}, "serving": set()}
"""What an image has all the same, with the reason in docs/security.md."""


def known() -> dict[str, Version]:
    """Package -> first version without what is known, as the table of docs/security.md says."""
    text = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    table = text.split("## Known vulnerabilities", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| ([\d.]+) \| .*CVE-\d{4}-\d+", table, re.M)
    return {name: Version(version) for name, version in rows}


def locked(image: str) -> dict[str, Version]:
    text = (ROOT / f"components/{image}.lock").read_text(encoding="utf-8")
    return {name: Version(version) for name, version in re.findall(r"^([a-z0-9-]+)==([\w.]+)", text, re.M)}


@pytest.mark.parametrize("image", ["serving", "pipeline"])
def test_an_image_holds_no_version_that_is_known_to_be_vulnerable(image: str) -> None:
    floors, versions = known(), locked(image)
    assert {"starlette", "protobuf", "urllib3"} <= floors.keys() & versions.keys(), "the table and the lock are read"
    assert {name for name, floor in floors.items() if name in versions and versions[name] < floor} == LEFT[image]
