"""The clock of a training: one that ends it and moves its rate, one that tells how fast it goes."""

import math
import time
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import keras

from kood.backends import agreed

__all__ = ["Pace", "TimeBudget", "shared_clock"]

#: Seconds a time budget lets pass before it waits for what has been handed to the device.
PATIENCE = 0.1


def shared_clock() -> Callable[[], float]:
    """Seconds from now on, to the millisecond, by the first process's clock where several fit together.

    By clocks of their own they would train at different rates and end after different steps. Each of them has to make
    and read it as often as the others; a reading waits for them all.
    """
    began = time.monotonic()
    return lambda: agreed(round(1000.0 * (time.monotonic() - began))) / 1000.0


@dataclass(eq=False)
class TimeBudget(keras.callbacks.Callback):
    """Ends a training when its time is up; until then the learning rate follows the time.

    With s the share of the training that is behind it, s = max(spent / seconds, step / steps), and w the share of the
    warmup, the rate is `learning_rate * s / w` for s < w, then `learning_rate * (1 + cos(pi (s - w) / (1 - w))) / 2`
    (arXiv 1608.03983, over time as well as over steps). It moves between two calls of the training function. The time
    is part of a checkpoint: a resumed training has the rest of it. A model that counts its steps in `step`, as
    `kood.classifier.Classifier` does, finds there s of `steps`, so that what begins late in a training begins at its
    share of this one. Training ends after the call whose end is nearest to the budget's, the first call of a process
    aside: it compiles the function, and the next is shorter.

    Args:
        seconds: The budget.
        learning_rate: The peak of the rate.
        clock: Seconds since any fixed moment.
        steps: The length of the training, where the time may not be used up; None where only the time ends it.
        warmup: Share in which the rate rises linearly, in [0, 1).
        since: Moment of the clock from which on the time of this process counts; where none is given, it counts from
            the end of the first call. Either way there are two calls at least.

    Attributes:
        spent: Seconds used so far.
        over: Whether the time is up.
    """

    seconds: float
    learning_rate: float
    clock: Callable[[], float] = time.monotonic
    _: KW_ONLY
    steps: int | None = None
    warmup: float = 0.0
    since: float | None = None

    def __post_init__(self):
        super().__init__()
        self.spent, self.over = 0.0, False

    @property
    def shown(self) -> dict[str, Any]:
        """How a display counts the training: in seconds."""
        return {"total": math.ceil(self.seconds), "unit": "second", "pace": 1.0}

    def rate(self, share: float) -> float:
        """The learning rate where so much of the training is behind it, in [0, 1]."""
        if share < self.warmup:
            return self.learning_rate * share / self.warmup
        return self.learning_rate * (1.0 + math.cos(math.pi * (share - self.warmup) / (1.0 - self.warmup))) / 2.0

    def on_train_begin(self, logs=None):
        self._since: float | None = None if self.since is None else self.since - self.spent
        self._step = int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))
        self._moved = self._waited = -math.inf
        self._running: Any = None
        self._begun = self._calls = 0

    def on_train_batch_begin(self, batch, logs=None):
        self._begun = batch
        if self.clock() - self._moved < PATIENCE:
            return
        self._moved = self.clock()
        if hasattr(self.model, "jax_state_sync"):  # JAX trains on values that it took out of the variables.
            self.model.jax_state_sync()
        share = self.spent / self.seconds
        if self.steps is not None:
            share = max(share, self._step / self.steps)
        share = min(share, 1.0)
        self.model.optimizer.learning_rate = self.rate(share)
        if self.steps is not None and getattr(self.model, "step", None) is not None:
            self.model.step.assign(round(share * self.steps))

    def on_train_batch_end(self, batch, logs=None):
        self._step += batch - self._begun + 1
        loss = (logs or {}).get("loss", 0.0)
        self._calls += 1
        if self._calls == 1 or self.clock() - self._waited >= PATIENCE:
            # A device works behind a queue; a loss that is read has been computed, and with it all before it. That of
            # the call before leaves the device this call's work while it is read.
            float(loss if self._running is None else self._running)
            self._waited = self.clock()
        self._running = loss
        if self._since is None:
            self._since = self._waited - self.spent
        before, self.spent = self.spent, self.clock() - self._since
        if self._calls > 1 and self.spent + (self.spent - before) / 2.0 >= self.seconds:
            self.over = self.model.stop_training = True


class Pace(keras.callbacks.Callback):
    """How fast a training goes, its first call, which compiles the function, left out.

    Args:
        rows: Rows of a batch.
        clock: Seconds since any fixed moment.
    """

    def __init__(self, rows: int, clock: Callable[[], float] = time.monotonic):
        super().__init__()
        self.rows = rows
        self.clock = clock
        self._steps = self._begun = 0
        self._since = self._until = math.nan

    @property
    def facts(self) -> dict[str, float]:
        """{"images_per_second": of this process}; nothing where there was one call at most."""
        seconds = self._until - self._since
        return {"images_per_second": round(self.rows * self._steps / seconds, 1)} if self._steps and seconds > 0 else {}

    def on_train_batch_begin(self, batch, logs=None):
        self._begun = batch

    def on_train_batch_end(self, batch, logs=None):
        if math.isnan(self._since):
            float((logs or {}).get("loss", 0.0))  # Waits for the device.
            self._since = self.clock()
        else:
            self._steps += batch - self._begun + 1

    def on_epoch_end(self, epoch, logs=None):
        self._until = self.clock()  # Keras has read the epoch's losses.
