"""What a figure of speed must be read with: the processor's vector instructions and the number of threads."""

from pathlib import Path

from kood.process import cores

__all__ = ["cores", "model", "vector_flags"]

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def vector_flags() -> str:
    """Those vector instructions of this processor that decide how fast a network runs."""
    flags = set(_cpuinfo().split())
    return " ".join(flag for flag in FLAGS if flag in flags) or "no vector flags known"


def model() -> str:
    """The processor's name."""
    lines = (line.partition(":") for line in _cpuinfo().splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == "model name"), "processor unknown")


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8") if path.exists() else ""
