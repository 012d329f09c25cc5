"""Several processes on one run: the first owns the run folder, decides and reports; the others take part in the fits.

All of them see the run folder. What the first has to say (a stage is there, a stage is begun, a stage is made) are
small files in `.team/`, numbered, which the others wait for; the numbers of the models themselves go through the
backend. Each of the others works in a folder of its own beside those files, and nothing of it is kept.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kood.backends import Devices
from kood.errors import UserError
from kood.files import write_atomically
from kood.runs import Result, Run

__all__ = ["Team"]

#: Seconds between two looks for the first process's word.
INTERVAL = 0.1
#: Seconds that a process which has failed waits for that word: the first may fail likewise, or wait for this one.
PATIENCE = 60.0


class Team:
    """The processes of a run.

    Args:
        devices: This process's rank and how many there are.
        run: The run folder, which the first process holds.
    """

    def __init__(self, devices: Devices, run: Run):
        self.devices = devices
        self.run = run
        self.folder = run.folder / ".team"
        self._words = 0
        #: What this process failed with while the first went on, which then waits for it for good.
        self._alone: Exception | None = None

    @property
    def leads(self) -> bool:
        """Whether this is the first process, or the only one."""
        return self.devices.rank == 0

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """The run: begun and ended by all together, or broken off by the first one's failure.

        One of the others that fails alone ends, which whoever launched it sees: the first waits for it in a sum.
        """
        if self.devices.processes == 1:
            yield
            return
        if self.leads:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
        self.devices.wait()
        with self._broken_off():
            yield
        if self._alone is not None:
            raise self._alone
        self.devices.wait()
        if self.leads:
            shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def cell(self, number: int) -> Iterator[None]:
        """A cell of a matrix: where the first process fails in it, so do the others, and all go on to the next.

        Its words are numbered by themselves, since one who failed in the midst has not heard all of those before.
        """
        outer = self.folder, self._words
        self.folder, self._words = self.folder / f"cell-{number}", 0
        if self.leads and self.devices.processes > 1:
            self.folder.mkdir()
        try:
            with self._broken_off():
                yield
        finally:
            self.folder, self._words = outer

    @contextmanager
    def _broken_off(self) -> Iterator[None]:
        """What the first process tells the others of where it fails."""
        try:
            yield
        except BaseException as error:
            self._tell({"failed": f"{error}"})
            raise

    def ensure(
        self,
        name: str,
        decides: dict[str, Any],
        make: Callable[[Path], dict[str, Any]],
        on: Callable[[], AbstractContextManager[None]] | None,
    ) -> Result:
        """`Run.ensure` for all processes: the first finds the stage or makes it, and where it says so, all make it.

        Args:
            on: The block of `Devices` in which every process makes the stage; None where the first makes it alone.

        Returns:
            The first process's result.

        Raises:
            UserError: the first process failed.
        """

        def make_on(folder: Path) -> dict[str, Any]:
            with on() if on is not None else nullcontext():
                return make(folder)

        if not self.leads:
            return self._take_part(name, make_on, together=on is not None)

        def begun(folder: Path) -> dict[str, Any]:
            self._tell({"begun": str(folder.resolve())})
            return make_on(folder)

        try:
            result = self.run.ensure(name, decides, begun)
        except Exception as error:
            self._tell({"failed": f"{error}"})
            raise
        self._tell({"made": {**asdict(result), "folder": str(result.folder.resolve())}})
        return result

    def _take_part(self, name: str, make: Callable[[Path], dict[str, Any]], together: bool) -> Result:
        word, failure = self._hear(), None
        if "begun" in word:
            if together:
                mine = self.folder / str(self.devices.rank) / name
                shutil.rmtree(mine, ignore_errors=True)
                shutil.copytree(word["begun"], mine)  # What a killed predecessor left, the last checkpoint above all.
                try:
                    make(mine)
                except Exception as error:
                    failure = error
                shutil.rmtree(mine, ignore_errors=True)
            word = self._hear(failure)
        if "failed" in word:
            raise UserError(f"the first process failed: {word['failed']}", exit_code=1) from failure
        if failure is not None:
            raise failure
        made = word["made"]
        return Result(**{**made, "folder": Path(made["folder"]), "backends": tuple(made["backends"])})

    def _tell(self, word: dict[str, Any]) -> None:
        if self.leads and self.devices.processes > 1:
            self._words += 1
            write_atomically(self.folder / f"{self._words}.json", json.dumps(word).encode())

    def _hear(self, failure: Exception | None = None) -> dict[str, Any]:
        self._words += 1
        path = self.folder / f"{self._words}.json"
        until = math.inf if failure is None else time.monotonic() + PATIENCE
        while not path.exists():
            if time.monotonic() >= until:
                self._alone = failure
            if self._alone is not None:  # Or it was in a cell before this one.
                raise self._alone
            time.sleep(INTERVAL)
            if not self.run.is_held() and not path.exists():
                raise UserError(f"{self.run.folder}: the first process has ended", exit_code=1)
        self._alone = None
        return json.loads(path.read_bytes())
