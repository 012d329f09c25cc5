"""A user's own Keras network as a backbone."""

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from kood.attached import (
    Inside,
    bring,
    check_range,
    features_within,
    image_shape_of,
    layer_named,
    layers_of,
    only,
    opened,
    too_small,
)
from kood.attached.preprocessing import PREPROCESSING, Preprocess
from kood.attached.seen import Seen
from kood.attached.steady import unsteady
from kood.attached.watching import quantised
from kood.backends import compiled
from kood.classifier import Classifier
from kood.errors import UserError, in_words
from kood.files import digest_file, file_state
from kood.nets.backbones.parts import checked_image_shape, of_whole_batches, on_top_of, option_path, why
from kood.registry import nearest, source_of
from kood.text import clean, some_of

__all__ = ["file"]

#: Seed of the random images that the network is tried on, and how many.
_SEED, _TRIED = 0, 4


def file(
    image_shape: tuple[int, int, int],
    path: str,
    layer: str | None = None,
    preprocess: str = "none",
    imports: tuple[str, ...] = (),
) -> keras.Model:
    """A network of the user's own, from a `.keras` file: a classifier up to its features, or a backbone as it is.

    The file is opened as `kood attach` opens one: nothing that is written into it is run. Features that are a map or
    tokens are averaged over their positions. Training goes on from the file's weights. A classifier whose answer is
    neither the logits of its last dense layer nor their softmax is refused, as by `kood attach`, until its features are
    named: its answer would be taken for them.

    Args:
        image_shape: (H, W, C). One channel is given to a network of colours as all three of its.
        path: The file; `~` and $VARIABLES are expanded.
        layer: The layer whose output the features are, by its name or its path "block/pool". Not given: the input of
            the last dense layer of a classifier, the output "features" of one that has it, or else the answer itself.
        preprocess: What makes the network's pixels of those of files, 0..255: "none", "0..1", "-1..1", "caffe" or
            "torch", as `kood attach` takes it. A classifier of kood's has its own.
        imports: Modules that define or register the network's own layers and functions. What older code of theirs gave
            is made again.

    Returns:
        A model from (B, H, W, C) to (B, D). It loads without kood where the file does and its network is a graph of
        layers, functional or sequential. Its attribute `told` is a sentence: which layer's output the features are, and
        how many numbers.

    Raises:
        ValueError: A size is not positive.
        UserError: There is no such file or layer, the images are none that the network takes, it is made for other
            pixels than `preprocess` makes, what it says of an image depends on the batch or on the pass, or it does not
            end in features, or is quantised, and no layer is named; or the features are a map, its channels first.
    """
    image_shape = checked_image_shape(image_shape)
    if preprocess not in PREPROCESSING:
        raise UserError(f"classifier.options.preprocess = {preprocess!r}: {nearest(preprocess, PREPROCESSING)}")
    place = option_path("path", path)
    bring(imports, "classifier.options.imports")
    model = opened(place, key="classifier.options.path")
    called = f"classifier.options.path: {clean(place)}"
    if is_own := isinstance(model, Classifier):
        if layer is not None or preprocess not in ("none", "-1..1"):
            raise UserError(f"{called} is a kood classifier, which has its features and its pixels; leave layer and "
                            "preprocess out")  # fmt: skip
        model, preprocess = model.backbone, "-1..1"
        layer = model.layers[-1].name
    elif layer is None and (names := quantised(model)):  # Their weights are whole numbers, so no dense layer is seen.
        raise UserError(
            f"{called} is quantised ({some_of(names)}); give the network that it was made of, or {_NAME_IT}"
        )
    with _of(called):
        _check_shape(called, model, image_shape)
    prepare = Preprocess(preprocess)
    channels = image_shape_of(model)[2]
    if channels != 3 and preprocess in ("caffe", "torch"):
        raise UserError(f"classifier.options.preprocess = {preprocess!r}: it is for a network of colours, and this "
                        f"one takes {channels} channel; give 'none', '0..1' or '-1..1'")  # fmt: skip
    pixels = ops.convert_to_numpy(prepare(_images((*image_shape[:2], channels))))
    wrong = check_range(model, pixels)
    if wrong:
        raise UserError(f"classifier.options.preprocess = {preprocess!r}: {wrong}")
    if wrong := unsteady(model):
        raise UserError(f"{called}: {wrong}")
    try:
        for way, one in layers_of(model):  # Whatever was frozen when the file was written, but what no step may move.
            one.trainable = not (is_own and way.endswith("neck/standardized"))
        network, which = _features(called, model, layer, pixels)
        mean = ", averaged over its positions" if len(network.output_shape) > 2 else ""
        backbone = on_top_of(of_whole_batches(network), image_shape, prepare, "file")
        backbone.told = f"features: {which}{mean} ({backbone.output_shape[-1]:,} numbers)"
        return backbone
    except UserError:
        raise
    except Exception as error:  # Whatever a network of somebody's raises.
        raise UserError(f"{called} gives no features of images {image_shape} ({why(error)}); name a layer that gives "
                        "one row of numbers an image, or a map (classifier.options.layer)") from error  # fmt: skip


def _of(called: str) -> contextlib.AbstractContextManager[None]:
    """Says of which file a message about a model is."""
    return in_words({"^model: ": f"{called}: ".replace("\\", r"\\")})


