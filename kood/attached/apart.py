"""A Keras classifier that exists, taken apart into its features and its logits.

There is one way for every kind of model: it runs as it is, and the input of its last dense layer is caught while that
layer is called. So the weights are the model's own, and nothing has to be known of how the layers hang together.
"""

from typing import Any, Literal

import keras
import numpy as np
from scipy.special import expit

from kood.attached.seen import Seen, array, name_of
from kood.attached.steady import unsteady_of
from kood.attached.taken import Linear, Taken, Unknown, Way, only, pooled
from kood.attached.watching import image_shape_of, layer_named, quantised
from kood.backends import accelerated
from kood.classifier import Classifier
from kood.errors import UserError
from kood.outputs import softmax
from kood.scores.fitting import log_softmax
from kood.text import clean, some_of

__all__ = ["features_within", "take_apart"]

#: How far a model's answer may lie from what its logits say, at most, relative to the row's largest number and to
#: 1 + |logit|; in float32, and where the last dense layer computes in half precision.
_FULL, _HALF = 1e-4, 1e-2
#: The same on an accelerator, which may multiply float32 with 10 bits of mantissa, in a convolution alone.
_TENSOR = 1e-3
#: What rounding adds to the former for each unit of a logit.
_ROUNDING = 2e-6


def take_apart(model: keras.Model, features: str | None = None) -> Taken:
    """A classifier's features and logits, whatever kind of Keras model it is.

    It is `kood.classifier.Classifier`, or answers a dictionary with "features" and "logits", or ends in a dense layer
    (or a convolution of 1x1): logits, their softmax or its logarithm, or one sigmoid unit for two classes, whose logits
    are then -z / 2 and z / 2. Of "logits" that are probabilities or their logarithms the logits are those of the dense
    layer, or, where none explains them, the logarithms less their mean, as probabilities do not tell it. The features
    are the input of the dense layer that is called last, averaged over its positions where it has some.
    That nothing but that stands after the features is proved on a few random images: the model's own answer is what the
    logits `features @ kernel + bias`, in float32, say.

    Args:
        model: The classifier; it stays as it is.
        features: The layer whose output is taken for features instead, by its name or by its path "block/pool". The
            logits stay those of the dense layer, or, where there is none to prove, become the model's answer, of
            probabilities as above.

    Returns:
        A `Taken`, float32.

    Raises:
        UserError: no classifier of images, one whose answers `unsteady` speaks of, or one that cannot be taken apart;
            the message has its last layers.
    """
    if isinstance(model, Taken):
        return model
    if not isinstance(model, keras.Model):
        raise UserError(f"model: a keras.Model is needed, not {type(model).__name__}; load a file with "
                        "keras.saving.load_model")  # fmt: skip
    shape = image_shape_of(model)
    named = None if features is None else layer_named(model, features)
    if isinstance(model, Classifier):
        told = [f"features: the output of the backbone {clean(model.backbone.name)!r} of a kood classifier"]
        if named is not None and named is not model.backbone:
            raise UserError(f"features = {features!r}: a kood classifier has its features, the output of "
                            f"{clean(model.backbone.name)!r}; leave features out")  # fmt: skip
        return Taken(model, Way(model.head, "outputs", told=told), model.head.num_classes, shape)
    seen = Seen(model, named)
    answer = seen.run(shape)
    if wrong := unsteady_of(seen, answer):
        raise UserError(f"model: {clean(model.name)}: {wrong}")
    if isinstance(answer, dict) and {"features", "logits"} <= answer.keys():
        way, count = _of_dictionary(seen, answer, features)
    else:
        way, count = _of_answer(seen, answer, features)
    return Taken(model, way, count, shape)


def features_within(model: keras.Model, fix: str) -> tuple[keras.Layer | None, str]:
    """Where a network's features lie, by the rule of `take_apart` where it is a classifier.

    They are the input of the dense layer called last, where the model's answer is this layer's logits, their softmax,
    or the sigmoid of each; an output "features"; or the answer itself. That is taken for features if no dense layer
    gives one row an image, or such a layer itself gives the answer, and if its rows are neither probabilities nor their
    logarithms.

    Args:
        model: A model of images.
        fix: What ends the message: how the features are named instead.

    Returns:
        The dense layer, None where the features are what the model answers; and a phrase that says which they are.

    Raises:
        UserError: the model takes no images, or fails on them; or it is a classifier with something after its last
            dense layer, so that the answer would be taken for features.
    """
    seen = Seen(model, None)
    answer = only(seen.run(image_shape_of(model)))
    if isinstance(answer, dict) and "features" in answer:
        return None, "the model's output 'features'"
    own = f"the model's answer, the output of {seen.names(1)}"
    if seen.is_first(answer):
        raise seen.refuse(f"its answer is a map with its channels first, {(None, *answer.shape[1:])}",
                          "end it in keras.layers.Permute((2, 3, 1))")  # fmt: skip
    if isinstance(answer, dict | list | tuple) or len(answer.shape) != 2:
        return None, own
    answer = array(answer)
    if seen.dense is not None:
        logits = seen.tell()[1]
        if any(_close(answer, rows, seen.dense, logits) for rows in _forms(logits).values()):
            return seen.dense, f"the input of the dense layer {name_of(seen.dense)}"
    if _normalized(answer):
        why = "its answer is probabilities of classes, no features, and not the softmax of its last dense layer"
        raise seen.refuse(why, fix)
    above = seen.above
    if above is not None and len(above.shape) == 2 and not np.array_equal(answer, array(above)):
        why = f"its answer is neither the logits of its last dense layer, {name_of(seen.dense)}, nor their softmax"
        raise seen.refuse(f"{why}, so whether it is features or what a classifier says cannot be told", fix)
    return None, own


