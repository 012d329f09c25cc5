"""Watching a deployed model: is the stream still what the threshold was calibrated on, and if not, since when."""

import json
import sys
from pathlib import Path

import numpy as np
from rich.console import Console

from kood import report
from kood.errors import UserError
from kood.monitor.drift import Drift, drift
from kood.monitor.page import as_data, print_findings, write_page
from kood.monitor.stream import asked, logged
from kood.serving.client import newest_version
from kood.serving.extras import read_facts

__all__ = ["Drift", "drift", "monitor"]


def monitor(
    run: Path, data: Path, *, level: float = 0.01, most: int = 12, to: Path | None = None, as_json: bool = False,
    console: Console | None = None,
) -> tuple[Drift, int]:  # fmt: skip
    """Compares how often a stream's images are flagged with how often they should be.

    Args:
        run: `saved/<recipe>`, or one of its versions.
        data: A folder of images, taken in the order in which they were last written; or a file of answers as
            `kood predict --json` prints them, taken line by line.
        level: Chance of calling drift where there is none.
        most: How many of the most surprising images are shown.
        to: Folder for `monitor.json` and `monitor.html`; none are written where it is not given.
        as_json: Print JSON in place of tables.
        console: Where to print.

    Returns:
        The findings, and how many files could not be read.

    Raises:
        UserError: no SavedModel, or nothing that can be read.
    """
    version = newest_version(run)
    facts = read_facts(version)
    if data.is_dir():
        seen, unread = asked(version, data)
    elif data.exists():
        seen, unread = logged(data)
    else:
        raise UserError(f"--data {data}: there is nothing there; give a folder of images, or a file of answers")
    if not seen:
        raise UserError(f"--data {data}: there is no image in it that could be read", exit_code=1)
    flags = np.array([one.is_ood for one in seen])
    found = drift(flags, int(facts["calibration_images"]), float(facts["accept"]))
    told = as_data(found, level, seen, unread, most)
    if as_json:
        print(json.dumps(told, indent=2), file=console.file if console else sys.stdout)
    else:
        print_findings(console or Console(), found, level, seen, unread, most)
    if to is not None:
        report.write_json(to / "monitor.json", told)
        write_page(to / "monitor.html", str(facts["name"]), found, level, seen, unread, most)
    return found, len(unread)
