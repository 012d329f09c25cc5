"""Binds a score by its recipe name to a classifier's outputs, the same way for evaluation and for the served graph."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from kood import registry
from kood.errors import UserError

__all__ = ["Scorer", "applicable"]


class Scorer:
    """A score that takes a classifier's outputs.

    Args:
        name: The score's recipe name.
        state: Arrays of a fitted score; None for a plain one, or for one that `fit` is about to fit.
    """

    def __init__(self, name: str, state: Mapping[str, np.ndarray] | None = None):
        self.name = name
        self.state = dict(state) if state else None
        found = registry.obtain("scores", name)
        self.is_fitted = inspect.isclass(found)
        self._class = found
        self._function = found if not self.is_fitted else None
        if state:
            self._function = found.from_state(state).score
        self.inputs = _inputs(found)

    def fit(self, outputs: Mapping[str, np.ndarray], labels: np.ndarray, head: Any) -> "Scorer":
        """Fits the score to training images; does nothing for a plain one.

        Args:
            outputs: The classifier's outputs for them.
            labels: (N,) their classes.
            head: The classifier's head; a linear one lends its kernel and bias to the scores that ask for them.

        Returns:
            Itself.

        Raises:
            UserError: these images do not determine the score.
        """
        if not self.is_fitted:
            return self
        score = self._class()
        linear = {name: np.asarray(getattr(head, name)) for name in ("kernel", "bias") if hasattr(head, name)}
        offered = {"logits": outputs["logits"], **linear}
        accepted = inspect.signature(score.fit).parameters
        try:
            score.fit(outputs["features"], labels, **{k: v for k, v in offered.items() if k in accepted})
        except ValueError as error:
            raise UserError(f"evaluate.scores: {self.name} cannot be fitted: {error}", exit_code=1) from error
        self.state = score.get_state()
        self._function = score.score
        return self

    def __call__(self, outputs: Mapping[str, Any]) -> Any:
        """The score (B,), higher = more OOD, of {"features", "logits", "cosines"}."""
        if self._function is None:
            raise RuntimeError(f"{self.name} must be fitted before it can score")
        return self._function(**{name: outputs[name] for name in self.inputs})


def _inputs(score: Any) -> list[str]:
    """The outputs that a score needs: its parameters without a default."""
    function: Any = score.score if inspect.isclass(score) else score  # type: ignore[attr-defined]
    parameters = inspect.signature(function).parameters
    return [name for name, p in parameters.items() if p.default is p.empty and name != "self"]


def applicable(available: Iterable[str]) -> list[str]:
    """The scores that can be made of some outputs, in the order of their room.

    Args:
        available: "features", "logits", "cosines".

    Returns:
        Recipe names.
    """
    have = set(available)
    return [name for name in registry.room("scores") if set(_inputs(registry.obtain("scores", name))) <= have]
