"""How much memory a process may use, as control groups of both versions and the machine say it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from rareclass import _memory
from rareclass.config import Size, format_size, parse_size

GIB = 1 << 30


def machine(root: Path, cgroup: str, **limits: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/meminfo").write_text(f"MemTotal: {16 << 20} kB\nMemFree: 1 kB\n")
    for place, text in limits.items():
        path = root / "sys/fs/cgroup" / place.replace("__", "/").replace("_max", ".max").replace("_limit", ".limit")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("cgroup", "limits", "least"),
    [
        ("0::/\n", {}, 16 * GIB),
        ("0::/\n", {"memory_max": f"{2 * GIB}\n"}, 2 * GIB),
        ("0::/\n", {"memory_max": "max\n"}, 16 * GIB),
        ("0::/kube/pod\n", {"kube__memory_max": f"{3 * GIB}\n", "kube__pod__memory_max": "max\n"}, 3 * GIB),
        ("0::/../other\n", {"memory_max": f"{2 * GIB}\n"}, 2 * GIB),
        ("5:cpu,memory:/docker\n", {"memory__docker__memory_limit_in_bytes": f"{GIB}\n"}, GIB),
        ("5:memory:/\n", {"memory__memory_limit_in_bytes": "9223372036854771712\n"}, 16 * GIB),
    ],
)
def test_the_bound_is_a_share_of_the_least_limit(
    tmp_path: Path, cgroup: str, limits: dict[str, str], least: int
) -> None:
    root = machine(tmp_path, cgroup, **limits)
    assert _memory.bound(None, root) == int(_memory.SHARE * least)
    assert _memory.bound(GIB // 2, root) == GIB // 2
    assert _memory.bound(64 * GIB, root) == int(_memory.SHARE * least)


def test_nobody_who_says_how_much_there_is_leaves_what_is_wanted(tmp_path: Path) -> None:
    assert _memory.bound(None, tmp_path) is None
    assert _memory.bound(GIB, tmp_path) == GIB


def test_a_limit_of_the_process_counts_where_nothing_is_wanted() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30)); "
        "from rareclass import _memory; print(_memory.bound(None))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(said) == int(_memory.SHARE * (GIB - (256 << 20)))


@pytest.mark.parametrize(
    ("text", "size", "written"),
    [
        ("4GiB", 4 * GIB, "4Gi"),
        ("4Gi", 4 * GIB, "4Gi"),
        ("512MiB", 512 << 20, "512Mi"),
        ("2.5GB", 2_500_000_000, "2500M"),
    ],
)
def test_sizes_are_read_as_people_and_as_kubernetes_write_them(text: str, size: int, written: str) -> None:
    assert parse_size(text) == size
    assert format_size(size) == written
    assert TypeAdapter(Size).validate_python(written) == size


@pytest.mark.parametrize("wrong", ["much", "4 giraffes", "-1GiB", "0", True])
def test_what_is_no_size_is_refused(wrong: object) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Size).validate_python(wrong)


def test_arrays_below_a_megabyte_are_made_again_without_new_pages() -> None:
    code = (
        "import resource, numpy as np; from rareclass import _memory; _memory.give_back_arrays(); "
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt; np.ones(1 << 16); before = faults(); "
        "[np.ones(1 << 16).size for _ in range(50)]; print(faults() - before)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(said) < 50  # 512 KiB are 128 pages, each time
