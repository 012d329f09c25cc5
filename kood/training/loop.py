"""Fits a model of `kood.backends` to a data set that can be entered at any epoch, and survives being killed.

A checkpoint is a `.keras` file, which carries weights and optimizer, beside a small JSON file with what Keras leaves
out of it: the states of the seed generators and of the backend's own, the epoch, and the history. Both are in place or
neither is.
"""

import base64
import contextlib
import json
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kood.backends import SlowerAdam, SlowerSGD, accelerated, agreed, feed, generators, set_generators, several
from kood.errors import UserError
from kood.files import to_disk, write_atomically
from kood.training.timing import TimeBudget
from kood.training.tracking import EpochLog, EventFile

__all__ = ["fit", "optimizer", "precision", "remove_checkpoint", "steps_per_call"]

#: Seconds between checkpoints; a restart loses at most this and one epoch.
INTERVAL = 60.0
#: A loss so many times that of the first epoch has exploded.
EXPLODED = 1000.0


def optimizer(
    steps: int | None,
    *,
    name: str = "adamw",
    learning_rate: float,
    warmup: float = 0.0,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    ema: float | None = None,
    precision: str = "float32",
    slower: int = 0,
    share: float = 1.0,
) -> keras.optimizers.Optimizer:
    """An optimizer whose rate rises linearly, then falls to zero along a half cosine (arXiv 1608.03983).

    Args:
        steps: Updates of the whole training; None keeps the rate where it is, for a `TimeBudget` to move.
        name: "adamw" (arXiv 1711.05101) or "sgd" (Nesterov momentum 0.9).
        learning_rate: The peak.
        warmup: Share of the steps in which it rises.
        weight_decay: Decoupled weight decay.
        clip_norm: Global norm to which gradients are clipped, or None.
        ema: Decay of the moving average of the weights, or None. The average replaces the weights after the last
            epoch.
        precision: "mixed_float16" scales the loss, so that small gradients do not vanish (arXiv 1710.03740).
        slower: How many of the model's weights, its first, learn at a lower rate.
        share: Theirs as a share of the others'.

    Returns:
        A Keras optimizer.
    """
    rate: Any = learning_rate
    if steps is not None:
        rising = round(steps * warmup)
        rate = keras.optimizers.schedules.CosineDecay(
            0.0 if rising else learning_rate,
            decay_steps=max(1, steps - rising),
            warmup_target=learning_rate if rising else None,
            warmup_steps=rising,
        )
    average = {"use_ema": False} if ema is None else {"use_ema": True, "ema_momentum": ema}
    common: dict[str, Any] = {"global_clipnorm": clip_norm, **average}
    if slower and share != 1.0:
        common |= {"slower": slower, "share": share, "decay": weight_decay}
        nesterov = {"momentum": 0.9, "nesterov": True}
        chosen = SlowerSGD(rate, **nesterov, **common) if name == "sgd" else SlowerAdam(rate, **common)
    elif name == "sgd":
        chosen = keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=weight_decay or None, **common)
    elif weight_decay:
        chosen = keras.optimizers.AdamW(rate, weight_decay=weight_decay, **common)
    else:  # The same numbers without a pass over every weight to subtract nothing.
        chosen = keras.optimizers.Adam(rate, **common)
    return keras.optimizers.LossScaleOptimizer(chosen) if precision == "mixed_float16" else chosen


