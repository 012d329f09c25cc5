"""Augmentations for training batches: what a recipe may list under `data.augment`.

Each takes float32 images (B, H, W, C) in [-1, 1] and a seed, and gives images of the same shape and range; labels are
untouched, so in-distribution images and outliers are treated alike. Equal seeds give equal results, bit for bit.
"""

from kood.data.augment import geometry, pixels, policies
from kood.data.augment.geometry import *  # noqa: F403
from kood.data.augment.pixels import *  # noqa: F403
from kood.data.augment.policies import *  # noqa: F403

__all__ = geometry.__all__ + pixels.__all__ + policies.__all__
