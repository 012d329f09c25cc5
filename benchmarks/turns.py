"""What the measurements beside this file share: the machine in words, sides in turn, and figures that pages show."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import kood
from kood.machine import cores, processor, vector_flags

#: Where `scripts/figures.py` finds what the documentation shows.
KEPT = Path(__file__).parents[1] / "docs" / "figures"


def machine() -> str:
    """What the figures are of."""
    return f"{processor()}, {cores()} cores, {vector_flags()}"


def in_turn(sides: Mapping[str, Callable[[int], object]], rounds: int) -> dict[str, list[float]]:
    """The seconds of each side in each round, A B A B.

    Args:
        sides: Each called with the number of the round; round 0, in which things are compiled, is not counted.
        rounds: How many are.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side(number)
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def keep(rows: Iterable[Mapping[str, Any]]) -> None:
    """Keeps figures for the documentation, each row with its machine and the command, in place of those of its name.

    Args:
        rows: Figures by name; "row" names the row.
    """
    command = Path(sys.argv[0])
    arguments = [Path(one).name if Path(one).exists() else one for one in sys.argv[1:] if one != "--keep"]
    told = {
        "machine": machine(),
        "command": " ".join([f"benchmarks/{command.name}", *arguments]),
        "version": kood.__version__,
    }
    file = KEPT / f"{command.stem}.json"
    kept = {row["row"]: row for row in json.loads(file.read_bytes())["rows"]} if file.exists() else {}
    kept.update({row["row"]: {**row, **told} for row in rows})
    file.write_text(json.dumps({"rows": list(kept.values())}, indent=1) + "\n", encoding="utf-8")
