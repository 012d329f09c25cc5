"""What the served graph holds beside the classifier, in one piece."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from kood.conformal import Calibration
from kood.data.rules import STRETCHED, Framing

__all__ = ["Served"]


@dataclass(frozen=True)
class Served:
    """The decision to serve.

    Args:
        image_shape: (H, W, C) that the classifier was trained on.
        class_names: In the order of the labels.
        accept: Share of in-distribution images that the threshold accepts.
        calibration: (n,) scores of in-distribution images that nothing else saw.
        state: Arrays of a fitted score, or None.
        undecodable: What the signature `encoded` makes of a file that cannot be decoded: an error, or a marked row.
        labels: (n,) what the classifier labels the calibration images; not needed for one threshold for all classes.
        by_class: Whether each class that it labels has a threshold of its own.
        seen: Digests (N, 16) of the images that the version must not be calibrated or watched on, by what they were
            used for: "trained", "chosen" (validation images), "calibrated", and "recalibrated" (by `kood calibrate`).
        framing: How the graph brings images to the shape.
        preprocess: "module:function" that the user trusts to make an attached classifier's pixels, if it has such a
            one.
    """

    #: What `write` writes as arrays, and the digests, which nothing that reads it needs.
    ARRAYS: ClassVar = ("calibration", "labels", "state", "seen")

    score: str
    image_shape: tuple[int, int, int]
    class_names: list[str]
    accept: float
    calibration: np.ndarray
    state: dict[str, np.ndarray] | None = None
    undecodable: Literal["error", "mark"] = "error"
    labels: np.ndarray | None = None
    by_class: bool = False
    seen: Mapping[str, np.ndarray] = field(default_factory=dict)
    framing: Framing = STRETCHED
    preprocess: str | None = None

    @cached_property
    def decision(self) -> Calibration:
        """What is decided by the calibration scores."""
        labels = np.zeros(len(self.calibration), np.int64) if self.labels is None else self.labels
        return Calibration(self.calibration, labels, len(self.class_names), self.accept, self.by_class)

    @property
    def threshold(self) -> float | None:
        """Above it an image is flagged; None where classes have thresholds of their own.

        Raises:
            UserError: too few calibration scores for the accepted share.
        """
        groups = self.decision.groups
        return groups[0].threshold if len(groups) == 1 else None

    @property
    def names(self) -> list[str]:
        """The class names, each on one line."""
        return [" ".join(str(name).split()) for name in self.class_names]

    def write(self, path: Path) -> None:
        """Writes it as `.npz`, without pickles."""
        plain = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in self.ARRAYS}
        plain |= {"class_names": self.names, "framing": vars(self.framing)}
        arrays = {f"state/{name}": value for name, value in (self.state or {}).items()}
        np.savez(path, allow_pickle=False, plain=json.dumps(plain), calibration=self.calibration,
                 labels=self.decision.labels, **arrays)  # fmt: skip

    @classmethod
    def read(cls, path: Path) -> "Served":
        """Reads what `write` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            state = {name.removeprefix("state/"): arrays[name] for name in arrays.files if name.startswith("state/")}
            plain: dict[str, Any] = json.loads(str(arrays["plain"]))
            plain |= {"image_shape": tuple(plain["image_shape"]), "framing": Framing.read(plain["framing"])}
            return cls(**plain, calibration=arrays["calibration"], labels=arrays["labels"], state=state or None)
