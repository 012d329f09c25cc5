"""A Keras classifier that exists, whoever made it, behind kood's conventions: images in [-1, 1] -> features, logits."""

from kood.attached.adapted import Adapted, adapted, function_of
from kood.attached.apart import Taken, take_apart
from kood.attached.opening import opened
from kood.attached.pixels import PREPROCESSING, check_range
from kood.attached.watching import image_shape_of, layers_of

__all__ = [
    "PREPROCESSING", "Adapted", "Taken", "adapted", "check_range", "function_of", "image_shape_of", "layers_of",
    "opened", "take_apart",
]  # fmt: skip
