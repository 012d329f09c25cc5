"""What the served graph holds beside the classifier, in one piece."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from kood.conformal import threshold
from kood.data.rules import WHITE, Colour

__all__ = ["Served"]


@dataclass(frozen=True)
class Served:
    """The decision to serve.

    Args:
        score: Name of the score.
        image_shape: (H, W, C) that the classifier was trained on.
        class_names: In the order of the labels.
        accept: Share of in-distribution images that the threshold accepts.
        calibration: (n,) scores of in-distribution images that nothing else saw.
        state: Arrays of a fitted score, or None.
        undecodable: What the signature `encoded` makes of a file that cannot be decoded: an error, or a marked row.
        ground: What is seen through transparency.
    """

    score: str
    image_shape: tuple[int, int, int]
    class_names: list[str]
    accept: float
    calibration: np.ndarray
    state: dict[str, np.ndarray] | None = None
    undecodable: Literal["error", "mark"] = "error"
    ground: Colour = WHITE

    @property
    def threshold(self) -> float:
        """Above it an image is flagged.

        Raises:
            UserError: too few calibration scores for the accepted share.
        """
        return threshold(self.calibration, self.accept)

    @property
    def names(self) -> list[str]:
        """The class names, each on one line."""
        return [" ".join(str(name).split()) for name in self.class_names]

    def write(self, path: Path) -> None:
        """Writes it as `.npz`, without pickles."""
        arrays = {f"state/{name}": value for name, value in (self.state or {}).items()}
        np.savez(
            path, allow_pickle=False, score=self.score, image_shape=self.image_shape, class_names=np.array(self.names),
            accept=self.accept, calibration=self.calibration, undecodable=self.undecodable,
            ground=self.ground, **arrays,
        )  # fmt: skip

    @classmethod
    def read(cls, path: Path) -> "Served":
        """Reads what `write` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            state = {name.removeprefix("state/"): arrays[name] for name in arrays.files if name.startswith("state/")}
            height, width, channels = (int(size) for size in arrays["image_shape"])
            red, green, blue = (int(part) for part in arrays["ground"])
            marks = str(arrays["undecodable"]) == "mark"
            return cls(
                str(arrays["score"]), (height, width, channels), [str(name) for name in arrays["class_names"]],
                float(arrays["accept"]), arrays["calibration"], state or None, "mark" if marks else "error",
                (red, green, blue),
            )  # fmt: skip
