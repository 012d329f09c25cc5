"""report.json and the writing of files."""

import json
import math
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from kood.report.files import strict, write_bytes, write_json


def forbid(word):
    raise AssertionError(f"{word} is not JSON")


def test_round_trip_keeps_order_and_every_digit(tmp_path):
    obj = {"z": 0.1 + 0.2, "a": [1e-300, 2**53 + 1, -0.0], "m": {"b": True, "a": None}, "text": "ä\u2028<script>"}
    write_json(path := tmp_path / "deep" / "report.json", obj)
    back = json.loads(path.read_text(encoding="ascii"), parse_constant=forbid)
    assert back == obj
    assert list(back) == ["z", "a", "m", "text"]
    assert list(back["m"]) == ["b", "a"]
    assert math.copysign(1, back["a"][2]) == -1


def test_what_json_has_no_word_for_becomes_null():
    obj = {"nan": math.nan, "inf": [math.inf, -math.inf], "array": np.array([1.0, np.nan]), "np": np.float32("inf")}
    assert strict(obj) == {"nan": None, "inf": [None, None], "array": [1.0, None], "np": None}


def test_numpy_values_and_paths():
    plain = strict({"i": np.int64(3), "f": np.float64(0.1), "b": np.bool_(True), "t": (1, 2), "p": Path("a/b")})
    assert plain == {"i": 3, "f": 0.1, "b": True, "t": [1, 2], "p": str(Path("a/b"))}
    assert [type(plain[key]) for key in "ifb"] == [int, float, bool]


@pytest.mark.parametrize("bad", [{"x": object()}, {1: "x"}, {"x": {1, 2}}, {"x": 1j}])
def test_what_is_not_json_is_refused_and_leaves_nothing(tmp_path, bad):
    with pytest.raises(TypeError):
        write_json(tmp_path / "report.json", bad)
    assert list(tmp_path.iterdir()) == []


def test_lone_surrogates_do_not_break_the_file(tmp_path):
    write_json(path := tmp_path / "report.json", {"name": "\udcff"})
    assert json.loads(path.read_bytes()) == {"name": "\udcff"}


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    write_bytes(path := tmp_path / "report.html", b"old")

    def full(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_permissions_are_those_of_any_new_file(tmp_path):
    other = tmp_path / "other"
    other.write_text("")
    write_bytes(path := tmp_path / "report.html", b"")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)