def fit(
    model: keras.Model,
    batches: Callable[[int], Any],
    *,
    epochs: int,
    steps_per_epoch: int,
    folder: Path,
    callbacks: Sequence[keras.callbacks.Callback | None] = (),
    interval: float = INTERVAL,
    budget: TimeBudget | None = None,
    log: Path | None = None,
    board: Path | None = None,
    images: np.ndarray | None = None,
) -> tuple[keras.Model, dict[str, list[float]]]:
    """Trains a compiled model, from its last checkpoint if there is one, which another backend may have written.

    Inside `kood.backends.Devices.fitting` of several processes each of them calls this, with a folder of its own and
    the first one's checkpoint in it.

    Args:
        model: Compiled; takes the numbers of the checkpoint if there is one.
        batches: Gives the data set from an epoch on; it must not depend on the epochs before.
        epochs: Epochs in all.
        steps_per_epoch: Batches of one epoch.
        folder: Where checkpoints are kept. The last stays, so that a kill before the trained model is saved does not
            lose it, until `remove_checkpoint`.
        callbacks: Told of every call and epoch after all else; None stands for none.
        interval: Seconds between checkpoints.
        budget: Ends the training when its time is up, if that is before the last epoch.
        log: A CSV file for a line an epoch (`kood.training.tracking.EpochLog`), not given: none.
        board: A folder for TensorBoard's event files, not given: none.
        images: uint8 (N, H, W, C) that the batches name rows of, to lie on the device; not given, batches have pixels.

    Returns:
        The trained model and {loss term: one value an epoch}.

    Raises:
        UserError: the loss is no longer a number, or has exploded; processes that fit together begin at different
            epochs.
    """
    checkpoint = _Checkpoint(folder, interval, budget)
    first = checkpoint.restore(model)
    if first != agreed(first):
        raise UserError(
            f"{folder}: this process has the checkpoint of another epoch than the first one; all processes must see "
            "the same run folder",
            exit_code=1,
        )
    if first < epochs and not (budget and budget.over):
        written = EpochLog(log, first) if log else None, EventFile(board, first) if board else None
        watched = budget, *written, checkpoint, *callbacks
        with model.holding(images) if images is not None else contextlib.nullcontext():
            model.fit(
                feed(batches(first)),
                initial_epoch=first,
                epochs=epochs,
                steps_per_epoch=steps_per_epoch,
                shuffle=False,  # The data set has shuffled already.
                verbose=0,
                callbacks=[one for one in watched if one is not None],
            )
    else:  # Killed between the last epoch and here: what `fit` does at its end is still to be done.
        model.optimizer.finalize_variable_values(model.trainable_variables)
    return model, checkpoint.history


def remove_checkpoint(folder: Path) -> None:
    """Removes what `fit` left beside the trained model, once that is saved."""
    (folder / "checkpoint.json").unlink(missing_ok=True)
    _clear(folder)


