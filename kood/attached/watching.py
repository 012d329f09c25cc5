"""A model's layers, watched while it runs: one way for functional, nested and subclassed models alike."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from kood.classifier import Classifier
from kood.errors import UserError
from kood.text import clean, some_of

__all__ = [
    "LAST", "Shape", "fed", "held_in", "image_shape_of", "layer_named", "layers_of", "probe", "quantised", "too_small",
    "watched",
]  # fmt: skip

#: Layers that a message names, of the last that were called; of all of a model's, twice as many.
LAST = 4

#: (H, W, C) of a model's images, None where it takes any.
Shape = tuple[int | None, int | None, int]

#: Sides that are tried, of images for a model that says none.
_SIDES = (32, 64, 128, 224, 331)

_turn = threading.RLock()


def layers_of(model: keras.Layer) -> list[tuple[str, keras.Layer]]:
    """Every layer within a layer, however deep, the outer ones first.

    Returns:
        (path, layer), a path being the names of the layers it lies in and its own, "block/pool".
    """
    found: list[tuple[str, keras.Layer]] = []
    known, waiting = {id(model)}, deque([("", model)])
    while waiting:
        path, outer = waiting.popleft()
        for inner in held_in(vars(outer)):
            if id(inner) not in known:
                known.add(id(inner))
                found.append((f"{path}{inner.name}", inner))
                waiting.append((f"{path}{inner.name}/", inner))
    return found


def layer_named(model: keras.Model, name: str, key: str = "features") -> keras.Layer:
    """The layer of a model that has a name, or a path.

    Args:
        name: As `layers_of` gives its path, or its name where that is its alone.
        key: What the message calls it.

    Raises:
        UserError: there is none, or several have the name.
    """
    layers = layers_of(model)
    found = [layer for path, layer in layers if path == name] or [layer for _, layer in layers if layer.name == name]
    if len(found) == 1:
        return found[0]
    if found:
        paths = [path for path, layer in layers if layer.name == name]
        raise UserError(f"{key} = {name!r}: {len(found)} layers have this name; give one of {some_of(paths)}")
    inner = [(path, layer) for path, layer in layers if next(held_in(vars(layer)), None) is None]
    last = [path for path, layer in inner if not isinstance(layer, keras.layers.InputLayer)][-2 * LAST :]
    raise UserError(f"{key} = {name!r}: {clean(model.name)} has no such layer; its last ones are "
                    f"{some_of(last, 2 * LAST)}")  # fmt: skip


def quantised(model: keras.Model) -> list[str]:
    """The layers of a model that compute by integers or in 8 bits, "'dense' int8"; Keras calls them by other ways."""
    modes = ((layer.name, getattr(layer.dtype_policy, "quantization_mode", None)) for _, layer in layers_of(model))
    return [f"{clean(name)!r} {mode}" for name, mode in modes if mode]


@contextlib.contextmanager
def watched(layers: Iterable[keras.Layer], seen: Callable[[keras.Layer, Any, Any], None]) -> Iterator[None]:
    """Tells of every call of some layers, by a `call` that each has for so long; one thread at a time.

    Args:
        seen: Called after each call with the layer, its input and its output, tensors of whatever is tracing.
    """
    with _turn, contextlib.ExitStack() as after:
        for layer in layers:
            own = vars(layer)
            # An attribute of the instance goes before the class's method, and `vars` passes over Keras's tracking.
            after.callback(own.__setitem__, "call", own["call"]) if "call" in own else after.callback(own.pop, "call")
            own["call"] = _telling(layer, layer.call, seen)
        yield


def image_shape_of(model: keras.Model) -> Shape:
    """(H, W, C) of the images that a model takes, None where it takes any size.

    Raises:
        UserError: several inputs, another rank, an unknown number of channels, channels first, or a model that was
            never built.
    """
    inner = model.backbone if isinstance(model, Classifier) else model
    inputs = getattr(inner, "inputs", None)
    if inputs:
        shapes = [tuple(tensor.shape) for tensor in inputs]
    else:
        shape = (model.get_build_config() or {}).get("input_shape")
        shapes = [tuple(shape)] if isinstance(shape, list | tuple) and len(shape) else []
    if not shapes:
        raise UserError(f"model: {clean(model.name)} does not say what it takes; call it once on a batch of images, or "
                        "build it with model.build((None, height, width, channels))")  # fmt: skip
    if len(shapes) == 1 and len(shapes[0]) == 3 and None not in shapes[0][1:]:
        reshaped = f"keras.layers.Reshape({shapes[0][1:]})"
        raise UserError(f"model: {clean(model.name)} takes grey images without their channel, {shapes[0]}; put "
                        f"{reshaped} in front of it: keras.Sequential([keras.Input({(*shapes[0][1:], 1)}), {reshaped}, "
                        "model])")  # fmt: skip
    if len(shapes) > 1 or len(shapes[0]) != 4 or shapes[0][-1] is None:
        raise UserError(f"model: {clean(model.name)} takes {some_of(map(str, shapes))}; one input of images is needed, "
                        "(batch, height, width, channels) with the channels known")  # fmt: skip
    _, height, width, channels = shapes[0]
    if channels not in (1, 3) and height in (1, 3):
        raise UserError(f"model: {clean(model.name)} takes its channels first, {shapes[0]}; images are (batch, height, "
                        "width, channels): put keras.layers.Permute((3, 1, 2)) in front of it")  # fmt: skip
    return height, width, channels


def fed(model: keras.Model, pixels: Any) -> Any:
    """Images as a model's one input is given them: by its name, or in a list, where the model was made so.

    Keras takes them bare as well, and warns.
    """
    given = getattr(model, "input", None)
    return keras.tree.pack_sequence_as(given, [pixels]) if len(keras.tree.flatten(given)) == 1 else pixels


def too_small(model: keras.Model, image_shape: tuple[int, ...]) -> bool:
    """Whether some layer of a model that takes any size has no position left of images (H, W, C)."""
    try:
        model.compute_output_spec(fed(model, keras.KerasTensor((None, *image_shape))))
    except ValueError as error:
        return "zero or negative" in str(error)
    except Exception:  # Whatever a model of somebody's raises without numbers; with them it may not.
        return False
    return False


def probe(model: keras.Model, shape: Shape) -> tuple[np.ndarray, Any]:
    """Random images, of which two have pixels of 0..255 and two of -1..1, and the model's answer to them.

    Args:
        shape: (H, W, C), None where it takes any: then several sizes are tried.

    Raises:
        UserError: it fails on all of them.
    """
    draw = np.random.default_rng(0)
    for side in _SIDES if None in shape else (0,):
        sized, why = tuple(side if n is None else n for n in shape), "it leaves nothing of them"
        if None in shape and too_small(model, sized):
            continue
        pixels = draw.random((4, *sized), "float32")
        pixels = np.concatenate([255 * pixels[:2], 2 * pixels[2:] - 1])
        try:
            answer = model(fed(model, ops.convert_to_tensor(pixels)), training=False)
            # A mean over no position at all is NaN.
            if None not in shape or np.isfinite(ops.convert_to_numpy(keras.tree.flatten(answer)[0])).any():
                return pixels, answer
            why = "NaN"
        except Exception as error:  # Whatever a model of somebody's raises.
            why = f"{type(error).__name__}: {clean(error)[:300]}"
    raise UserError(f"model: {clean(model.name)} fails on random images of {sized} ({why})")


def _telling(layer: keras.Layer, call: Callable, seen: Callable[[keras.Layer, Any, Any], None]) -> Callable:
    def told(*args, **kwargs):
        gave = call(*args, **kwargs)
        seen(layer, args[0] if args else next(iter(kwargs.values()), None), gave)
        return gave

    return told


def held_in(value: Any) -> Iterator[keras.Layer]:
    """The layers among the values of a dictionary or a list, and of those in it."""
    for one in value.values() if isinstance(value, dict) else value:
        if isinstance(one, keras.Layer):
            yield one
        elif isinstance(one, dict | list | tuple):
            yield from held_in(one)
