"""What the measurements beside this file share: the machine in words, and sides that are measured in turn."""

import time
from collections.abc import Callable, Mapping

from kood.machine import cores, processor, vector_flags


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
