"""Stages: found again by fingerprint, whole or absent, one owner at a time."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest

from kood.errors import UserError
from kood.files import digest_file, fingerprint, write_atomically
from kood.runs import Run


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
    first = run.ensure("fit", {"x": 1}, writer(calls))
    again = run.ensure("fit", {"x": 1}, writer(calls))
    other = run.ensure("fit", {"x": 2}, writer(calls))
    assert len(calls) == 2
    assert (first.cached, again.cached, other.cached) == (False, True, False)
    assert again.facts == {"answer": 42} and again.folder == first.folder != other.folder
    assert (again.folder / "file.txt").read_text() == "result"


@pytest.mark.parametrize("damage", ["truncate", "remove", "flip", "record", "binary"])
def test_a_damaged_result_is_made_again(run, damage):
    calls = []
    stage = run.ensure("fit", {}, writer(calls))
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
    told = []
    run.on_damage = told.append
    again = run.ensure("fit", {}, writer(calls))
    assert len(calls) == 2 and not again.cached
    assert (again.folder / "file.txt").read_text() == "result"
    (message,) = told
    named = "stage.json cannot be read" if damage in ("record", "binary") else "file.txt"
    assert message.startswith("fit: ") and named in message and "made again" in message
    run.ensure("fit", {}, writer(calls))
    assert len(told) == 1 and len(calls) == 2


def test_a_killed_stage_leaves_its_work_but_no_result(run):
    def fails(folder):
        (folder / "checkpoint").write_text("half way")
        (folder / "pieces").mkdir()
        for file in (".train.npy.1", "pieces/.train-0.npy.1"):  # As a write that a kill ends leaves it.
            (folder / file).write_bytes(b"cut off")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.ensure("fit", {}, fails)
    seen = []

    def goes_on(folder):
        seen.append((folder / "checkpoint").read_text())
        (folder / "checkpoint").unlink()
        (folder / "pieces").rmdir()
        return {}

    stage = run.ensure("fit", {}, goes_on)
    assert seen == ["half way"] and not stage.cached
    assert [p.name for p in stage.folder.iterdir()] == ["stage.json"]
    assert not list(run.folder.glob("stages/*.partial"))


def test_what_was_killed_and_goes_on_took_the_seconds_of_all_its_processes(tmp_path):
    def killed(folder):
        (folder / "checkpoint").write_text("half way")
        written = (folder / "checkpoint").stat().st_mtime + 100.0
        os.utime(folder / "checkpoint", (written, written))
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            Run(tmp_path).ensure("fit", {}, killed)
    assert not list(tmp_path.glob("stages/*/stage.json"))
    stage = Run(tmp_path).ensure("fit", {}, writer([]))
    assert 200.0 <= stage.seconds < 210.0
    assert Run(tmp_path).ensure("fit", {}, writer([])).seconds == stage.seconds
    assert {p.name for p in stage.folder.iterdir()} == {"checkpoint", "file.txt", "stage.json"}


def test_what_was_killed_before_it_left_anything_took_no_time(tmp_path):
    def killed(folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path).ensure("fit", {}, killed)
    (partial,) = tmp_path.glob("stages/*.partial")
    long_ago = partial.stat().st_mtime - 1000.0
    for path in partial.iterdir():
        os.utime(path, (long_ago, long_ago))
    assert Run(tmp_path).ensure("fit", {}, writer([])).seconds < 10.0


@pytest.fixture
def killed_in_flush(monkeypatch):
    """killed_in_flush(run, make): the stage is stopped with all of it written, and nothing put in its place."""

    def interrupted(_):
        raise KeyboardInterrupt

    def stopped(run, make):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("kood.runs.folder_to_disk", interrupted)
            run.ensure("fit", {}, make)

    return stopped


def test_a_stage_that_was_killed_when_it_was_whole_is_not_made_again(tmp_path, killed_in_flush):
    calls, told = [], []
    killed_in_flush(Run(tmp_path), writer(calls))
    assert Run(tmp_path).has("fit", {}) and len(list(tmp_path.glob("stages/*"))) == 1
    run = Run(tmp_path)
    run.on_damage = told.append
    stage = run.ensure("fit", {}, writer(calls))
    assert len(calls) == 1 and stage.cached and stage.facts == {"answer": 42} and not told
    assert sorted(p.name for p in stage.folder.iterdir()) == ["file.txt", "stage.json"]


def test_a_stage_that_was_killed_when_it_was_whole_and_is_damaged_is_made_again_once(tmp_path, killed_in_flush):
    calls, told = [], []
    killed_in_flush(Run(tmp_path), writer(calls))
    (next(tmp_path.glob("stages/*.partial")) / "file.txt").write_text("resul")
    for _ in range(3):
        run = Run(tmp_path)
        run.on_damage = told.append
        assert (run.ensure("fit", {}, writer(calls)).folder / "file.txt").read_text() == "result"
    assert len(calls) == 2 and not told


@pytest.mark.parametrize("old", ["stays", "half removed", "removed"])
def test_what_fresh_had_made_when_it_was_killed_takes_the_old_ones_place(tmp_path, killed_in_flush, old):
    calls, told = [], []
    before = Run(tmp_path).ensure("fit", {}, writer(calls, "old")).folder
    killed_in_flush(Run(tmp_path, fresh=True), writer(calls, "new"))
    if old == "half removed":
        (before / "file.txt").unlink()
    elif old == "removed":
        shutil.rmtree(before)
    run = Run(tmp_path)
    run.on_damage = told.append
    stage = run.ensure("fit", {}, writer(calls))
    assert (stage.folder / "file.txt").read_text() == "new" and len(calls) == 2 and not told
    assert list(tmp_path.glob("stages/*")) == [before]


def test_fresh_makes_each_stage_again_once(tmp_path):
    calls = []
    with Run(tmp_path).held() as run:
        run.ensure("fit", {}, writer(calls))
    with Run(tmp_path, fresh=True).held() as run:
        assert not run.ensure("fit", {}, writer(calls)).cached
        assert run.ensure("fit", {}, writer(calls)).cached
    assert len(calls) == 2


def run_under(folder, backend, **options):
    return Run(folder, backend=backend, **options)


def half(folder):
    (folder / "checkpoint").write_text("half way")
    raise KeyboardInterrupt


def test_a_backend_finds_its_own_stages_alone_unless_told(tmp_path):
    calls = []
    made = run_under(tmp_path, "tensorflow").ensure("fit", {"x": 1, "backend": "tensorflow"}, writer(calls))
    taken = run_under(tmp_path, "jax", any_backend=True).ensure("fit", {"x": 1, "backend": "jax"}, writer(calls))
    assert (taken.cached, taken.key, taken.backends, len(calls)) == (True, made.key, ("tensorflow",), 1)
    own = run_under(tmp_path, "jax").ensure("fit", {"x": 1, "backend": "jax"}, writer(calls))
    assert (own.cached, own.backends, len(calls)) == (False, ("jax",), 2) and own.key != made.key
    # With both there, its own.
    again = run_under(tmp_path, "jax", any_backend=True).ensure("fit", {"x": 1, "backend": "jax"}, writer(calls))
    other = run_under(tmp_path, "torch", any_backend=True).ensure("fit", {"x": 2, "backend": "torch"}, writer(calls))
    assert again.key == own.key and not other.cached and len(calls) == 3
    assert json.loads((made.folder / "stage.json").read_bytes())["backends"] == ["tensorflow"]


def test_a_stage_says_what_it_was_made_with_and_is_found_whatever_that_was(tmp_path):
    calls, old, new = [], {"kood": "0.1.0", "keras": "3.1"}, {"kood": "0.2.0", "keras": "3.2"}
    made = Run(tmp_path, versions=old).ensure("fit", {"x": 1}, writer(calls))
    found = Run(tmp_path, versions=new).ensure("fit", {"x": 1}, writer(calls))
    assert made.made_by == found.made_by == old and found.cached and found.key == made.key
    file = made.folder / "stage.json"
    record = json.loads(file.read_bytes())
    assert record["made_by"] == old
    for strange in (None, 5, ["kood"], {}):
        file.write_text(json.dumps({**record, "made_by": strange}))
        assert Run(tmp_path, versions=new).ensure("fit", {"x": 1}, writer(calls)).made_by == {}
    del record["made_by"]  # As an older kood left it.
    file.write_text(json.dumps(record))
    again = Run(tmp_path, versions=new).ensure("fit", {"x": 1}, writer(calls))
    assert again.cached and again.made_by == {} and len(calls) == 1


def test_a_half_made_stage_goes_on_under_another_backend_and_is_of_both(tmp_path):
    decides = {name: {"x": 1, "backend": name} for name in ("tensorflow", "jax", "torch")}
    with pytest.raises(KeyboardInterrupt):
        run_under(tmp_path, "tensorflow").ensure("fit", decides["tensorflow"], half)
    calls, seen = [], []
    alone = run_under(tmp_path, "torch").ensure("fit", decides["torch"], writer(calls))
    assert alone.backends == ("torch",) and len(list(tmp_path.glob("stages/*.partial"))) == 1
    shutil.rmtree(alone.folder)

    def goes_on(folder):
        seen.append((folder / "checkpoint").read_text())
        if len(seen) == 1:
            raise KeyboardInterrupt
        return {"answer": 7}

    with pytest.raises(KeyboardInterrupt):
        run_under(tmp_path, "jax", any_backend=True).ensure("fit", decides["jax"], goes_on)
    stage = run_under(tmp_path, "jax", any_backend=True).ensure("fit", decides["jax"], goes_on)
    assert seen == ["half way"] * 2 and stage.backends == ("tensorflow", "jax") and not stage.cached
    assert sorted(p.name for p in stage.folder.iterdir()) == ["checkpoint", "stage.json"]
    assert not list(tmp_path.glob("stages/*.partial"))
    # It is nobody's own, so without the option each backend makes its stage; with it, it is found.
    for name in ("tensorflow", "jax"):
        again = run_under(tmp_path, name, any_backend=True).ensure("fit", decides[name], goes_on)
        assert again.cached and again.facts == {"answer": 7} and again.backends == ("tensorflow", "jax")
    assert not run_under(tmp_path, "jax").ensure("fit", decides["jax"], writer(calls)).cached


def test_fresh_takes_nothing_from_another_backend(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_under(tmp_path, "tensorflow").ensure("fit", {"backend": "tensorflow"}, half)
    run = run_under(tmp_path, "jax", fresh=True, any_backend=True)
    stage = run.ensure("fit", {"backend": "jax"}, writer([]))
    assert stage.backends == ("jax",) and [p.name for p in stage.folder.iterdir() if "check" in p.name] == []


def test_its_own_half_made_stage_comes_first(tmp_path):
    for name in ("tensorflow", "jax"):
        with pytest.raises(KeyboardInterrupt):
            run_under(tmp_path, name).ensure("fit", {"backend": name}, half)
    stage = run_under(tmp_path, "jax", any_backend=True).ensure("fit", {"backend": "jax"}, lambda folder: {})
    assert stage.backends == ("jax",) and len(list(tmp_path.glob("stages/*.partial"))) == 1


def test_a_folder_that_no_savedmodel_can_be_written_into_is_refused_at_once(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(UserError, match=r"caf\\udce9' is not UTF-8.*; rename the folder$"), Run(folder / "run").held():
        pass
    assert not folder.exists()


def test_only_one_process_holds_a_run(run):
    code = "import sys; from pathlib import Path; from kood.runs import Run\nwith Run(Path(sys.argv[1])).held(): pass"
    result = subprocess.run([sys.executable, "-c", code, str(run.folder)], capture_output=True, text=True, check=False)
    assert result.returncode != 0 and f"process {os.getpid()}" in result.stderr
    with pytest.raises(UserError, match="holds this folder; wait for it$"), Run(run.folder).held():
        pass
    assert Run(run.folder).is_held()


def test_a_dead_process_blocks_nobody(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from kood.runs import Run\n"
        "with Run(Path(sys.argv[1])).held(): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=False)
    assert (tmp_path / ".lock").read_text().startswith("process")
    assert not Run(tmp_path).is_held() and not Run(tmp_path / "nowhere").is_held()
    with Run(tmp_path).held():
        pass


@pytest.mark.parametrize("number", ["ENOLCK", "ENOTSUP", "EOPNOTSUPP", "EINVAL", "ENOSYS", "EIO"])
def test_a_file_system_without_locks_stops_no_run(tmp_path, monkeypatch, number):
    def without(*_):
        raise OSError(getattr(errno, number), "no locks here")

    monkeypatch.setattr("fcntl.flock", without)
    run, told = Run(tmp_path / "run"), []
    run.on_damage = told.append
    with run.held():
        assert run.ensure("a", {}, writer([])).folder.is_dir()
    assert len(told) == 1 and "nothing keeps a second process out" in told[0]
    assert run.is_held() and not Run(tmp_path / "nowhere").is_held()  # It may be: those that wait go on waiting.


@pytest.mark.parametrize("number", ["EAGAIN", "EACCES"])
def test_a_lock_of_another_process_is_told_from_no_locks(tmp_path, monkeypatch, number):
    def held(*_):
        raise OSError(getattr(errno, number), "held")

    monkeypatch.setattr("fcntl.flock", held)
    with pytest.raises(UserError, match="another process holds this folder"), Run(tmp_path).held():
        pass


def test_a_system_without_that_module_runs_all_the_same(tmp_path):
    code = (
        "import sys; sys.modules['fcntl'] = None; from pathlib import Path; from kood.runs import Run\n"
        "run = Run(Path(sys.argv[1])); run.on_damage = print\n"
        "with run.held(): print(run.ensure('a', {}, lambda folder: {}).folder.name)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "no file locks here" in done.stdout and done.stdout.splitlines()[-1].startswith("a-"), done.stderr


def test_a_file_system_that_cannot_flush_takes_results(tmp_path, monkeypatch):
    def unable(_):
        raise OSError(errno.EINVAL, "no fsync here")

    monkeypatch.setattr("os.fsync", unable)
    write_atomically(tmp_path / "file", b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole"


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


def test_a_result_is_read_through_once_a_run_and_again_once_it_changes(run, monkeypatch):
    def make(folder):
        (folder / "out").write_text("whole")
        return {}

    result, read = run.ensure("one", {"a": 1}, make), []
    monkeypatch.setattr("kood.files.digest_file", lambda path: read.append(path) or digest_file(path))
    assert all(run.ensure("one", {"a": 1}, make).cached for _ in range(3)) and len(read) == 1
    (result.folder / "out").write_text("wrong")
    assert not run.ensure("one", {"a": 1}, make).cached
    assert (result.folder / "out").read_text() == "whole"
