"""Plain noise: the cheapest control."""

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from kood.data.deferred import are_deferred
from kood.data.large import rows_at_once
from kood.outliers import OutlierSource, Rows

__all__ = ["Noise"]


class Noise(OutlierSource):
    """Outliers that are plain noise: the cheapest control.

    In [-1, 1] units a pixel is N(0, scale^2) or U(-scale, scale), clipped to [-1, 1] and rounded to 0..255.

    Attributes:
        kind: Distribution of each pixel.
        scale: Standard deviation for Gaussian noise, half-width for uniform, in units of the [-1, 1] range.
    """

    is_texture, has_shares = True, False

    kind: Literal["gaussian", "uniform"] = "gaussian"
    scale: Annotated[float, Field(gt=0.0, le=10.0)] = 0.6

    def draw(self, count, rng, shape):
        """Draws noise images."""
        from kood.data.images import quantize

        scale, step = np.float32(self.scale), rows_at_once(12 * math.prod(shape))

        def drawn(rows: int) -> np.ndarray:
            if self.kind == "gaussian":
                return rng.standard_normal((rows, *shape), dtype=np.float32)
            return rng.random((rows, *shape), dtype=np.float32) * np.float32(2.0) - np.float32(1.0)

        blocks = (quantize(drawn(min(step, count - first)) * scale) for first in range(0, count, step))
        return Rows(blocks if are_deferred(shape) else np.concatenate([*blocks]), count)

    def check(self, recipe):
        """Refuses to be tested on the kind of noise that is trained on."""
        for kind in ("near", "far"):
            for name, source in getattr(recipe.data, kind).items():
                if source.source.lower() == self.kind:
                    raise ValueError(
                        f"data.{kind}.{name} tests on {source.source} noise, the kind that outliers.noise trains on; "
                        "test on another kind, or take 'noise' out of outliers.use"
                    )
