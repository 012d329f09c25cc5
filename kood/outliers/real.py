"""Real images of other things."""

import numpy as np
from pydantic import model_validator

from kood import registry
from kood.outliers import OutlierSource, Rows
from kood.section import ImageSource

__all__ = ["Real"]


class Real(ImageSource, OutlierSource):
    """Real auxiliary images, an oracle's advantage: outlier exposure as in arXiv 1812.04606.

    A source's `count` is how many images are drawn; not given, `outliers.count`, as of every other source, or all where
    there are fewer.
    """

    version, has_shares = 2, False

    @model_validator(mode="after")
    def _check(self):
        registry.find("datasets", self.source, "source")
        return self

    def smoke(self):
        """Nothing: a smoke run looks at few images of any set."""
        return {}

    def draw(self, count, rng, real):
        """Draws some of the images, in their order."""
        if count < len(real):
            real = real.take(np.sort(rng.choice(len(real), count, replace=False)))
        return Rows(real.images, len(real))
