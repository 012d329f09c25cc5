"""What a classifier and its scores say of many images: batch by batch, every batch of one shape."""

import math
from collections.abc import Callable, Iterable, Sequence

import keras
import numpy as np
from keras import ops
from scipy import special

from kood.backends import compiled, exactly, gradient
from kood.data.batches import image_batches
from kood.data.deferred import Images
from kood.data.large import room
from kood.errors import UserError
from kood.rotation import ROTATIONS, rotated, surprise
from kood.scorer import Scorer

__all__ = [
    "Judge", "Outputs", "at_once", "forward_of", "further_for", "outputs_of", "perturbed_logits", "rotations_of",
    "rows_of", "run_batches", "run_over", "score_rows", "scores_of", "shifted_features", "softmax",
]  # fmt: skip

Outputs = dict[str, np.ndarray]


def forward_of(classifier: keras.Model, scores: Iterable[str] = ()) -> Callable:
    """The compiled forward pass, with what further outputs some scores ask for.

    Args:
        classifier: A `Classifier`.
        scores: Their specs.

    Returns:
        A function: (B, H, W, C) in [-1, 1] -> {"features", "logits", "cosines" where there are any, and what else
        scores ask for, as `further_for` has it}.

    Raises:
        UserError: there is no such score.
    """
    forward = compiled(classifier)
    further = further_for(classifier, map(Scorer, scores))
    if not further:
        return forward

    def both(images):
        outputs = forward(images)
        return {**outputs, **{name: make(images, outputs) for name, make in further.items()}}

    return both


def further_for(classifier: keras.Model, scorers: Iterable[Scorer]) -> dict[str, Callable]:
    """What makes the outputs that scores ask for and that take further passes of the classifier.

    Args:
        classifier: A `Classifier`.
        scorers: The scores.

    Returns:
        {name of the output, as `kood.scorer.Scorer.inputs` names it: a function of the images and the outputs that
        there are}: the logits of `perturbed_logits`, the features of `shifted_features`, each once for all scores that
        agree in what decides them, and the "rotations" of `rotations_of`.
    """
    further: dict[str, Callable] = {}
    for one in scorers:
        for output, options in one.perturbation.items():
            if one.inputs[output] not in further:
                make: Callable = perturbed_logits if output == "perturbed" else shifted_features
                moved = make(classifier, **options)
                further[one.inputs[output]] = lambda images, outputs, moved=moved: moved(images)
        if "rotations" in one.inputs and "rotations" not in further:
            further["rotations"] = rotations_of(classifier)
    return further


def perturbed_logits(classifier: keras.Model, epsilon: float, temperature: float) -> Callable:
    """The logits of images moved a little towards what the classifier takes them for, as ODIN does.

    x' = x - epsilon sign(grad_x(-log p_y(x; T))), p(x; T) = softmax(logits / T) and y its largest. In-distribution
    images gain more confidence by it than others.

    Source: Liang et al. 2018, arXiv:1706.02690. (The authors' code and OpenOOD's step is the same 0.0014 of the range
    from black to white; pytorch-ood's 0.0014 is in units of the images it is given, half as far for [-1, 1]. The first
    two move a pixel whose gradient is 0 as well; here, as in pytorch-ood, it stays.)

    Args:
        classifier: A `Classifier`.
        epsilon: How far each pixel moves, in units of [-1, 1].
        temperature: T.

    Returns:
        A function: (B, H, W, C) in [-1, 1] -> (B, K).
    """

    def surprise(outputs):
        scaled = outputs["logits"] / temperature
        return ops.logsumexp(scaled, axis=-1) - ops.max(scaled, axis=-1)

    forward, slope = compiled(classifier), gradient(classifier, surprise)
    return lambda images: forward(ops.convert_to_tensor(images) - epsilon * ops.sign(slope(images)))["logits"]


