"""A Keras classifier that exists, whoever made it, behind kood's conventions: images in [-1, 1] -> features, logits."""

from kood.attached.adapted import Adapted, adapted, function_of
from kood.attached.apart import features_within
from kood.attached.opening import bring, bring_layers_of, handed_over, kept, opened
from kood.attached.pixels import Wanted, check_range, in_files, not_of, other_range, outside, usual_range, wanted
from kood.attached.preprocessing import PREPROCESSING, function_named, preprocessing_for
from kood.attached.taken import Inside, only
from kood.attached.watching import image_shape_of, layer_named, layers_of, too_small

__all__ = [
    "PREPROCESSING", "Adapted", "Inside", "Wanted", "adapted", "bring", "bring_layers_of", "check_range",
    "features_within", "function_named", "function_of", "handed_over", "image_shape_of", "in_files", "kept",
    "layer_named", "layers_of", "not_of", "only", "opened", "other_range", "outside", "preprocessing_for",
    "too_small", "usual_range", "wanted",
]  # fmt: skip
