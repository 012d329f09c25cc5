"""What the backbones are made of, and the checks of their arguments. Weights are He-normal (arXiv 1502.01852)."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from kood.attached.watching import layers_of
from kood.backends import BatchNormalization, Dropout, several
from kood.data.paths import data_path
from kood.errors import UserError, under
from kood.text import clean, masked, some_of


def convolution(width: int, kernel: int = 3, stride: int = 1) -> layers.Layer:
    """Without a bias: every convolution here is followed by a normalisation, which has its own."""
    return layers.Conv2D(
        width, kernel, strides=stride, padding="same", data_format="channels_last", use_bias=False,
        kernel_initializer="he_normal",
    )  # fmt: skip


def pointwise(x: keras.KerasTensor, width: int, stride: int) -> keras.KerasTensor:
    """A 1x1 convolution of every stride-th pixel."""
    # Picking the pixels first is the same as a strided convolution, whose gradient oneDNN 3.12 (under torch 2.13, on
    # CPUs without AVX-512) computes past the end of its memory where there are fewer than 8 channels.
    # The mean of one pixel and not its maximum, whose gradient XLA scatters pixel by pixel.
    seen = layers.AveragePooling2D(1, strides=stride, data_format="channels_last")(x) if stride > 1 else x
    return convolution(width, kernel=1)(seen)


def normalisation() -> layers.Layer:
    # Keras's default momentum of 0.99 needs about 500 steps to forget the initial statistics; short runs have fewer.
    return BatchNormalization(momentum=0.9, epsilon=1e-5)


def checked_image_shape(image_shape: tuple[int, int, int], **sizes: int | None) -> tuple[int, int, int]:
    """The shape as a tuple; `ValueError` where it is none, or where one of the other sizes is not positive."""
    shape = tuple(image_shape)
    if len(shape) != 3 or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ValueError(f"image_shape must be three positive integers (H, W, C), got {image_shape!r}")
    check_positive(**sizes)
    return shape


def check_positive(**sizes: int | None) -> None:
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def ending_in(image: keras.KerasTensor, x: keras.KerasTensor, features: int | None, name: str) -> keras.Model:
    """The backbone from `image` to x (B, D), or to so many features that a last dense layer makes of it."""
    if features is not None:
        x = layers.Dense(features, kernel_initializer="he_normal", name="features")(x)
    return keras.Model(image, x, name=name)


def option_path(option: str, path: str) -> Path:
    """The absolute path that an option of a backbone names.

    Raises:
        UserError: As `data_path`, under the option's key; it is no text.
    """
    if not isinstance(path, str):
        raise UserError(f"classifier.options.{option} = {path!r}: write a path in quotes")
    with under("classifier.options"):
        return data_path(path, option)


def on_top_of(
    network: keras.Model, image_shape: tuple[int, int, int], prepare: Callable[[np.ndarray], Any], name: str
) -> keras.Model:
    """A network of others as a backbone: images in [-1, 1] become its pixels, its last map the mean over its positions.

    Args:
        network: A model of one output, (B, D), (B, N, D) or (B, h, w, D).
        image_shape: (H, W, C). One channel becomes the three of a network that takes three.
        prepare: What makes its pixels, array or tensor, of float pixels of 0..255, (B, H, W, C) both; affine in each
            colour.
        name: Of the backbone.

    Raises:
        ValueError: `prepare` is not affine, or the network gives another shape.
    """
    image = keras.Input(image_shape, name="image")
    channels = network.input_shape[-1]
    coloured = (image_shape[2], channels) == (1, 3)
    x = layers.Concatenate(name="colour", dtype="float32")([image] * 3) if coloured else image
    x = _pixels(x, prepare)
    if any("int" in str(taken.dtype) for taken in network.inputs or ()):
        x = ops.round(x)  # Keras cuts off what follows the point, and the last digit is rounded.
    return keras.Model(image, pooled(network(x)), name=name)


def pooled(x: keras.KerasTensor) -> keras.KerasTensor:
    """(B, D) of a map (B, h, w, D), of tokens (B, N, D), or of what is that already."""
    kinds = {3: layers.GlobalAveragePooling1D, 4: layers.GlobalAveragePooling2D}
    rank = len(getattr(x, "shape", ()))
    if rank == 2:
        return x
    if rank not in kinds:
        raise ValueError(f"features must be (batch, numbers), or a map of them; they are {getattr(x, 'shape', x)}")
    return kinds[rank](data_format="channels_last", name="pooled")(x)


def _pixels(x: keras.KerasTensor, prepare: Callable[[np.ndarray], Any]) -> keras.KerasTensor:
    """`prepare` of 127.5 x + 127.5, in one operation of Keras's own, so that files need no kood; a second swaps RGB."""
    channels = x.shape[-1]
    dots = 255.0 * np.concatenate([np.zeros((1, channels)), np.eye(channels)])[:, None, None]
    made = ops.convert_to_numpy(prepare(dots.copy())).astype("float64")[:, 0, 0]
    slopes, base = (made[1:] - made[0]) / 255.0, made[0]
    some = np.random.default_rng(0).uniform(0, 255, (1, 4, 4, channels))
    given = ops.convert_to_numpy(prepare(some.copy())).astype("float64")
    swapped = channels == 3 and not np.allclose(slopes, np.diag(np.diag(slopes)))
    each = np.diag(slopes[::-1] if swapped else slopes)
    expected = (some[..., ::-1] if swapped else some) * each + base
    if not np.allclose(given, expected, rtol=1e-5, atol=1e-4):
        raise ValueError("the network's preprocessing of pixels is not one factor and one offset a colour")
    scale, offset = 127.5 * each, 127.5 * each + base
    if swapped:
        x = ops.flip(x, axis=-1)
    if np.allclose(scale, 1.0, atol=1e-6) and np.allclose(offset, 0.0, atol=1e-6):
        return x
    if np.ptp(scale) == 0 and np.ptp(offset) == 0:
        scale, offset = scale[0], offset[0]
    # In float32 whatever the network computes in: bfloat16 would round pixels to halves.
    return layers.Rescaling(scale.tolist(), offset=offset.tolist(), dtype="float32", name="pixels")(x)