def shifted_features(classifier: keras.Model, epsilon: float, pixels: float) -> Callable:
    """The features of images of which the numbers that matter least were moved, as AdaSCALE does.

    x' = x + epsilon sign(g) m, g the gradient of the largest logit by the image, m 1 for the floor(pixels n) of an
    image's n numbers (of pixels and colours) with the smallest |g|, else 0. What is out-of-distribution answers with
    larger changes of its largest features.

    Source: Regmi 2025, arXiv:2503.08023, as OpenOOD has it. (Of equal |g| at the edge all are moved; OpenOOD takes
    those that its top-k finds.)

    Args:
        classifier: A `Classifier`.
        epsilon: How far a number moves, in units of [-1, 1].
        pixels: The share of the numbers that move.

    Returns:
        A function: (B, H, W, C) in [-1, 1] -> (B, D).
    """
    forward = compiled(classifier)
    slope = gradient(classifier, lambda outputs: ops.max(outputs["logits"], axis=-1))

    def shifted(images):
        images = ops.convert_to_tensor(images)
        by = slope(images)
        size = ops.reshape(ops.abs(by), (ops.shape(by)[0], math.prod(images.shape[1:])))
        count = int(pixels * size.shape[1])
        edge = ops.sort(size, axis=-1)[:, max(count, 1) - 1][:, None, None, None]
        moves = ops.sign(by) * ops.cast(ops.abs(by) <= edge, "float32") if count else ops.zeros_like(by)
        return forward(images + epsilon * moves)["features"]

    return shifted


def rotations_of(classifier: keras.Model) -> Callable:
    """How surprised a classifier is by the rotation of images, in each of four.

    Of each image three more pass: by 90, 180 and 270 degrees.

    Source: Hendrycks et al. 2019, arXiv:1906.12340.

    Args:
        classifier: A `Classifier` that tells rotations apart.

    Returns:
        A function of images (B, S, S, C) in [-1, 1] and of the classifier's outputs for them -> (B, 4), -ln of the
        probability of the right rotation.
    """
    forward = compiled(classifier)

    def rotations(images, outputs):
        images = ops.convert_to_tensor(images)
        turned = (forward(rotated(images, quarters)) for quarters in range(1, ROTATIONS))
        found = [outputs["rotation_logits"], *(one["rotation_logits"] for one in turned)]
        return ops.stack([surprise(one, quarters) for quarters, one in enumerate(found)], axis=1)

    return rotations


def outputs_of(classifier: keras.Model, images: Images, batch_size: int) -> Outputs:
    """Runs the classifier over images.

    Args:
        classifier: A `Classifier`.
        images: uint8 (N, H, W, C).
        batch_size: Images a forward pass, at most.

    Returns:
        {"features": (N, D), "logits": (N, K), "cosines": (N, K) where there are any}, float32.
    """
    return run_over(forward_of(classifier), images, rows_of(len(images), batch_size))


def scores_of(classifier: keras.Model, scorer: Scorer, images: Images, batch_size: int) -> np.ndarray:
    """Scores images.

    Args:
        classifier: A `Classifier`.
        scorer: A score of its outputs, fitted where it has to be.
        images: uint8 (N, H, W, C).
        batch_size: Images a forward pass, at most.

    Returns:
        (N,) float64, higher = more OOD.
    """
    rows = rows_of(len(images), batch_size)
    return score_rows(scorer, run_over(forward_of(classifier, [scorer.name]), images, rows), rows)


def rows_of(count: int, batch_size: int) -> int:
    """Rows of the batches of so many images: `batch_size`, or of fewer the next power of two, so that sets of about one
    size are of one shape, which is compiled once."""
    return min(batch_size, 1 << max(0, count - 1).bit_length())


def run_over(forward: Callable, images: Images, batch_size: int) -> Outputs:
    """Runs a compiled forward pass over images, see `run_batches`.

    Args:
        forward: What `kood.backends.compiled` gave for a `Classifier`.
        images: uint8 (N, H, W, C), or features float32 (N, D) where it takes these.
        batch_size: Images a forward pass, at most; no more than `at_once` has of such.

    Returns:
        As `outputs_of`.
    """
    batch_size = min(batch_size, at_once(images.shape[1:]))
    batches: Iterable[np.ndarray]
    if images.ndim == 2:
        batches = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
    else:
        batches = image_batches(images, batch_size)
    return run_batches(forward, batches, batch_size, len(images))


