"""A run's folder: stages that appear whole or not at all, are found again by fingerprint, and one owner at a time.

saved/<recipe>/
  recipe.toml  report.json  report.html        what the last run wrote, of a matrix table.csv and table.tex as well
  belongs_to.json                              the classes and the data set of the folder
  before-<version>/                            the report of other data, where a run was asked to go on with them
  1/ 2/ ...                                    SavedModels; TF Serving takes this folder as it is
  stages/<stage>-<fingerprint>/                results, each with its stage.json
  stages/<stage>-<fingerprint>.partial/        a stage that is being made, or that was killed

Results are the same bit for bit only under one backend, so the backend is part of a fingerprint, and a run finds the
stages of its own. With `any_backend` it takes those of the others too, and goes on with what they left half made; what
two backends made together counts as neither's.
"""

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from kood.errors import UserError
from kood.files import damaged, digests, file_state, fingerprint, folder_to_disk, refuse_not_utf_8, write_atomically

try:
    import fcntl
except ImportError:  # Windows has other locks.
    fcntl = None  # type: ignore[assignment]

__all__ = ["Result", "Run", "key_of"]

KERAS_BACKENDS = ("tensorflow", "jax", "torch")
#: Stands in a fingerprint for the backend of a stage that several made.
MIXED = "mixed"
#: What a lock says that another process holds.
HELD = (errno.EAGAIN, errno.EACCES)
#: In a stage that is being made: under which backends it was made so far, and the seconds that this took.
NOTE = "making.json"


# Its own, in ten lines, not filelock: version 4.2 raises where a file system has no locks (ENOTSUP, ENOLCK) or goes
# over to a file that is a lock by being there (ENOSYS), and a shared `FileLock`, by which `is_held` asks, it has not.
def _lock(file: int, *, shared: bool = False) -> bool | None:
    """Takes a lock without waiting: whether it was free; None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        # Anything but another holder (no locks left, a server of locks that does not run) is no reason to lose a run.
        return False if error.errno in HELD else None
    return True


def _partial(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")


def key_of(folder: Path) -> str:
    """The fingerprint in the name of a stage's folder, finished or being made."""
    return folder.name.removesuffix(".partial").rpartition("-")[2]


def _holds_work(partial: Path) -> bool:
    """Whether there is anything to go on with."""
    return partial.is_dir() and any(p.name[0] != "." and p.name != NOTE for p in partial.iterdir())


