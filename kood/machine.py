"""The machine that a figure of speed must be read with: its processor, and how many of its cores there are to use."""

import os
import platform
from pathlib import Path

__all__ = ["cores", "processor", "vector_flags"]

#: Vector instructions that decide how fast a network runs, and in which arithmetic.
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def cores() -> int:
    """How many cores of the CPU this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's name."""
    lines = (line.partition(":") for line in _cpuinfo().splitlines())
    named = next((value.strip() for key, _, value in lines if key.strip() == "model name"), "")
    return named or platform.processor() or platform.machine() or "processor unknown"


def vector_flags() -> str:
    """Those of `FLAGS` that this processor has, with blanks between them; "" where none is known."""
    words = set(_cpuinfo().split())
    return " ".join(flag for flag in FLAGS if flag in words)


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # Only Linux has it.
        return ""
