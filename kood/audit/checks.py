"""Refusals that the parts of the audit share: each names the argument, what was found and what is wanted."""

import numpy as np

__all__ = ["labels_of", "posteriors_of", "rows_of"]

#: How far a row of posteriors or of shares may sum from 1; float16 rounds this coarsely.
SUM_TOLERANCE = 1e-3


def rows_of(name: str, values, *, at_least: int = 1, width: int | None = None) -> np.ndarray:
    """Features or images as rows: (N, ...) -> (N, D), dtype kept.

    Args:
        name: What messages call it.
        values: (N, ...) real numbers, images included.
        at_least: The fewest rows that make sense.
        width: The D it must have, if any.

    Raises:
        ValueError: No numbers, too few rows, another width, NaN or infinity.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "fiub" or array.ndim < 2:
        raise ValueError(f"{name} must be real numbers (N, ...); they are {array.dtype} {array.shape}.")
    if len(array) < at_least:
        raise ValueError(f"{name} have {len(array)} rows; at least {at_least} are needed.")
    rows = array.reshape(len(array), int(np.prod(array.shape[1:])))
    if rows.shape[1] == 0:
        raise ValueError(f"{name} have rows without numbers; their shape is {array.shape}.")
    if width is not None and rows.shape[1] != width:
        raise ValueError(f"{name} have {rows.shape[1]} numbers a row; they are compared with rows of {width}.")
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        wrong = int((~np.isfinite(rows)).any(axis=1).sum())
        raise ValueError(f"{wrong} of {len(rows)} rows of {name} hold NaN or infinity.")
    return rows


def posteriors_of(name: str, values, kind: str = "probabilities") -> np.ndarray:
    """Posteriors, or shares of the classes if messages are to call them so, as float64 (N, K).

    Raises:
        ValueError: Empty, NaN, negative, fewer than two classes, or rows that do not sum to 1 (logits, for instance).
    """
    array = np.asarray(values)
    if array.ndim != 2 or array.shape[1] < 2:
        raise ValueError(f"{name} must be (N, K) with at least two classes; their shape is {array.shape}.")
    rows = rows_of(name, array).astype(np.float64)
    if rows.min() < 0 or np.abs(rows.sum(axis=1) - 1).max() > SUM_TOLERANCE:
        raise ValueError(f"{name} must be {kind}: no negative numbers, each row summing to 1.")
    return rows


def labels_of(name: str, values, count: int, num_classes: int) -> np.ndarray:
    """Class indices as int64 (N,).

    Raises:
        ValueError: Anything but `count` whole numbers in 0..num_classes - 1.
    """
    array = np.asarray(values)
    if array.shape != (count,) or array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be {count} class indices; they are {array.dtype} {array.shape}.")
    if count and not 0 <= array.min() <= array.max() < num_classes:
        raise ValueError(f"{name} must lie in 0..{num_classes - 1}; they span {array.min()}..{array.max()}.")
    return array.astype(np.int64)