def run_batches(forward: Callable, batches: Iterable[np.ndarray], rows: int, count: int | None = None) -> Outputs:
    """Runs a compiled forward pass over batches; every one is filled up to one size, so that one shape is compiled.

    Where it is known how many images there are, an output of more than half a gigabyte is kept in a file of the folder
    for temporary files (`TMPDIR`), so that memory does not grow with the images.

    Args:
        forward: A function of (B, H, W, C), what it gives being tensors (B, ...) by name.
        batches: At most so many images each, of one shape.
        rows: How many a filled batch has.
        count: How many images there are; None where that is not known.

    Returns:
        {output: (N, ...)}; empty where there are no images.
    """
    outputs: Outputs = {}
    parts: dict[str, list[np.ndarray]] = {}

    def keep(found: dict, start: int, own: int) -> None:
        for name, tensor in found.items():
            value = keras.ops.convert_to_numpy(tensor)[:own]
            if count is None:
                parts.setdefault(name, []).append(value)
                continue
            if name not in outputs:
                outputs[name] = room((count, *value.shape[1:]), value.dtype)
            outputs[name][start : start + own] = value

    waiting: tuple[dict, int, int] | None = None
    start = 0
    for pixels in batches:
        own = len(pixels)
        if own < rows:
            filled = np.concatenate([pixels, np.zeros((rows - own, *pixels.shape[1:]), pixels.dtype)])
        found = forward(filled if own < rows else pixels)
        # Reading waits for the device, which by now has the next batch to go on with.
        if waiting is not None:
            keep(*waiting)
        waiting = found, start, own
        start += own
    if waiting is not None:
        keep(*waiting)
    return outputs or {name: np.concatenate(values) for name, values in parts.items()}


#: Pixels of a forward pass, 512 images of 32 x 32; and fewest images. Twice as many are no faster on a CPU.
_PIXELS, _FEWEST = 2**19, 8


def at_once(shape: Sequence[int | None]) -> int:
    """Images of a forward pass that memory has room for: a network keeps some hundred numbers of each pixel.

    Args:
        shape: (H, W, C), None where the model takes any, which counts as 224; of features (D,), of which there is
            always room.
    """
    if len(shape) == 1:
        return _PIXELS
    height, width = shape[0] or 224, shape[1] or 224
    return max(_FEWEST, _PIXELS // (height * width))


#: Rows of outputs that are scored at once, however few images of their size pass the classifier at once.
SCORED = 512


def score_rows(scorer: Scorer, outputs: Outputs, batch_size: int) -> np.ndarray:
    """A set's scores, made in blocks of one size: memory is bounded, and JAX compiles each operation once.

    Args:
        scorer: A score, fitted where it has to be.
        outputs: The classifier's outputs for N images.
        batch_size: Rows of a block, at least; `SCORED` are where there are as many, of fewer the next power of two.

    Returns:
        (N,) float64, higher = more OOD.
    """
    count = len(outputs["logits"])
    batch_size = max(batch_size, rows_of(count, SCORED))
    values = []
    with exactly():
        scorer.place()
        for start in range(0, count, batch_size):
            # Rows past the end repeat the last one and are cut off again.
            rows = np.minimum(np.arange(start, start + batch_size), count - 1)
            values.append(scorer.values(outputs, rows)[: count - start])
    return np.concatenate(values).astype("float64")


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of the classes, of the dtype of the logits; rows sum to 1."""
    return special.softmax(logits, axis=1)


class Judge:
    """A classifier that is asked which classes are close and what a sample shows.

    Args:
        classifier: A `Classifier`.
        batch_size: Images a forward pass, at most; every batch is filled up to one size, so that one shape is compiled.
    """

    def __init__(self, classifier: keras.Model, batch_size: int = 256):
        self._classifier = classifier
        self._forward = compiled(classifier)
        self._batch_size = batch_size

    def posteriors(self, images: Images) -> np.ndarray:
        """The probability of each class: softmax of the logits.

        Args:
            images: uint8 (N, H, W, C).

        Returns:
            (N, K) float64, rows sum to 1.
        """
        return self.opinions(images)[0]

    def energy_gradient(self) -> Callable:
        """The gradient of the energy -logsumexp(logits) by the images: where to go to leave what the judge knows.

        Returns:
            A function: (B, H, W, C) float32 in [-1, 1] -> the same shape.
        """
        return gradient(self._classifier, lambda outputs: -ops.logsumexp(outputs["logits"], axis=-1))

    def opinions(self, images: Images) -> tuple[np.ndarray, np.ndarray]:
        """Posteriors and features, from one forward pass.

        Args:
            images: uint8 (N, H, W, C).

        Returns:
            (N, K) float64 and (N, D) float32.

        Raises:
            UserError: a number is NaN or infinite.
        """
        outputs = run_over(self._forward, images, self._batch_size)
        if not all(np.isfinite(outputs[name]).all() for name in ("logits", "features")):
            told = "the judge, trained on the real images alone, gives NaN or infinity for some; lower"
            raise UserError(f"{told} train.learning_rate", exit_code=1)
        return softmax(outputs["logits"].astype("float64")), outputs["features"]
