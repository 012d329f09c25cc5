"""`precision = "auto"`: the arithmetic in which this device trains fastest, by trying it."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from kood.backends import agreed
from kood.files import write_atomically

__all__ = ["CANDIDATES", "faster", "seconds_of_a_step"]

#: What is tried, in order; the first must work everywhere. A processor without bfloat16 in hardware computes it too,
#: and can be ten times slower at it: so what is offered says nothing of what is fast.
CANDIDATES = ("float32", "mixed_bfloat16")


def faster(measure: Callable[[str], float], folder: Path) -> dict[str, Any]:
    """The precision whose training step takes the least time.

    Written to `precision.json`, and read there if the stage was killed and goes on: a measurement made twice may come
    out otherwise, and a training does not change its arithmetic midway.

    Args:
        measure: Seconds of one training step in a precision; may raise where the device cannot do it.

    Returns:
        {"precision": the fastest, "step_seconds": {precision: seconds, or None where it does not work}}.

    Raises:
        Exception: What `measure` raised for float32.
    """
    file = folder / "precision.json"
    try:
        kept = json.loads(file.read_bytes())
        if kept["precision"] in CANDIDATES:
            return kept
    except (OSError, ValueError, KeyError, TypeError):
        pass  # Not measured yet, or damaged on the way.
    seconds: dict[str, float | None] = {CANDIDATES[0]: measure(CANDIDATES[0])}
    for candidate in CANDIDATES[1:]:
        try:
            seconds[candidate] = measure(candidate)
        except Exception:  # Whatever a backend raises for arithmetic that its device lacks.
            seconds[candidate] = None
    works = {name: value for name, value in seconds.items() if value is not None}
    # Processes that fit together take the same, whichever was the faster by each one's clock.
    fastest = agreed(CANDIDATES.index(min(works, key=lambda name: works[name])))
    found = {"precision": CANDIDATES[fastest], "step_seconds": seconds}
    write_atomically(file, json.dumps(found).encode())
    return found


def seconds_of_a_step(model: keras.Model, batches: Any) -> float:
    """The shortest time of three training steps after the first, which compiles.

    Args:
        model: Compiled, one step a call; its weights move.
        batches: A data set of at least four batches.

    Returns:
        Seconds.
    """
    taken: list[float] = []

    class Clock(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.start = time.perf_counter()

        def on_train_batch_end(self, batch, logs=None):
            float((logs or {})["loss"])  # Reading it waits for the device.
            taken.append(time.perf_counter() - self.start)

    model.fit(batches, epochs=1, steps_per_epoch=4, shuffle=False, verbose=0, callbacks=[Clock()])
    return min(taken[1:])
