"""Stages: found again by fingerprint, whole or absent, one owner at a time."""

import json
import os
import subprocess
import sys

import pytest

from kood.errors import UserError
from kood.runs import Run, fingerprint, write_atomically


def test_fingerprints_depend_on_content_alone():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert len({fingerprint(x) for x in ({"a": 1}, {"a": 1.5}, {"a": "1"}, {"a": True}, {"a": None}, {"b": 1})}) == 6
    with pytest.raises(ValueError):
        fingerprint(float("nan"))


@pytest.fixture
def run(tmp_path):
    with Run(tmp_path / "run").held() as run:
        yield run


def writer(calls, text="result"):
    def make(folder):
        calls.append(folder.name)
        (folder / "file.txt").write_text(text)
        return {"answer": 42}

    return make


def test_a_stage_is_made_once(run):
    calls = []
    first = run.stage("fit", {"x": 1}, writer(calls))
    again = run.stage("fit", {"x": 1}, writer(calls))
    other = run.stage("fit", {"x": 2}, writer(calls))
    assert len(calls) == 2
    assert (first.cached, again.cached, other.cached) == (False, True, False)
    assert again.facts == {"answer": 42} and again.folder == first.folder != other.folder
    assert (again.folder / "file.txt").read_text() == "result"


@pytest.mark.parametrize("damage", ["truncate", "remove", "flip", "record", "binary"])
def test_a_damaged_result_is_made_again(run, damage):
    calls = []
    stage = run.stage("fit", {}, writer(calls))
    file = stage.folder / "file.txt"
    match damage:
        case "truncate":
            file.write_text("resul")
        case "remove":
            file.unlink()
        case "flip":
            file.write_text("Result")
        case "record":
            (stage.folder / "stage.json").write_text('{"facts": {}}')
        case "binary":
            (stage.folder / "stage.json").write_bytes(b"\xff\x00")
    again = run.stage("fit", {}, writer(calls))
    assert len(calls) == 2 and not again.cached
    assert (again.folder / "file.txt").read_text() == "result"


def test_a_killed_stage_leaves_its_work_but_no_result(run):
    def fails(folder):
        (folder / "checkpoint").write_text("half way")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.stage("fit", {}, fails)
    seen = []

    def goes_on(folder):
        seen.append((folder / "checkpoint").read_text())
        (folder / "checkpoint").unlink()
        return {}

    stage = run.stage("fit", {}, goes_on)
    assert seen == ["half way"] and not stage.cached
    assert [p.name for p in stage.folder.iterdir()] == ["stage.json"]
    assert not list(run.folder.glob("stages/*.partial"))


def test_fresh_makes_each_stage_again_once(tmp_path):
    calls = []
    with Run(tmp_path).held() as run:
        run.stage("fit", {}, writer(calls))
    with Run(tmp_path, fresh=True).held() as run:
        assert not run.stage("fit", {}, writer(calls)).cached
        assert run.stage("fit", {}, writer(calls)).cached
    assert len(calls) == 2


def test_only_one_process_holds_a_run(run):
    code = "import sys; from pathlib import Path; from kood.runs import Run\nwith Run(Path(sys.argv[1])).held(): pass"
    result = subprocess.run([sys.executable, "-c", code, str(run.folder)], capture_output=True, text=True, check=False)
    assert result.returncode != 0 and f"process {os.getpid()}" in result.stderr
    with pytest.raises(UserError, match="is running this recipe"), Run(run.folder).held():
        pass


def test_a_dead_process_blocks_nobody(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from kood.runs import Run\n"
        "with Run(Path(sys.argv[1])).held(): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=False)
    assert (tmp_path / ".lock").read_text().startswith("process")
    with Run(tmp_path).held():
        pass


def test_a_folder_that_cannot_be_made_is_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write there"), Run(tmp_path / "file" / "run").held():
        pass


def test_versions_count_up(run):
    assert run.next_version() == 1
    for name in ("1", "3", "x", "4.5"):
        (run.folder / name).mkdir()
    assert run.next_version() == 4


def test_atomic_writes_leave_the_old_file_when_they_fail(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomically(path, json.dumps({"a": 1}).encode())
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            write_atomically(path, b"half")
    assert json.loads(path.read_bytes()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
