"""Images in four rotations, and how well a network tells these apart."""

from keras import ops

__all__ = ["ROTATIONS", "rotated", "surprise"]

#: How many there are: by 0, 90, 180 and 270 degrees.
ROTATIONS = 4


def rotated(images, quarters):
    """Square images, turned counter-clockwise by quarters of a turn, as `numpy.rot90` turns them.

    Args:
        images: (B, S, S, C).
        quarters: 0, 1, 2 or 3.

    Returns:
        (B, S, S, C).
    """
    if quarters % 2:
        images = ops.transpose(images, (0, 2, 1, 3))
    if quarters in (1, 2):
        images = ops.flip(images, axis=1)
    if quarters in (2, 3):
        images = ops.flip(images, axis=2)
    return images


def surprise(logits, quarters):
    """-ln of the probability of the right rotation, exact where that is nearly 1.

    With m = logsumexp over the others of (z_other - z_right) it is ln(1 + e^m), which keeps its digits where a
    difference from a log-sum-exp rounds to 0.

    Args:
        logits: float32 (B, 4), of each rotation.
        quarters: The right one, 0, 1, 2 or 3.

    Returns:
        float32 (B,), in nats, at least 0.
    """
    right = logits[:, quarters : quarters + 1]
    others = [logits[:, one : one + 1] - right for one in range(ROTATIONS) if one != quarters]
    odds = ops.logsumexp(ops.concatenate(others, axis=1), axis=1)
    return ops.maximum(odds, 0.0) + ops.log1p(ops.exp(-ops.abs(odds)))
