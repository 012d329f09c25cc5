"""What is said of the machine that a figure was measured on."""

import os
import weakref

import numpy as np
import pytest

from kood import machine

XEON = "processor\t: 0\nmodel name\t: Xeon: 9th gen\nflags\t\t: fpu avx2 amx_bf16 avx512_bf16 avx512f amx_tile\n"


@pytest.fixture
def cpuinfo(monkeypatch):
    return lambda text: monkeypatch.setattr(machine, "_cpuinfo", lambda: text)


def test_processor_and_flags_in_the_order_of_age(cpuinfo):
    cpuinfo(XEON)
    assert machine.processor() == "Xeon: 9th gen"
    assert machine.vector_flags() == "avx2 avx512f avx512_bf16 amx_bf16"


def test_a_part_of_a_word_is_no_flag(cpuinfo):
    cpuinfo("flags : avx2x xavx512f")
    assert machine.vector_flags() == ""


def test_without_cpuinfo_something_is_said(cpuinfo):
    cpuinfo("")
    assert machine.processor() and machine.vector_flags() == ""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_cores_are_those_that_this_process_may_use():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert machine.cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert machine.cores() == len(allowed)


def test_variables_that_change_arithmetic_are_found_where_their_backend_reads_them(monkeypatch):
    for name in {name for names in machine.VARIABLES.values() for name in names}:
        monkeypatch.delenv(name, raising=False)
    assert not any(machine.arithmetic(backend) for backend in ("tensorflow", "jax", "torch", ""))
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert machine.arithmetic("jax") == {"JAX_ENABLE_X64": "1", "NVIDIA_TF32_OVERRIDE": "0"}
    assert machine.arithmetic("torch") == machine.arithmetic("tensorflow") == {"NVIDIA_TF32_OVERRIDE": "0"}
    # The number of devices decides no figure.
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    assert "XLA_FLAGS" not in machine.arithmetic("jax")
    monkeypatch.setenv("XLA_FLAGS", "--xla_a --xla_force_host_platform_device_count=4  --xla_b=2")
    assert machine.arithmetic("jax")["XLA_FLAGS"] == "--xla_a --xla_b=2"


def test_a_package_is_found_under_another_name_of_its_distribution(tmp_path, monkeypatch):
    (tmp_path / "manyfold").mkdir()
    (tmp_path / "manyfold" / "__init__.py").touch()
    told = tmp_path / "manyfold_cpu-1.5.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: manyfold-cpu\nVersion: 1.5\n")
    (told / "top_level.txt").write_text("manyfold\n")
    assert machine.installed("manyfold") == ""
    monkeypatch.syspath_prepend(str(tmp_path))
    assert machine.installed("manyfold") == machine.installed("manyfold-cpu") == "1.5"
    assert machine.installed("numpy") == np.__version__


def test_garbage_is_collected_when_that_is_little_of_the_time(monkeypatch):
    now, at = [100.0], []
    monkeypatch.setattr(machine.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(machine, "_collected", {"again": 0.0})

    def collect():
        at.append(now[0])
        now[0] += 0.5

    monkeypatch.setattr(machine.gc, "collect", collect)
    for step in (1.0, 8.0, 0.49, 0.02, 3.0, 600.0):
        machine.collect_garbage()
        now[0] += step
    assert at == pytest.approx([100.0, 110.01])


def test_what_refers_to_itself_is_freed(monkeypatch):
    class Graph:
        pass

    graph = Graph()
    graph.own, seen = graph, weakref.ref(graph)
    del graph
    monkeypatch.setattr(machine, "_collected", {"again": 0.0})
    machine.collect_garbage()
    assert seen() is None
