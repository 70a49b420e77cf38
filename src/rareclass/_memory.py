"""How the C library of this process hands memory back."""

from __future__ import annotations

import ctypes
import os
import sys

_MMAP_THRESHOLD, _MEGABYTE = -3, 1 << 20


def give_back_arrays() -> None:
    """Let freed arrays of a megabyte and more go back to the system at once.

    glibc learns from each large array it frees to keep the next one, up to 32 MB; a training that makes arrays of all
    sizes then holds an eighth more at its peak, and is no faster. Nothing where another C library is, or where
    MALLOC_MMAP_THRESHOLD_ is set already. Source: mallopt(3).
    """
    if sys.platform == "linux" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_MMAP_THRESHOLD, _MEGABYTE)
