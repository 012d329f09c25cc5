"""Directions, angles and label rows, in float32 and with finite gradients everywhere."""

import numpy as np
from keras import ops

#: Below this length a float32 vector has no direction: its squared length underflows.
_SMALLEST_LENGTH = 1e-30
#: Two unit vectors in float32 are told apart only beyond this distance.
_SMALLEST_CHORD = 5e-7
#: Longer vectors count as this long, so that the square still is a number.
_LARGEST_LENGTH = 1e15


def unit(vectors, axis):
    """Direction of each vector; a zero vector stays zero, and its gradient finite.

    Dividing by the largest entry first keeps squares clear of overflow and underflow. The direction does not
    depend on length, so that divisor may be held constant without changing the gradient.
    """
    largest = ops.stop_gradient(top_value(ops.abs(vectors), axis=axis, keepdims=True))
    vectors = vectors / ops.where(largest > _SMALLEST_LENGTH, largest, 1.0)
    square = ops.sum(ops.square(vectors), axis=axis, keepdims=True)
    return vectors / ops.sqrt(ops.where(square > 0, square, 1.0))


def _root(values, smallest=0.0):
    """Square root that is zero, with gradient zero instead of infinite, for values up to `smallest`."""
    positive = values > smallest
    return ops.where(positive, ops.sqrt(ops.where(positive, values, 1.0)), 0.0)


def lengths(vectors):
    """Euclidean lengths (B, 1) of vectors (B, D), at most 1e15."""
    largest = top_value(ops.abs(vectors), keepdims=True)
    scaled = vectors / ops.where(largest > _SMALLEST_LENGTH, largest, 1.0)
    found = largest * ops.sqrt(ops.sum(ops.square(scaled), axis=-1, keepdims=True))
    return ops.minimum(found, _LARGEST_LENGTH)


def sines(cosines, features, chosen, target):
    """Sines (B, K) of the angles in [0, pi] whose cosines (B, K) are given.

    `sqrt(1 - cos^2)` loses half of float32's digits where the vectors nearly (anti)align: 3e-4 instead of 0.
    Of the target class (B,), where the margin matters, the sine is therefore the product of the chords, `|u - p|
    |u + p| / 2`, between the unit features u (B, D) and that class's unit prototypes p, `chosen` (B, D).
    """
    plain = _root((1.0 - cosines) * (1.0 + cosines))
    minus = ops.sum(ops.square(features - chosen), axis=-1, keepdims=True)
    plus = ops.sum(ops.square(features + chosen), axis=-1, keepdims=True)
    exact = 0.5 * _root(minus, _SMALLEST_CHORD**2) * _root(plus, _SMALLEST_CHORD**2)
    is_target = ops.one_hot(target, cosines.shape[-1], dtype="float32") > 0
    # A zero vector has cosine 0 with everything and no chord worth the name.
    return ops.where(ops.logical_and(is_target, ops.abs(cosines) > 0.5), exact, plain)


def labelled(rows):
    """Which label rows (B, K) belong to a class, as booleans (B,): those that are not all zero."""
    return top_value(ops.abs(rows)) > 0


def check_labels(labels, num_classes):
    """Refuses classes (B,) that are no integers or past the last class; of arrays and lists, for a tensor may be empty
    as yet, and to read one would stop a training step."""
    if not isinstance(labels, np.ndarray | list | tuple):
        return
    labels = np.asarray(labels)
    if labels.ndim != 1 or not labels.size:
        return
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels (B,) must be integers, one class a row; they are {labels.dtype}.")
    if labels.max() >= num_classes:
        raise ValueError(f"labels (B,) must be below {num_classes}, the number of classes; one is {labels.max()}.")


def label_rows(labels, num_classes):
    """Labels as float32 rows (B, K); integers (B,) become one-hot, an integer below zero an all-zero row."""
    check_labels(labels, num_classes)
    labels = ops.convert_to_tensor(labels)
    if len(labels.shape) == 1:
        labels = ops.expand_dims(ops.cast(labels, "int32"), -1)
        return ops.cast(labels == ops.arange(num_classes, dtype="int32"), "float32")
    if len(labels.shape) != 2 or labels.shape[-1] not in (num_classes, None):
        raise ValueError(
            f"labels must be integers (B,) or rows (B, {num_classes}), one column a class; "
            f"their shape is {tuple(labels.shape)}."
        )
    return ops.cast(labels, "float32")


def same_rows(**values):
    """Refuses arrays, lists and tensors that have not equally many rows, where these are known."""
    shapes = {name: np.shape(value) for name, value in values.items()}
    rows = {name: shape[0] for name, shape in shapes.items() if len(shape) and isinstance(shape[0], int)}
    if len(set(rows.values())) > 1:
        raise ValueError(f"There are {' but '.join(f'{count} {name}' for name, count in rows.items())}.")


def top_class(rows):
    """Index (B,) of each row's largest entry, the first of equals."""
    return ops.top_k(rows, 1)[1][:, 0]


def top_value(values, axis=-1, keepdims=False):
    """Largest entry along an axis; of no rows none, where Keras's `max` raises an error."""
    if values.shape[0] == 0:
        return ops.sum(values, axis=axis, keepdims=keepdims)
    return ops.max(values, axis=axis, keepdims=keepdims)