def of_whole_batches(network: keras.Model) -> keras.Model:
    """The network, where several devices fit it made again of kood's layers that see the whole batch."""
    if not several():
        return network
    # What is made after it, the head above all, begins as on one device.
    before = random.getstate()
    cloned = keras.models.clone_model(network, clone_function=_of_kood, recursive=True)
    random.setstate(before)
    for ours, theirs in zip(cloned.variables, network.variables, strict=True):  # Weights, and where its dropout begins.
        ours.assign(theirs)
    return cloned


def _of_kood(layer: keras.Layer) -> keras.Layer:
    """The layer made again, by kood's kind of it where there is one."""
    kind: type[keras.Layer] = type(layer)
    for ours in (BatchNormalization, Dropout):
        if kind in ours.__bases__:
            kind = ours
    return kind.from_config(layer.get_config())


def refuse_apart(key: str, network: keras.Model) -> None:
    """Refuses a network that several devices would not train as one does.

    Args:
        key: What names it.
        network: As it is to be trained.

    Raises:
        UserError: Under TensorFlow or torch, where each device has the layers to itself, one of them normalises by
            statistics of that device's rows, or draws for these what it draws for the other devices'.
    """
    if not several() or keras.backend.backend() == "jax":
        return
    found = [f"{clean(path)!r} ({type(layer).__name__})" for path, layer in layers_of(network) if _is_apart(layer)]
    if found:
        raise UserError(
            f"{key}: several devices would each normalise by their own rows, or draw the same for them, in "
            f"{some_of(found)}; train on one device (train.devices = 1), or make the network with "
            "BatchNormalization and Dropout of kood.backends"
        )


def _is_apart(layer: keras.Layer) -> bool:
    """Whether a layer, on one of several devices, takes that one's rows for the batch."""
    if isinstance(layer, keras.layers.BatchNormalization):
        whole = not layer.renorm if isinstance(layer, BatchNormalization) else layer.synchronized
        return layer.trainable and not whole
    draws = any(isinstance(one, keras.random.SeedGenerator) for one in vars(layer).values())
    rates = [getattr(layer, name) for name in ("rate", "dropout", "recurrent_dropout") if hasattr(layer, name)]
    return draws and not isinstance(layer, Dropout) and (not rates or any(rates))


def why(error: Exception) -> str:
    """The first line of what went wrong, or its kind."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return masked(clean(lines[0]))[:200] if lines else type(error).__name__


def not_had(
    option: str, value: str, error: Exception, check: str = "the name, and the network at the first run"
) -> UserError:
    """The message for weights that lie elsewhere and did not come."""
    return UserError(
        f"classifier.options.{option}: the weights of {value!r} could not be had ({why(error)}); check {check}",
        exit_code=1,
    )