def _read(path: str, imports: Sequence[str] = (), **_: Any) -> dict[str, Any]:
    place = option_path("path", path)
    read: dict[str, Any] = {"path": _digest(place, file_state(place))} if place.is_file() else {}
    if imports:
        bring(imports, "classifier.options.imports")  # What a digest is of is the code that was imported.
        read["imports"] = [[name, source_of(None, name)] for name in imports]
    return read


@functools.lru_cache(8)
def _digest(place: Path, _state: tuple[int, ...]) -> str:
    """Of a file as it is now: each stage of a matrix asks for it."""
    return digest_file(place)


file.read = _read  # type: ignore[attr-defined]


def _images(shape: tuple[int, ...]) -> np.ndarray:
    """Random patches of one colour, for a photograph's neighbours are alike; float32 in 0..255."""
    height, width, channels = shape
    draw = np.random.default_rng(_SEED)
    patches = draw.uniform(0, 255, (_TRIED, -(-height // 8), -(-width // 8), channels))
    return patches.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width].astype("float32")


def _check_shape(called: str, model: keras.Model, image_shape: tuple[int, int, int]) -> None:
    """Refuses images that the network does not take, by their size or their channels."""
    *size, channels = image_shape_of(model)
    wanted = [own or given for own, given in zip(size, image_shape, strict=False)]
    fix = f"set data.image_shape = {[*wanted, channels]}"
    if channels != image_shape[2] and (channels, image_shape[2]) != (3, 1):
        raise UserError(f"{called} takes images of {channels} channels, and these have {image_shape[2]}; {fix}")
    if wanted != list(image_shape[:2]):
        raise UserError(f"{called} takes images of {wanted[0]}x{wanted[1]}, and these are "
                        f"{image_shape[0]}x{image_shape[1]}; {fix}")  # fmt: skip
    if None in size and too_small(model, (*image_shape[:2], channels)):
        raise UserError(f"{called} leaves nothing of images of {image_shape[0]}x{image_shape[1]}; set "
                        "data.image_shape to larger ones, such as it was trained on")  # fmt: skip


#: How features are named that are not found by themselves.
_NAME_IT = "name the layer whose output the features are with classifier.options.layer"


def _features(called: str, model: keras.Model, name: str | None, pixels: np.ndarray) -> tuple[keras.Model, str]:
    """The network up to its features, and which they are, a phrase.

    It is a graph of layers cut there, or any other network watched there as it runs.
    """
    if name is not None:
        target, which = layer_named(model, name, "classifier.options.layer"), f"the output of the layer {clean(name)!r}"
        seen = Seen(model, target)
        with _of(called):
            seen.run(pixels.shape[1:])
        if seen.output_first:
            raise UserError(f"classifier.options.layer = {name!r}: it gives a map with its channels first; name one "
                            "that gives one row of numbers an image")  # fmt: skip
    else:
        with _of(called):
            target, which = features_within(model, _NAME_IT)
    path = next((path for path, layer in layers_of(model) if layer is target), None)
    inside = Inside(model, path, given=name is None, name="inside")
    image = keras.Input(pixels.shape[1:], name="pixels")
    whole = keras.Model(image, inside(image), name=model.name)
    if getattr(model, "inputs", None):
        cut = _cut(model, target, given=name is None)
        # Compiled, since what TensorFlow keeps of passes that are not is ten times the network's own size.
        if cut is not None and _same(compiled(cut)(pixels), compiled(whole)(pixels)):
            return cut, which
    if target is not None and name is None:
        target.trainable = False  # It runs and has no gradient.
    return whole, which


def _cut(model: keras.Model, target: keras.Layer | None, given: bool) -> keras.Model | None:
    """A graph of layers up to the input or the output of one of them, however deep in it; its own, not copies.

    None where the layer lies in one that is no graph itself. Without a layer, up to its answer, or the one "features".
    """
    # Where a sequential model stands in another, its `output` is that of the call there.
    answer = model.outputs if isinstance(model, keras.Sequential) else model.output
    if target is None:
        answer = answer["features"] if isinstance(answer, dict) and "features" in answer else only(answer)
        return keras.Model(model.inputs[0], answer, name=model.name)
    found: list[keras.KerasTensor] = []

    def call(layer, *args, **kwargs):
        if layer is target:
            gave = layer(*args, **kwargs)
            found.append(args[0] if given else gave)
            return gave
        if any(inner is target for _, inner in layers_of(layer)) and getattr(layer, "inputs", None):
            part = _cut(layer, target, given)
            found.extend([] if part is None else [part(args[0])])
        return layer(*args, **kwargs)

    # A sequential model too becomes a graph, of which `clone_model` lets each call be seen.
    graph = keras.Model(model.inputs[0], answer, name=model.name)
    again = keras.models.clone_model(graph, clone_function=lambda layer: layer, call_function=call)
    return keras.Model(again.inputs[0], found[-1], name=model.name) if found else None


def _same(one: Any, other: Any) -> bool:
    one, other = (ops.convert_to_numpy(ops.cast(rows, "float32")) for rows in (one, other))
    return one.shape == other.shape and np.allclose(one, other, rtol=1e-3, atol=1e-4 * np.abs(other).max())
