"""What the scores with a state have in common: the state, and the checks of what they are fitted on."""

from collections.abc import Callable
from typing import Any, Self

import numpy as np
from keras import ops

from kood.geometry import same_rows
from kood.scores.plain import float32
from kood.scores.streaming import blocks, class_sums


def array(name, values, ndim=2):
    """The values as they are, an array; refuses an empty, misshapen or non-finite one."""
    values = np.asarray(values)
    if values.ndim != ndim or values.size == 0:
        shape = "(N, D)" if ndim == 2 else "(N,)"
        raise ValueError(f"{name} must be a filled array of shape {shape}; its shape is {values.shape}.")
    strange = sum(int((~np.isfinite(block)).sum()) for block, *_ in blocks(values))
    if strange:
        raise ValueError(f"{name} holds {strange} values that are NaN or infinite.")
    return values


def class_indices(features, labels):
    """The labels as integers (N,), one for each feature."""
    labels = array("labels", labels, ndim=1)
    same_rows(features=features, labels=labels)
    if (labels != np.rint(labels)).any() or labels.min() < 0:
        raise ValueError("labels must be class indices, whole numbers from 0.")
    return labels.astype(np.int64)


def linear_head(width, kernel, bias):
    """Kernel (D, K) and bias (K,) of a linear head, float64."""
    kernel, bias = (np.asarray(array(*part), np.float64) for part in (("kernel", kernel), ("bias", bias, 1)))
    if kernel.shape != (width, len(bias)):
        raise ValueError(f"kernel must have the shape ({width}, {len(bias)}); its shape is {kernel.shape}.")
    return kernel, bias


def log_softmax(logits):
    """Log-probabilities (N, K) of NumPy logits, exact where a probability itself would round to 0."""
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def _on_device(name: str, array: np.ndarray) -> Any:
    return ops.convert_to_tensor(array)


class Fitted:
    """A score with a state, `self.state`: named arrays that `fit` makes and `score` reads.

    `fit(features, labels, logits, kernel, bias)` takes ID features (N, D), their class indices (N,) and logits (N, K),
    and the kernel (D, K) and bias (K,) of a linear head, of which each score needs what has no default; it ends with
    `keep`, which returns the score. It raises `ValueError` for input that is empty, of another shape or length, or not
    finite, and for what the score says besides.

    `score(features, logits)` takes (B, D) and (B, K) and returns float32 (B,), higher = more OOD. It raises
    `RuntimeError` before `fit` and `ValueError` for features or logits of another width.
    """

    #: The names of the arrays in the state.
    STATE: tuple[str, ...] = ()
    #: Whether it is fitted to validation images where there are any, and not to those of the training.
    held_out = False

    def __init__(self):
        self.state = {}

    @property
    def state(self) -> dict[str, np.ndarray]:
        """The named arrays; a new state forgets where the old one was placed."""
        return self._state_arrays

    @state.setter
    def state(self, arrays: dict[str, np.ndarray]) -> None:
        self._state_arrays = arrays
        self._placed: dict[str, Any] = {}

    def doubt(self, labels: np.ndarray) -> str:
        """What speaks against the options for images of these classes (N,), to follow the score's name; "" for
        nothing."""
        return ""

    def get_state(self) -> dict[str, np.ndarray]:
        """The fitted state as named arrays of plain dtypes, ready for `np.savez`.

        Raises:
            RuntimeError: `fit` has not run.
        """
        return {name: self.array(name).copy() for name in self.STATE}

    @classmethod
    def from_state(cls, state, **options):
        """A fitted score from what `get_state` answered.

        Args:
            state: A mapping of names to arrays, such as an open `.npz` file.
            **options: Those of `__init__` that the score had; needed of those that `STATE` does not name.

        Raises:
            ValueError: An array is missing.
        """
        missing = [name for name in cls.STATE if name not in state]
        if missing:
            raise ValueError(f"This is no state of {cls.__name__}: it lacks {', '.join(missing)}.")
        score = cls(**options)
        score.state = {name: np.array(state[name]) for name in cls.STATE}
        score.restored()
        return score

    def keep(self, **arrays) -> Self:
        """Makes a state of arrays, float32 but for single numbers, and of the options of `__init__` that `STATE` names.

        Returns:
            Itself.
        """
        options = {name: getattr(self, name) for name in self._options()}
        self.state = {
            name: np.asarray(value, np.float32) if np.ndim(value) else np.array(value)
            for name, value in {**options, **arrays}.items()
        }
        return self

    def restored(self):
        """Takes the options of `__init__` that `STATE` names out of a state just loaded."""
        for name in self._options():
            if not self.state[name].ndim:
                setattr(self, name, self.state[name].item())

    def _options(self):
        return [name for name in self.STATE if name in vars(self)]

    def place(self, put: Callable[[str, np.ndarray], Any] = _on_device) -> None:
        """Puts the arrays of the state somewhere, once for many calls of `score`; outside of any graph.

        Args:
            put: Takes an array and its name to where it is kept, which `score` then reads in its place: a tensor on the
                device, or a variable of the graph that is served.
        """
        if not self._placed:
            self._placed = {name: put(name, array) for name, array in self.read().items()}

    def read(self) -> dict[str, np.ndarray]:
        """The arrays that `score` reads, as it reads them; not single numbers and words."""
        return {name: array for name, array in self.state.items() if array.ndim}

    def fitted(self, name):
        """An array of the state, once there is one, from where it was placed."""
        array = self.array(name)
        return ops.convert_to_tensor(self._placed[name]) if name in self._placed else array

    def array(self, name):
        """An array of the state as it was fitted, once there is one."""
        if name not in self.state:
            raise RuntimeError(f"{type(self).__name__} must be fitted before it can score.")
        return self.state[name]

    def rows_of_logits(self, features, logits):
        """The logits (N, K) to fit to, for a score that cannot do without them."""
        if logits is None:
            raise ValueError(f"{type(self).__name__} needs the logits of the features.")
        logits = array("logits", logits)
        same_rows(features=features, logits=logits)
        return logits

    def rightly_classified(self, values, labels, logits):
        """Mean values (K, D) of each class's rightly classified rows, and which rows (N,) these are."""
        right = np.concatenate([block.argmax(axis=1) for (block,) in blocks(logits)]) == labels
        counts = np.bincount(labels[right], minlength=logits.shape[1])
        if (counts == 0).any():
            needs = f"{type(self).__name__} needs an image of every class that is classified rightly"
            none = f"there is none of {(counts == 0).sum()} of the {len(counts)} classes"
            raise ValueError(f"{needs}, and {none}; give more images, train longer or name another score.")
        # Those that are classified wrongly go to a row past the last class.
        sums = class_sums(values, np.where(right, labels, len(counts)), len(counts) + 1)[:-1]
        return sums / counts[:, None], right

    def checked(self, values, width, name="features"):
        """Values as a float32 tensor (B, width); refuses another shape."""
        values = float32(values)
        if len(values.shape) != 2 or values.shape[-1] not in (width, None):
            raise ValueError(f"{name} must have the shape (B, {width}); theirs is {tuple(values.shape)}.")
        return values

    def pair(self, features, width, others, other_width, name="logits"):
        """Features (B, width) and what goes with them (B, other_width), float32; refuses other shapes and rows."""
        features, others = self.checked(features, width), self.checked(others, other_width, name)
        same_rows(**{"features": features, name: others})
        return features, others
