"""Memory of this process: how the C library hands it back, and how much of it there may be."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_MMAP_THRESHOLD, _MEGABYTE = -3, 1 << 20
_TRIM_THRESHOLD, _TOP = -1, 8 << 20
SHARE = 0.8
"""Of what the container may use; the rest is for what else runs in it, and for what an estimate misses."""
_RESERVED = 256 << 20
"""What stacks and allocators of a process reserve and never touch: limits of the process itself count that, too."""


def give_back_arrays() -> None:
    """Let freed arrays of a megabyte and more go back to the system at once.

    glibc learns from each large array it frees to keep the next one, up to 32 MB; a training that makes arrays of all
    sizes then holds an eighth more at its peak, and is no faster. Smaller arrays come from the heap, of which up to
    ``_TOP`` bytes stay: without that bound they too go back at each free and are touched page by page when they are
    made again, which doubles the processor time of reading a table (glibc's own bound is 128 KiB, Dask sets 64 KiB).
    Nothing where another C library is, or where MALLOC_MMAP_THRESHOLD_ is set already. Source: mallopt(3).
    """
    if sys.platform == "linux" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_MMAP_THRESHOLD, _MEGABYTE)
            mallopt(_TRIM_THRESHOLD, _TOP)


def bound(wanted: int | None, root: Path = Path("/")) -> int | None:
    """Return the bytes that this process should stay below: what is wanted, but never more than a share of what its
    container or machine has. Nothing wanted: the share, or that of a limit of the process itself where it is less.

    None where the system does not say how much there is and nothing is wanted.
    """
    around = [*_group_limits(root), *_machine(root)]
    found = [int(SHARE * each) for each in (around if wanted else [*around, *_process_limits()])]
    return min([*found, *([wanted] if wanted else [])], default=None)


def _group_limits(root: Path) -> list[int]:
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    found: list[int] = []
    for line in lines:
        _, controllers, inside = line.split(":", 2)
        if not controllers:
            found += _limits_upwards(root / "sys/fs/cgroup", inside, "memory.max")
        elif "memory" in controllers.split(","):
            found += _limits_upwards(root / "sys/fs/cgroup/memory", inside, "memory.limit_in_bytes")
    return found


def _limits_upwards(mounted: Path, inside: str, name: str) -> list[int]:
    """Limits of a group and of those around it; in a container the group itself is often what is mounted."""
    folders = [mounted]
    for part in Path(inside.strip("/")).parts:
        if part != "..":
            folders.append(folders[-1] / part)
    found = []
    for folder in folders:
        try:
            text = (folder / name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():  # else "max"
            found.append(int(text))
    return found


def _process_limits() -> list[int]:
    try:
        import resource
    except ImportError:  # Windows
        return []
    limits = (resource.getrlimit(which)[0] for which in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    return [max(limit - _RESERVED, 0) for limit in limits if limit != resource.RLIM_INFINITY]


def _machine(root: Path) -> list[int]:
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    return [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:")]
