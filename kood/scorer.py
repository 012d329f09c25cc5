"""Binds a score by its spec to a classifier's outputs, the same way for evaluation and for the served graph."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from keras import ops

from kood import registry, specs
from kood.errors import UserError, first_line
from kood.rotation import ROTATIONS
from kood.scores.streaming import LARGEST

__all__ = ["Scorer", "applicable", "linear_weights", "rehearse"]


#: What a linear head lends to the scores that rework its logits.
LINEAR = ("kernel", "bias")
#: Images that a rehearsal makes up, at least: more than any score asks for by its own settings.
_MANY = 1024
#: Images that a score from outside is asked about more than once, and by how much their scores may differ then, of the
#: largest: sums of float32 round otherwise in batches of other sizes.
_ASKED_AGAIN, _ROUNDING = 8, 1e-5


class Scorer:
    """A score that takes a classifier's outputs.

    Args:
        spec: The score and its options, see `kood.specs`.
        state: Arrays of a fitted score; None for a plain one, or for one that `fit` is about to fit.
        key: Where the spec stands, for the message.

    Attributes:
        name: The canonical spec.
        options: Those that differ from their defaults.
        inputs: {parameter of the score: which of the outputs it takes}.
        perturbation: {output that takes images moved by a gradient: the options that decide how}, as
            `kood.outputs.further_for` makes them; the output is named after all of them.

    Raises:
        UserError: no such score or option, or a value that the score refuses.
    """

    def __init__(self, spec: str, state: Mapping[str, np.ndarray] | None = None, key: str = "evaluate.scores"):
        self.name, self.key = specs.canonical(spec, key), key
        base, self.options = specs.parse(self.name, key)
        self.state = dict(state) if state else None
        found = registry.obtain("scores", base, key)
        self._is_outside, self._was_asked = bool(registry.find("scores", base, key).package), False
        self.is_fitted = inspect.isclass(found)
        self._class = found
        self._function = None if self.is_fitted else functools.partial(found, **self.options)
        self._fitted: Any = self._made(key) if self.is_fitted else None
        if state:
            # One that derives from `Fitted` takes its options; another keeps in its state what it answers by.
            asked = inspect.signature(found.from_state).parameters
            takes_all = any(one.kind is one.VAR_KEYWORD for one in asked.values())
            self._fitted = found.from_state(state, **{k: v for k, v in self.options.items() if takes_all or k in asked})
            self._function = self._fitted.score
        self.inputs = {name: name for name in registry.needed(found.score if self.is_fitted else found)}
        self.perturbation: dict[str, dict[str, float]] = {}
        for output in registry.PERTURBATION.keys() & self.inputs:
            deciding = registry.PERTURBATION[output]
            options = {**specs.defaults(registry.find("scores", base)), **self.options}
            self.perturbation[output] = {name: options[name] for name in deciding}
            # After all that decides it: another score under this name of an output may have other defaults.
            own = ",".join(f"{name}={specs.written(options[name])}" for name in deciding)
            self.inputs[output] = f"{output}:{own}"

    def _made(self, key: str) -> Any:
        try:
            return self._class(**self.options)
        except (ValueError, TypeError) as error:
            raise UserError(f"{key}: {self.name}: {error}") from error

    def can_take(self, available: Iterable[str]) -> bool:
        """Whether it can be made of some outputs: "features", "logits", "cosines", "rotations", "kernel", "bias"."""
        return {*self.inputs.values(), *_weights(self._class)} <= set(available)

    @property
    def takes_unseen(self) -> bool:
        """Whether it is fitted to validation images where there are any, and not to those of the training."""
        return bool(getattr(self._class, "held_out", False))

    @property
    def passes(self) -> int:
        """Forward passes of an image that its outputs take."""
        return ROTATIONS if "rotations" in self.inputs else 1

    @property
    def is_ready(self) -> bool:
        """Whether it can score: a plain one can, a fitted one once it is fitted."""
        return self._function is not None

    def fit(self, outputs: Mapping[str, np.ndarray], labels: np.ndarray, head: Any) -> "Scorer":
        """Fits the score to known images; does nothing for a plain one.

        Args:
            outputs: The classifier's outputs for them.
            labels: (N,) their classes.
            head: The classifier's head; a linear one lends its kernel and bias to the scores that ask for them.

        Returns:
            Itself.

        Raises:
            UserError: these images do not determine the score, or it needs a linear head and this is none.
        """
        try:
            return self._fit(outputs, labels, linear_weights(head), type(head).__name__)
        except ValueError as error:
            raise UserError(f"{self.key}: {self.name} cannot be fitted: {error}", exit_code=1) from error

    def values(self, outputs: Mapping[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
        """The score of some images, as an array.

        A score from outside is first asked about a few of them together, in reverse and one by one: the score of an
        image that is served is that of the image alone. A fitted one is asked once more as it is read back.

        Args:
            outputs: The classifier's outputs for a set.
            rows: Integer (n,), which of its images.

        Returns:
            (n,), higher = more OOD.

        Raises:
            UserError: a score from outside raises an error, gives other than a number an image, or another number for
                the same image, again or once it is read back from its state.
        """
        if not self._is_outside:
            return ops.convert_to_numpy(self._of(outputs, rows))
        if not self._was_asked:
            some = np.unique(rows)  # A block that is filled up repeats its last one.
            some = some[np.linspace(0, len(some) - 1, min(len(some), _ASKED_AGAIN)).astype(int)]
            together, reverse = self._outside(outputs, some), self._outside(outputs, some[::-1])[::-1]
            alone = np.concatenate([self._outside(outputs, some[row : row + 1]) for row in range(len(some))])
            self._refuse_others("{} gives one image {:.6g} and then {:.6g}: it follows the other images of the batch, "
                                "how often it is asked, or chance; the score of an image is to follow from its own "
                                "outputs alone", together, reverse, alone)  # fmt: skip
            if self.is_fitted:
                self._refuse_others("{} gives one image {:.6g}, and {:.6g} once it is read back: not all that it "
                                    "answers by is in the state that its get_state gives and its from_state takes",
                                    together, self._read_back()._outside(outputs, some))  # fmt: skip
            self._was_asked = True
        return self._outside(outputs, rows)

    def _of(self, outputs: Mapping[str, np.ndarray], rows: np.ndarray) -> Any:
        return self({name: outputs[name][rows] for name in self.inputs.values()})

    def _outside(self, outputs: Mapping[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
        """`values` of a score from outside, of which nothing is taken for granted."""
        try:
            found = np.asarray(ops.convert_to_numpy(self._of(outputs, rows)))
        except Exception as error:  # Whatever a stranger's score does.
            told = f"{self.key}: {self.name} fails on a batch of {len(rows)} ({first_line(error)})"
            raise UserError(told) from error
        if found.shape != (len(rows),) or found.dtype.kind not in "biuf":
            raise UserError(f"{self.key}: {self.name} gives {found.dtype} {found.shape} for a batch of {len(rows)}; a "
                            f"score is one number an image, ({len(rows)},)")  # fmt: skip
        return found

    def _read_back(self) -> "Scorer":
        """The score as whoever reads its state has it."""
        try:
            return Scorer(self.name, self.state, self.key)
        except Exception as error:  # Whatever a stranger's score does.
            told = f"{self.key}: {self.name} cannot be read back from its state ({first_line(error)})"
            raise UserError(told) from error

    def _refuse_others(self, told: str, together: np.ndarray, *others: np.ndarray) -> None:
        """Refuses scores of the same images that differ."""
        first = together.astype("float64")
        near = _ROUNDING * np.abs(first[np.isfinite(first)]).max(initial=0.0)
        for other in others:
            wrong = ~np.isclose(other.astype("float64"), first, rtol=0.0, atol=near, equal_nan=True)
            if wrong.any():
                at = int(wrong.argmax())
                raise UserError(f"{self.key}: {told.format(self.name, first[at], other[at])}")

    def _fit(
        self, outputs: Mapping[str, np.ndarray], labels: np.ndarray, weights: Mapping[str, np.ndarray], head: str
    ) -> "Scorer":
        if not self.is_fitted:
            return self
        score = self._class(**self.options)
        moved = {output: outputs[self.inputs[output]] for output in self.perturbation}
        offered = {"logits": outputs["logits"], **moved, **weights}
        accepted = inspect.signature(score.fit).parameters
        missing = [name for name in _weights(self._class) if name not in offered]
        if missing:
            raise UserError(f"{self.key}: {self.name} needs the {' and '.join(missing)} of a linear head; "
                            f"{head} has none")  # fmt: skip
        try:
            score.fit(outputs["features"], labels, **{k: v for k, v in offered.items() if k in accepted})
        except Exception as error:  # Whatever a stranger's score does.
            if isinstance(error, ValueError) or not self._is_outside:
                raise
            raise ValueError(first_line(error)) from error
        self.state = score.get_state()
        self._fitted, self._function = score, score.score
        return self

    def doubt(self, labels: np.ndarray) -> str:
        """What speaks against the options of a fitted score for images of these classes (N,); "" where nothing does."""
        return self._fitted.doubt(labels) if hasattr(self._fitted, "doubt") else ""

    def place(self, *put: Callable[[str, np.ndarray], Any]) -> None:
        """Puts what the score holds somewhere, once for many calls; outside of any graph.

        Args:
            *put: Where, as `kood.scores.fitting.Fitted.place` takes it; not given, on the device.
        """
        if self.state:
            self._fitted.place(*put)

    def __call__(self, outputs: Mapping[str, Any]) -> Any:
        """The score (B,), higher = more OOD, of {"features", "logits", "cosines"}."""
        if self._function is None:
            raise RuntimeError(f"{self.name} must be fitted before it can score")
        return self._function(**{name: outputs[output] for name, output in self.inputs.items()})


@functools.cache
def rehearse(
    spec: str, counts: tuple[int, ...], width: int, head: str, is_linear: bool, key: str = "evaluate.scores"
) -> None:
    """Fits a score to made-up outputs of a real number of images, which tells what the counts alone forbid.

    Features and weights are normal numbers, and every image is classified rightly: what is refused here is refused
    whatever the classifier. Of many images no more are made up than any count that decides, of each class in turn. A
    plain score is called instead, which tells whether it takes its options; what one from outside gives is looked at.

    Args:
        spec: The score and its options.
        counts: Training images of each class.
        width: Numbers of a feature.
        head: What the head is called.
        is_linear: Whether it lends its kernel and bias.
        key: Where the spec stands, for the message.

    Raises:
        ValueError: so many images of so many classes, or features of this width, do not determine the score.
        UserError: it needs a linear head and this is none, it refuses an option, or `Scorer.values` refuses it.
    """
    scorer = Scorer(spec, key=key)
    wide = {"features": width, "shifted": width, "rotations": ROTATIONS}

    def made_up(rows):
        draw = np.random.default_rng(0)
        inputs = scorer.inputs.items()
        return {output: draw.random((rows, wide.get(name, max(len(counts), 2))), np.float32) for name, output in inputs}

    if not scorer.is_fitted:
        try:
            scorer.values(made_up(_ASKED_AGAIN), np.arange(_ASKED_AGAIN))
        except UserError:
            raise
        except (ValueError, TypeError) as error:
            raise UserError(f"{key}: {scorer.name}: {error}") from error
        return
    turn = np.concatenate([np.arange(count) for count in counts])  # Which of its class each image is.
    asked = max((value for value in scorer.options.values() if isinstance(value, int)), default=0)
    first = np.argsort(turn, kind="stable")[: max(_MANY, 2 * min(width, LARGEST), 2 * len(counts), asked)]
    labels, draw = np.repeat(np.arange(len(counts)), counts)[first], np.random.default_rng(0)
    logits = draw.random((len(labels), len(counts)), np.float32)
    logits[np.arange(len(labels)), labels] += 2.0
    features, kernel, bias = (
        draw.standard_normal(shape, np.float32)
        for shape in ((len(labels), width), (width, len(counts)), (len(counts),))
    )
    weights = {"kernel": kernel, "bias": bias} if is_linear else {}
    outputs = {**made_up(len(labels)), "features": features, "logits": logits}
    scorer._fit(outputs, labels, weights, head)
    if scorer._is_outside:
        scorer.values(outputs, np.arange(min(len(labels), _ASKED_AGAIN)))


def _weights(score: Any) -> list[str]:
    """The weights of a linear head without which a score cannot be fitted."""
    return [name for name in registry.needed(getattr(score, "fit", None)) if name in LINEAR]


def linear_weights(head: Any) -> dict[str, np.ndarray]:
    """Kernel (D, K) and bias (K,) of a linear head, nothing of another one.

    Args:
        head: A classifier's head.

    Returns:
        {"kernel", "bias"} or {}.
    """
    return {name: np.asarray(ops.convert_to_numpy(getattr(head, name))) for name in LINEAR if hasattr(head, name)}


def applicable(available: Iterable[str]) -> list[str]:
    """The scores of kood's own that can be made of some outputs, in the order of their room.

    Args:
        available: "features", "logits", "cosines", "rotations"; "kernel" and "bias" where the head is linear.

    Returns:
        Recipe names.
    """
    have = set(available)
    return [name for name in registry.room("scores") if Scorer(name).can_take(have)]
