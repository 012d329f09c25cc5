"""The data room: images from wherever they come, split once, batched for training and prediction.

Importing this package imports neither TensorFlow nor Keras; `batches`, `images` and `augment` import TensorFlow.
"""

from kood.data.image_set import ImageSet
from kood.data.loading import load_id, load_ood, load_outliers, load_source

__all__ = ["ImageSet", "load_id", "load_ood", "load_outliers", "load_source"]
