"""Watching a deployed model: is the stream still what the threshold was calibrated on, and if not, since when."""

import json
from pathlib import Path

from rich.console import Console

from kood import report
from kood.data.paths import refuse_url
from kood.data.rules import Framing
from kood.errors import UserError
from kood.files import refuse_file
from kood.monitor.judge import Watched, judge, judge_log
from kood.monitor.page import as_data, print_findings, write_page
from kood.monitor.stream import asked, logged
from kood.serving.client import newest_version
from kood.serving.extras import read_facts

__all__ = ["Watched", "monitor"]


def monitor(
    run: Path, data: Path, *, level: float = 0.01, most: int = 12, to: Path | None = None, as_json: bool = False,
    console: Console | None = None,
) -> tuple[Watched, int]:  # fmt: skip
    """Compares how often a stream's images are flagged, and their p-values, with what they should be.

    Answers are judged by what they were given under: each version's by its own calibration, and where classes have
    thresholds of their own, each of these by its own.

    Args:
        run: `saved/<recipe>`, or one of its versions, whose answers alone then count.
        data: A folder of images, or a table of them (.csv, .tsv), taken in the order in which they were last written,
            without those that the model was made of; or a file of answers as `kood predict --json` prints them, taken
            line by line.
        level: Chance of calling drift where there is none.
        most: How many of the most surprising images are shown.
        to: Folder for `monitor.json` and `monitor.html`; none are written where it is not given.

    Returns:
        The findings, and how many files could not be read.

    Raises:
        UserError: no SavedModel, nothing that can be read, answers that cannot be judged, or `to` is a file.
    """
    if to is not None:
        refuse_file(to, "--to")
    console, version = console or Console(), newest_version(run)
    facts = read_facts(version)
    of_images = data.is_dir() or (data.is_file() and data.suffix.lower() in (".csv", ".tsv"))
    if of_images:
        met = asked(version, data, facts)
    elif data.exists():
        met = logged(data)
    else:
        refuse_url(data, "--data ")
        raise UserError(f"--data {data}: there is nothing there; give a folder of images, or a file of answers")
    if not met.seen:
        why = f"; the model knows all {met.known} of them" if met.known else ""
        raise UserError(f"--data {data}: there is no image in it that could be read and judged{why}", exit_code=1)
    watched = judge(met, version, facts, level) if of_images else judge_log(met, run, data, level)
    told = as_data(watched, level, most)
    if as_json:
        print(json.dumps(report.strict(told), indent=2), file=console.file)
    else:
        print_findings(console, watched, level, most)
    if to is not None:
        report.write_json(to / "monitor.json", told)
        write_page(to / "monitor.html", str(facts["name"]), watched, level, most, Framing.read(facts))
    return watched, len(met.unread)
