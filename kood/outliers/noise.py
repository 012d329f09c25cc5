"""Plain noise: the cheapest control."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from kood.outliers import OutlierSource, Rows

__all__ = ["Noise"]


class Noise(OutlierSource):
    """Outliers that are plain noise: the cheapest control.

    In [-1, 1] units a pixel is N(0, scale^2) or U(-scale, scale), clipped to [-1, 1] and rounded to 0..255.

    Attributes:
        kind: Distribution of each pixel.
        scale: Standard deviation for Gaussian noise, half-width for uniform, in units of the [-1, 1] range.
    """

    is_texture = True

    kind: Literal["gaussian", "uniform"] = "gaussian"
    scale: Annotated[float, Field(gt=0.0, le=10.0)] = 0.6

    def draw(self, count, rng, shape):
        """Draws noise images."""
        from kood.data.images import quantize

        scale = np.float32(self.scale)
        if self.kind == "gaussian":
            noise = rng.standard_normal((count, *shape), dtype=np.float32) * scale
        else:
            noise = (rng.random((count, *shape), dtype=np.float32) * np.float32(2.0) - np.float32(1.0)) * scale
        return Rows(quantize(noise), count)

    def check(self, recipe):
        """Refuses to be tested on the kind of noise that is trained on."""
        for kind in ("near", "far"):
            for name, source in getattr(recipe.data, kind).items():
                if source.source.lower() == self.kind:
                    raise ValueError(
                        f"data.{kind}.{name} tests on {source.source} noise, the kind that outliers.noise trains on; "
                        "test on another kind, or take 'noise' out of outliers.use"
                    )
