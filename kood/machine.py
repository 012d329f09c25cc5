"""The machine that figures must be read with: its processor, its cores, and what is set to change its arithmetic."""

import ctypes
import functools
import gc
import os
import platform
import re
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

__all__ = ["arithmetic", "collect_garbage", "cores", "installed", "processor", "release_memory", "vector_flags"]

#: Vector instructions that decide how fast a network runs, and in which arithmetic.
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")

#: Environment variables that change what a backend computes, beside the order of its sums.
_ALL = ("NVIDIA_TF32_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "CUBLAS_WORKSPACE_CONFIG")
VARIABLES = {
    "tensorflow": (
        *_ALL, "XLA_FLAGS", "TF_XLA_FLAGS", "TF_ENABLE_ONEDNN_OPTS", "TF_DETERMINISTIC_OPS", "TF_CUDNN_DETERMINISTIC",
        "TF_SET_ONEDNN_FPMATH_MODE", "TF_FP16_CONV_USE_FP32_COMPUTE", "TF_FP16_MATMUL_USE_FP32_COMPUTE",
    ),
    "jax": (
        *_ALL, "XLA_FLAGS", "JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION", "JAX_DEFAULT_DTYPE_BITS",
        "JAX_NUMPY_DTYPE_PROMOTION", "JAX_DEFAULT_PRNG_IMPL", "JAX_THREEFRY_PARTITIONABLE", "JAX_DISABLE_JIT",
    ),
    "torch": (*_ALL, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCH_BLAS_PREFER_CUBLASLT"),
}  # fmt: skip
#: How many devices share the work decides no figure, and a run may go on with another number.
_DEVICES = re.compile(r"--xla_force_host_platform_device_count(=\S*)?")


def installed(package: str) -> str:
    """A package's version, "" where it is not there.

    One that comes under several names ("tensorflow" as tensorflow-cpu, tensorflow-rocm, ...) is found under each.

    Args:
        package: Its name, of the distribution or of the module.
    """
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        others = metadata.packages_distributions().get(package.replace("-", "_"), [])
        return metadata.version(others[0]) if others else ""


def arithmetic(backend: str) -> dict[str, str]:
    """The environment variables that are set and change what a backend computes.

    Args:
        backend: "tensorflow", "jax" or "torch".

    Returns:
        {name: value}; mostly nothing.
    """
    found = {name: " ".join(_DEVICES.sub("", os.environ.get(name, "")).split()) for name in VARIABLES.get(backend, ())}
    return {name: value for name, value in found.items() if value}


def release_memory() -> None:
    """Gives memory that has been freed back to the system: glibc keeps a pool for each thread."""
    _trim()(0)


def collect_garbage() -> None:
    """Frees objects that refer to each other, as loaded graphs do, and gives their memory back to the system.

    It walks through all that Python holds. After many short steps in a row it does so only now and then, so that this
    takes a twentieth of the time at most.
    """
    began = time.monotonic()
    if began < _collected["again"]:
        return
    gc.collect()
    release_memory()
    ended = time.monotonic()
    _collected["again"] = ended + 19 * (ended - began)


_collected = {"again": 0.0}


@functools.cache
def _trim() -> Callable[[int], int]:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return lambda _: 0  # Another C library.


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
