"""Outliers in the feature space of the classifier that is being trained."""

from typing import Annotated

from pydantic import Field

from kood.outliers import FeatureSource

__all__ = ["Virtual"]


class Virtual(FeatureSource):
    """Outliers that are unlikely draws from Gaussians fitted to the features of each class (VOS, arXiv 2202.01197).

    They need no images; each step exposes the head to `outliers.per_batch` of them.

    Attributes:
        queue: Latest features kept of each class; of one with fewer training images as many as it has. None is drawn
            before all are there.
        candidates: Draws a class from which the unlikeliest are taken.
    """

    version = 2

    queue: Annotated[int, Field(ge=2, le=100_000)] = 200
    candidates: Annotated[int, Field(ge=2, le=1_000_000)] = 1000

    def layer(self, num_classes, rows, seed, counts=None):
        """The queues, `kood.virtual.VirtualOutliers`."""
        from kood.virtual import VirtualOutliers

        return VirtualOutliers(num_classes, rows, seed=seed, counts=counts, **self.model_dump())
