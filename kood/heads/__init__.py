"""Classification heads: features (B, D) to logits (B, K).

Every head is called as `head(features, labels=None, training=None)` and answers float32 logits. An angular
head compares the direction of a feature with one direction a class (`prototypes`, shape (D, K)); given
labels, it makes the target class harder by a margin. Labels are integers (B,) or rows (B, K). A row weighs
the margin class by class,

    logits = scale * (cos + label * (target(cos) - cos)),

so a one-hot row gets the whole margin on its class, an all-zero row (an outlier) none, and a mixed row
(mixup, label smoothing) each class its share: for CosFace this is exactly the margin `label * margin`.
An integer below 0 stands for an all-zero row. An array or a list (B,) with a class from K on, or of other numbers
than integers, is a `ValueError`; a tensor is taken as it is.

A new margin is one subclass of `AngularHead` with one method, `target_cosine`, under
`@keras.saving.register_keras_serializable(package="kood")`, `OPTIONS` that name the arguments that it has more, and its
name in the `__all__` of its file: `margins` for those that stay as they are, `adaptive` for those that follow the
training, or one of its own. One that looks at more than the angle has a `call` of its own, as `AdaFace` has. One that
has a `dispersion(features, labels)` adds it to the classifier's loss, as `CIDER` does, and one without weights that the
gradient moves says `learns = False`. A head whose code changes what it computes gets `version = 2`, and so on: then
classifiers of older code are trained again. docs/howto/extend.md lists all that a head may have.

Example:
    ```python
    import numpy as np
    import kood

    head = kood.heads.ArcFace(num_classes=3, margin=0.3, scale=16.0)
    features = np.random.default_rng(0).normal(size=(2, 8)).astype("float32")
    logits = head(features, labels=np.array([0, 2]))  # (2, 3), with the margin; without labels there is none
    cosines = head.cosines(features)  # (2, 3) in [-1, 1]
    ```
"""

from typing import TYPE_CHECKING, Any

from kood import registry
from kood.heads.angular import AngularHead as AngularHead

_things = registry.things("heads")
globals().update(_things)
__all__ = list(_things)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...