class _Checkpoint(keras.callbacks.Callback):
    """Writes weights, optimizer, seed states, epoch, history and time, never more often than the interval.

    Ends a training whose loss is no number, or a thousand times that of the first epoch; what it wrote stays.
    """

    def __init__(self, folder: Path, interval: float, budget: TimeBudget | None = None):
        super().__init__()
        self.folder = folder
        self.interval = interval
        self.budget = budget
        self.history: dict[str, list[float]] = {}
        self._written = time.monotonic()
        self._generators: dict[str, bytes] = {}

    def on_train_batch_begin(self, batch, logs=None):
        if self._generators:  # Only now, since under torch Keras draws from them up to the first batch.
            set_generators(self._generators)
            self._generators = {}

    def on_epoch_end(self, epoch, logs=None):
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(float(value))
        losses = self.history["loss"]
        if not (np.isfinite(losses[-1]) and losses[-1] <= EXPLODED * (1.0 + abs(losses[0]))):
            raise self._diverged(epoch + 1, losses[-1])
        due = time.monotonic() - self._written >= self.interval
        if agreed(due):  # Under JAX a model is saved by all processes or by none.
            self._write(epoch + 1)
            self._written = time.monotonic()

    def _diverged(self, epoch: int, loss: float) -> UserError:
        numbers = self.model.optimizer.iterations, self.model.optimizer.learning_rate
        step, rate = (float(keras.ops.convert_to_numpy(number)) for number in numbers)
        try:
            state = json.loads((self.folder / "checkpoint.json").read_bytes())
            left = f"the last good weights, of epoch {state['epoch']}, are in {self.folder / state['model']}"
        except (OSError, ValueError):
            left = "no weights were kept before"
        return UserError(
            f"the loss of {self.model.name} is {loss:g} after step {step:.0f} (epoch {epoch}, learning rate {rate:g}); "
            f"lower the learning rate, or set clip_norm; {left}",
            exit_code=1,
        )

    def _write(self, epoch: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"checkpoint-{epoch}.keras"
        beside = self.folder / f".writing-{name}"
        self.model.save(beside)
        with beside.open("rb") as file:  # `checkpoint.json` must not come to a disk that this one has not come to.
            to_disk(file.fileno())
        beside.replace(self.folder / name)
        state = {"epoch": epoch, "model": name, "seed_states": _seed_states(self.model), "history": self.history}
        state["generators"] = {kind: base64.b64encode(one).decode() for kind, one in generators().items()}
        if self.budget:
            state["time"] = {"spent": self.budget.spent, "over": self.budget.over}
        write_atomically(self.folder / "checkpoint.json", json.dumps(state).encode())
        _clear(self.folder, keep=name)

    def restore(self, model: keras.Model) -> int:
        """Gives the model the numbers of the last checkpoint and says its epoch; 0 where there is none.

        It stays what it is: a file says for how many devices its layers and its steps a call were made.
        """
        try:
            state = json.loads((self.folder / "checkpoint.json").read_bytes())
            kept = keras.saving.load_model(self.folder / state["model"])
            _set_seed_states(kept, state["seed_states"])
            model.optimizer.build(model.trainable_variables)
            every = ([*one.variables, *one.optimizer.variables] for one in (model, kept))
            pairs = list(zip(*every, strict=True))
            if any(tuple(mine.shape) != tuple(its.shape) for mine, its in pairs):
                raise ValueError("another network's")
            spent = state["time"] if self.budget else {}
            self._generators = {kind: base64.b64decode(one) for kind, one in state.get("generators", {}).items()}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            _clear(self.folder)  # No checkpoint, or a damaged one: the stage starts again.
            return 0
        for mine, its in pairs:
            mine.assign(its)
        if self.budget:
            self.budget.spent, self.budget.over = spent["spent"], spent["over"]
        self.history = state["history"]
        return state["epoch"]


def _clear(folder: Path, keep: str = "") -> None:
    for path in [*folder.glob("checkpoint-*.keras"), *folder.glob(".writing-checkpoint-*")]:
        if path.name != keep:
            path.unlink()


def _seeds(model: keras.Model) -> list[keras.Variable]:
    """The states of the seed generators: a model's variables that are no weights."""
    weights = {id(weight) for weight in model.weights}
    return list({id(state): state for state in model.variables if id(state) not in weights}.values())


def _seed_states(model: keras.Model) -> list[dict[str, str]]:
    states = [keras.ops.convert_to_numpy(state) for state in _seeds(model)]
    return [{"dtype": str(s.dtype), "state": base64.b64encode(s.tobytes()).decode()} for s in states]


def _set_seed_states(model: keras.Model, states: list[dict[str, str]]) -> None:
    """Sets every generator to where it was, whichever backend it was under.

    A state is a seed and a count of draws under each of them, whole numbers below 2^31 of the backend's own type. So
    the count goes on; what is drawn is the new backend's.
    """
    for state, kept in zip(_seeds(model), states, strict=True):
        value = np.frombuffer(base64.b64decode(kept["state"]), kept["dtype"])
        state.assign(value.astype(keras.backend.standardize_dtype(state.dtype)))


@contextlib.contextmanager
def precision(policy: str) -> Iterator[None]:
    """Layers made inside the block compute in this precision.

    Args:
        policy: "float32", "mixed_bfloat16" or "mixed_float16".
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def steps_per_call(steps_per_epoch: int, wanted: int = 1, most: int = 25) -> int:
    """How many training steps the compiled function makes in one call.

    Calling a small network's step costs as much as the step. TensorFlow loops inside the graph, so there more steps a
    call are free, and so they are under JAX on an accelerator; on a CPU and under torch they are not. TensorFlow's loop
    takes no sums over replicas (2.21), so with several of its devices each step is a call.

    Args:
        steps_per_epoch: The loop must not run past an epoch's end.
        wanted: What the recipe asks for; 1 leaves the choice to this function.
        most: What it chooses at most; more for steps that take less time than their call.

    Returns:
        A divisor of `steps_per_epoch`.
    """
    if keras.backend.backend() == "tensorflow" and (several() or wanted == 1):
        wanted = 1 if several() else most
    elif wanted == 1 and keras.backend.backend() == "jax" and accelerated():
        wanted = 10
    return max(n for n in range(1, min(wanted, steps_per_epoch) + 1) if steps_per_epoch % n == 0)