_ELSE = ("name the layer whose output the features are with features=..., or give a model whose outputs are "
         "{'features': ..., 'logits': ...}")  # fmt: skip


def _of_dictionary(seen: Seen, answer: dict, features: str | None) -> tuple[Way, int]:
    if features is not None:
        raise UserError(f"features = {features!r}: {clean(seen.model.name)} names its features itself, an output of "
                        "(batch, numbers); leave features out")  # fmt: skip
    given, logits = array(answer["features"]), array(answer["logits"])
    if given.ndim != 2 or logits.ndim != 2 or logits.shape[1] < 2:
        raise seen.refuse(f"its outputs features and logits have the shapes {given.shape} and {logits.shape}",
                          "make them (batch, numbers) and (batch, classes), two classes or more")  # fmt: skip
    classes, kind, is_linear = logits.shape[1], _normalized(logits), False
    if seen.dense is not None:
        below, above = seen.tell()
        said = _forms(above)[kind or "logits"]
        is_linear = np.array_equal(below, given) and _close(logits, said, seen.dense, above)
    told = [f"features: the model's output 'features' ({given.shape[1]:,} numbers)"]
    cosines = "cosines" in answer
    if kind and is_linear and not cosines:
        told += [f"logits: those of {name_of(seen.dense)} ({classes:,} classes); its output 'logits' is {_WORDS[kind]}"]
        return Way(Linear(seen.dense), kind, seen.dense, told=told), classes
    if kind:
        read = _READ[kind].format("its output 'logits'")
        told += [f"logits: {read} ({classes:,} classes)"]
        return Way(Unknown(), "outputs", cosines=cosines, normalized=kind, told=told), classes
    found = f"of the dense layer {name_of(seen.dense)}" if is_linear else "not linear in them"
    told += [f"logits: its output 'logits' ({classes:,} classes), {found}"]
    return Way(Linear(seen.dense) if is_linear else Unknown(), "outputs", cosines=cosines, told=told), classes


def _of_answer(seen: Seen, answer: Any, features: str | None) -> tuple[Way, int]:
    answer = only(answer)
    if isinstance(answer, dict | list | tuple):
        names = some_of(answer) if isinstance(answer, dict) else f"{len(answer)} of them"
        raise seen.refuse(f"it has several outputs ({names})",
                          "give a model with one output, or with {'features': ..., 'logits': ...}")  # fmt: skip
    shape, answer = tuple(answer.shape), array(answer)
    if len(shape) != 2:
        raise seen.refuse(f"its output has the shape {(None, *shape[1:])}, not one row of classes an image",
                          "give a model that classifies whole images")  # fmt: skip
    if not np.isfinite(answer).all(axis=1).any():
        raise seen.refuse("it answers NaN or infinite numbers", "train it again, or mend its weights")
    if seen.named is None:
        try:
            found = _proved(seen, answer)
        except UserError:
            if not (which := quantised(seen.model)):
                raise
            raise seen.refuse(f"it is quantised ({some_of(which)}), and such layers do not show what they are given",
                              "give it as it was before model.quantize(...), or name the layer whose output the "
                              "features are with features=...") from None  # fmt: skip
        told = [f"features: the input of the dense layer {name_of(found.dense)} ({seen.tell()[0].shape[1]:,} numbers)"]
    else:
        told = [_said(seen, features)]
        try:
            found = _proved(seen, answer)
        except UserError as error:
            found = _read(answer, error)
        same = found.dense is not None and np.array_equal(seen.tell()[0], array(pooled(seen.output)))
        found.named = None if same else seen.named
        found.head = found.head if same else Unknown()
    count = max(answer.shape[1], 2)
    if found.dense is None:
        read = _READ[found.answers].format("the model's answer")
        found.told = [*told, f"logits: {read} ({count:,} classes)"]
    else:
        above = f"those of {name_of(found.dense)} ({count:,} classes)"
        found.told = [*told, f"logits: {above}; the model answers {_WORDS[found.answers]}"]
    return found, count


_WORDS = {
    "softmax": "their softmax", "log_softmax": "the logarithm of their softmax", "logits": "logits",
    "sigmoid": "the sigmoid of one logit, for two classes",
}  # fmt: skip
#: How logits are read from what no dense layer explains.
_READ = {
    "softmax": "the logarithms of {}, which is probabilities, less their mean",
    "log_softmax": "{}, the logarithms of probabilities, less their mean",
    "logits": "{} itself",
}


