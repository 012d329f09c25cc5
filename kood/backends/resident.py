"""Images that lie on the device while a model is fitted: a batch names its rows, the step looks them up.

Per step a host then sends a few numbers an image instead of its pixels. The images are an argument of the compiled
step, neither constants in it nor weights of the model, so they are compiled into nothing and saved nowhere.
"""

from typing import Any, Literal

import numpy as np
from keras import ops

from kood.backends.devices import accelerated, several

__all__ = ["on_device", "resides", "with_images"]

#: Bytes up to which images are kept on the device: beside a network and its activations they fit on any that trains.
ROOM = 2 * 2**30


def resides(wanted: Literal["auto"] | bool, images: tuple[int, ...]) -> bool:
    """Whether a training keeps its images on the device.

    Args:
        wanted: "auto" to do so on an accelerator, True to do so on a CPU too.
        images: Their shape, (N, H, W, C).

    Returns:
        False also where several devices fit together or the images take more than `ROOM`.
    """
    size = int(np.prod(images, dtype="int64"))
    return bool(wanted) and not several() and size <= min(ROOM, 2**31 - 1) and (wanted is True or accelerated())


def on_device(images: np.ndarray) -> Any:
    """The images as a tensor of the backend in use, uint8."""
    return ops.convert_to_tensor(images if images.flags.writeable else np.array(images), dtype="uint8")


def with_images(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch with its images, where it only says which they are.

    Args:
        batch: {"pixels": uint8 (N, H, W, C), "rows": integer (B,), and, of images that are moved, "down" (B, H) and
            "across" (B, W): the row and the column of the image that each place shows; ...}. Any other stays as it is.

    Returns:
        In place of these {"image": float32 (B, H, W, C) in [-1, 1], ...}, to the bit what `kood.data.images.normalize`
        makes of these pixels.
    """
    if "pixels" not in batch:
        return batch
    others = dict(batch)
    pixels, rows = others.pop("pixels"), others.pop("rows")
    if "down" in others:
        height, width, channels = pixels.shape[1:]
        down, across = (ops.cast(others.pop(name), "int32") for name in ("down", "across"))
        places = ops.expand_dims(rows[:, None] * height + down, -1) * width + ops.expand_dims(across, 1)
        shown = ops.take(ops.reshape(pixels, (-1, channels)), places, axis=0)
    else:
        shown = ops.take(pixels, rows, axis=0)
    return {**others, "image": (2.0 * ops.cast(shown, "float32") - 255.0) * (1 / 255)}