@dataclass(frozen=True)
class Result:
    """What a finished stage left.

    Attributes:
        folder: Where its files are.
        facts: What the stage had to say of itself (JSON).
        seconds: How long it took when it was made, by all processes that went on with it; of one that was killed as
            long as it left files.
        cached: Whether it was found, not made.
        backends: Under which Keras backends it was made, in order.
        made_by: With which versions it was made, or finished where several commands made it, {package: version};
            nothing where its folder does not say, as those of an older kood do not.
    """

    folder: Path
    facts: dict[str, Any]
    seconds: float
    cached: bool
    backends: tuple[str, ...] = ()
    made_by: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Its fingerprint, which the stages that use its result hash in turn."""
        return key_of(self.folder)


@dataclass(eq=False)
class Run:
    """The folder of one recipe's runs, held by one process at a time.

    Args:
        folder: `saved/<recipe>`; made where missing.
        fresh: Make every stage again, once, whatever is there.
        any_backend: Take stages that another backend finished, and go on with those that it left half made.
        versions: What this run makes stages with, {package: version}; no key is made of it.
        on_damage: Is told of a result that was found damaged and is made again, and of a folder that cannot be held.
    """

    folder: Path
    _: KW_ONLY
    fresh: bool = False
    backend: str = ""
    any_backend: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    on_damage: Callable[[str], None] = lambda message: None

    def __post_init__(self) -> None:
        self._made: set[Path] = set()
        #: Of results that were found whole the state of their files, which are read through once.
        self._whole: dict[Path, list[tuple[int, ...]]] = {}
        self._was_there = self.folder.exists(), self.folder.parent.exists()

    @contextlib.contextmanager
    def held(self, otherwise: str = "") -> Iterator["Run"]:
        """Holds the folder; the operating system lets go of it when the process ends, however it ends.

        Where the file system has no locks the run goes on, and `on_damage` is told that nothing keeps a second one out.
        A lock that is a file alone would keep out the next run after one that was killed.

        Args:
            otherwise: What else to do than wait, with which the refusal ends.

        Raises:
            UserError: another process holds it, or the folder cannot be written.
        """
        refuse_not_utf_8(self.folder.parts, str(self.folder))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / ".lock").open("a+")
        except OSError as error:
            raise UserError(f"{self.folder}: cannot write there: {error.strerror}", exit_code=1) from error
        with lock:
            free = _lock(lock.fileno())
            if free is False:
                lock.seek(0)
                holder = lock.read().strip() or "another process"
                raise UserError(f"{self.folder}: {holder} holds this folder; wait for it{otherwise}", exit_code=1)
            if free is None:
                self.on_damage(
                    f"{self.folder}: there are no file locks here, so nothing keeps a second process out of it; start "
                    "only one at a time"
                )
            lock.truncate(0)
            lock.write(f"process {os.getpid()}")
            lock.flush()
            yield self

    def withdraw(self) -> None:
        """Takes back what this run wrote: the stages that it finished, and the folder where it made it."""
        for folder in self._made:
            shutil.rmtree(folder, ignore_errors=True)
        self._made.clear()
        here, above = self._was_there
        if not here:
            shutil.rmtree(self.folder, ignore_errors=True)
        if not above:
            with contextlib.suppress(OSError):
                self.folder.parent.rmdir()

    def is_held(self) -> bool:
        """Whether a process, this one or another, holds the folder, or may hold it where there are no locks."""
        try:
            with (self.folder / ".lock").open("rb") as lock:
                return _lock(lock.fileno(), shared=True) is not True
        except OSError:
            return False

    def ensure(self, name: str, decides: dict[str, Any], make: Callable[[Path], dict[str, Any]]) -> Result:
        """Finds a stage's result, or makes it.

        `make` writes into a folder that keeps its name over restarts, so it may find there what a killed predecessor
        left. Only when it returns is the folder renamed to its final place; what was killed before that and is whole
        is not made again.

        Args:
            decides: Everything that decides the result (JSON), the fingerprints of its inputs included; "backend" where
                the Keras backend is part of it.
            make: Fills the folder it is given and returns facts to keep (JSON).

        Returns:
            Its result.
        """
        kin = self._kin(name, decides)
        for folder in kin:
            found, damage = self._taken_up(folder)
            if damage and not self.fresh:
                self.on_damage(f"{name}: what an earlier run left is damaged ({damage}) and is made again")
            if found is not None and not (self.fresh and folder not in self._made):
                return found
        folder = kin[0]
        if self.fresh and folder not in self._made:
            shutil.rmtree(_partial(folder), ignore_errors=True)
        elif not _holds_work(_partial(folder)):
            folder = self._taken_over(kin)
            if folder != kin[0]:
                decides = {**decides, "backend": MIXED}
        partial = _partial(folder)
        partial.mkdir(parents=True, exist_ok=True)
        for path in [*partial.rglob(".*")]:  # What a killed process was writing; it bears that one's number.
            if path.is_file():
                path.unlink()
        before, backends = self._note(partial)
        start = time.monotonic()
        try:
            facts = make(partial)
        except UserError:
            if not _holds_work(partial):
                shutil.rmtree(partial)
            raise
        seconds = round(before + time.monotonic() - start, 3)
        (partial / NOTE).unlink()
        files = digests(partial)
        record = {
            "stage": name, "decides": decides, "facts": facts, "seconds": seconds, "backends": backends,
            "made_by": self.versions, "files": files,
        }  # fmt: skip
        write_atomically(partial / "stage.json", json.dumps(record, indent=1).encode())
        self._put_in_place(folder)
        self._made.add(folder)
        return Result(folder, facts, seconds, False, tuple(backends), self.versions)

    def has(self, name: str, decides: dict[str, Any]) -> bool:
        """Whether a stage is finished and undamaged, so that it would be found and not made."""
        return not self.fresh and any(self._taken_up(folder)[0] for folder in self._kin(name, decides))

    def _kin(self, name: str, decides: dict[str, Any]) -> list[Path]:
        """The stage's folder, and after it those of the same stage of other backends where the run takes these."""
        ways = [decides]
        if self.any_backend and "backend" in decides:
            others = [b for b in (*KERAS_BACKENDS, MIXED) if b != decides["backend"]]
            ways += [{**decides, "backend": other} for other in others]
        return [self.folder / "stages" / f"{name}-{fingerprint(name, way)}" for way in ways]

    def _taken_over(self, kin: list[Path]) -> Path:
        """Where to make the stage: in its own folder, or in what another backend left, which then is of both."""
        own, *others = kin
        for folder in reversed(others):
            if _holds_work(_partial(folder)):
                mixed = others[-1]
                if folder != mixed:
                    shutil.rmtree(_partial(mixed), ignore_errors=True)
                    _partial(folder).rename(_partial(mixed))
                return mixed
        return own

    def _note(self, partial: Path) -> tuple[float, list[str]]:
        """Writes down, and returns, the seconds that earlier processes took for what is half made, and under which
        backends it is being made.

        Who is killed says nothing more. So each counts from when this note was written to when its last file was.
        """
        note = partial / NOTE
        try:
            told, began = json.loads(note.read_bytes()), note.stat().st_mtime
            last = max(path.stat().st_mtime for path in partial.rglob("*") if path.name[0] != "." and path.is_file())
            seconds, backends = float(told["seconds"]) + last - began, list(told["backends"])
        except (OSError, ValueError, KeyError, TypeError):
            seconds, backends = 0.0, []
        if self.backend and self.backend not in backends[-1:]:
            backends.append(self.backend)
        write_atomically(note, json.dumps({"seconds": seconds, "backends": backends}).encode())
        return seconds, backends

    def finished(self, name: str) -> list[Result]:
        """The finished, undamaged stages of a name, the newest first; nothing is made and nothing needs to be held.

        Returns:
            A `Result` for each, found, not made.
        """
        every = [self._find(folder)[0] for folder in self.folder.glob(f"stages/{name}-{'?' * 16}")]
        whole = [stage for stage in every if stage is not None]
        return sorted(whole, key=lambda stage: (stage.folder / "stage.json").stat().st_mtime_ns, reverse=True)

    def _find(self, folder: Path) -> tuple[Result | None, str]:
        """The result of a stage whose files are all there and unchanged; else none, and what is wrong with it."""
        if not folder.exists():
            return None, ""
        try:
            record = json.loads((folder / "stage.json").read_bytes())
            states = [file_state(folder / file) for file in record["files"]]
            if self._whole.get(folder) != states:
                if damage := damaged(folder, record["files"]):
                    return None, damage
                self._whole[folder] = states
            made_by = record.get("made_by") if isinstance(record.get("made_by"), dict) else {}
            return Result(folder, record["facts"], record["seconds"], True, tuple(record["backends"]), made_by), ""
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None, f"{folder / 'stage.json'} cannot be read"

    def _taken_up(self, folder: Path) -> tuple[Result | None, str]:
        """As `_find`, with what was whole when its process was killed put in its place, which alone was to be done."""
        partial = _partial(folder)
        if self._find(partial)[0] is not None:
            self._put_in_place(folder)
        else:  # As a result it would be one of its own files.
            (partial / "stage.json").unlink(missing_ok=True)
        return self._find(folder)

    @staticmethod
    def _put_in_place(folder: Path) -> None:
        partial = _partial(folder)
        folder_to_disk(partial)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)

    def next_version(self) -> int:
        """The integer that the next SavedModel gets."""
        taken = [int(p.name) for p in self.folder.iterdir() if p.is_dir() and p.name.isdecimal()]
        return max(taken, default=0) + 1