def _proved(seen: Seen, answer: np.ndarray) -> Way:
    """How the answer comes from the logits of the last dense layer.

    Raises:
        UserError: it does not; why, and how to mend it.
    """
    if seen.dense is None:
        raise seen.refuse("it calls no dense layer, nor a convolution of 1x1", _ELSE)
    dense, logits, count = seen.dense, seen.tell()[1], answer.shape[1]
    if logits.shape != answer.shape:
        raise seen.refuse(f"its answer of {count} numbers does not come straight from its last dense layer, "
                          f"{name_of(dense)}, which gives {logits.shape[-1]}", _ELSE)  # fmt: skip
    fits = [kind for kind, rows in _forms(logits).items() if _close(answer, rows, dense, logits)]
    if count == 1 and "sigmoid" in fits:
        return Way(Linear(dense, binary=True), "sigmoid", dense, binary=True)
    if count == 1:
        why = f"gives one number, no sigmoid of {name_of(dense)}"
        if fits:
            why = "has one linear unit, as for a regression" if "logits" in fits else "has a softmax of one unit"
        raise seen.refuse(f"it {why}", "for two classes end it in one sigmoid unit or in two units")
    for kind in ("logits", "softmax", "log_softmax"):
        if kind in fits:
            return Way(Linear(dense), kind, dense)
    if fits:
        raise seen.refuse(f"its {count} sigmoid units say of each class by itself whether it is there, so an image has "
                          "no one class", "train it with a softmax, or give the unit of one class as a model of its "
                          "own")  # fmt: skip
    raise seen.refuse(f"its answer is neither the logits of its last dense layer, {name_of(dense)}, nor their softmax",
                      _ELSE)  # fmt: skip


def _forms(logits: np.ndarray) -> dict[str, np.ndarray]:
    forms = {"softmax": softmax, "log_softmax": log_softmax, "sigmoid": expit}
    return {"logits": logits, **{name: form(logits) for name, form in forms.items()}}


def _close(answer: np.ndarray, expected: np.ndarray, layer: keras.Layer, logits: np.ndarray) -> bool:
    """Whether a model's answer is what its logits say, in all rows that are finite, as exactly as the layer computes.

    Differences count in parts of a row's largest number: of a thousand classes each has a thousandth at first. Of one
    number they count in parts of it and of what is left of 1, which stands beside a sigmoid that is all but 0.
    """
    rows = np.isfinite(answer).all(axis=1) & np.isfinite(logits).all(axis=1)
    if answer.shape != expected.shape or not rows.any():
        return False
    size = np.abs(logits[rows]).max(axis=1, keepdims=True)
    most = _FULL + _ROUNDING * size
    if layer.compute_dtype != "float32" or accelerated():
        most = (_HALF if layer.compute_dtype != "float32" else _TENSOR) * (1 + size)
    expected, answer = expected[rows], answer[rows]
    largest = np.abs(expected).max(axis=1, keepdims=True)
    if answer.shape[1] == 1:
        largest = np.maximum(largest, np.abs(1 - expected))
    return bool((np.abs(answer - expected) <= most * largest).all())


def _read(answer: np.ndarray, error: UserError) -> Way:
    """How logits are read from an answer that no dense layer explains; raises `error` where they cannot be."""
    rows = answer[np.isfinite(answer).all(axis=1)]
    if kind := _normalized(answer):
        return Way(Unknown(), kind)
    if answer.shape[1] > 1 and (rows.min() < 0 or rows.max() > 1 + _HALF):
        return Way(Unknown(), "logits")
    raise error


def _normalized(answer: np.ndarray) -> Literal["", "softmax", "log_softmax"]:
    """Whether an answer is probabilities, or their logarithms."""
    if _of_probabilities(answer):
        return "softmax"
    return "log_softmax" if _of_probabilities(np.exp(np.minimum(answer, 1.0))) else ""


def _of_probabilities(answer: np.ndarray) -> bool:
    """Whether all finite rows (N, K) are the probabilities of one of K classes; False where there are none."""
    rows = answer[np.isfinite(answer).all(axis=1)]
    within = len(rows) > 0 and rows.shape[1] > 1 and rows.min() >= 0 and rows.max() <= 1 + _HALF
    return bool(within and np.abs(rows.sum(axis=1) - 1).max() < _HALF)


def _said(seen: Seen, name: str | None) -> str:
    """What the features of a named layer are."""
    output = seen.output
    if output is None or isinstance(output, dict | list | tuple) or len(output.shape) < 2:
        found = "is not called" if output is None else "does not give one row of numbers an image"
        raise UserError(f"features = {name!r}: this layer of {clean(seen.model.name)} {found}; name another")
    if seen.output_first:
        raise UserError(f"features = {name!r}: this layer of {clean(seen.model.name)} gives a map with its channels "
                        f"first, {(None, *output.shape[1:])}; name one of one row of numbers an image")  # fmt: skip
    pooled = ", averaged over its positions" if len(output.shape) > 2 else ""
    return f"features: the output of the layer {name!r}{pooled} ({output.shape[-1]:,} numbers)"
