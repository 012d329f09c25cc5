"""Batches for training and prediction, with `tf.data`.

A batch is a function of the seed and its place (epoch and step) alone: orders and augmentations are drawn by stateless
operations. So a run resumed at an epoch sees, bit for bit, what it would have seen uninterrupted. Images are held once
as uint8 and gathered a whole batch at a time.
"""

from collections.abc import Sequence

import numpy as np

from kood import registry
from kood.data.image_set import ImageSet
from kood.data.images import normalize
from kood.data.tf_on_cpu import tf
from kood.errors import UserError

__all__ = ["image_batches", "labelled_batches", "training_batches"]

# What a random stream is for: streams of one seed never meet.
_ID_ORDER, _OUTLIER_ORDER, _ROW_ORDER, _AUGMENT = range(4)


def training_batches(
    id_set: ImageSet,
    outliers: ImageSet | None,
    *,
    num_classes: int,
    batch_size: int,
    outliers_per_batch: int,
    epochs: int,
    seed: int,
    first_epoch: int = 0,
    augment: Sequence[str] = (),
) -> tuple[tf.data.Dataset, int]:
    """Batches of in-distribution images and outliers, mixed into one forward pass.

    An epoch is one shuffled pass over `id_set`, less the remainder that does not fill a batch. Outliers go on from
    step to step and epoch to epoch through one shuffled pass after another, so that each is seen as often as any
    other. The rows of a batch are shuffled.

    Args:
        id_set: Labelled in-distribution images.
        outliers: Images to train as out of distribution, labels ignored; or None.
        num_classes: K, the width of the label rows.
        batch_size: B, in-distribution images a batch.
        outliers_per_batch: O, outliers a batch; 0 where `outliers` is None.
        epochs: E, where training ends, counted from epoch 0.
        seed: Decides every order and augmentation.
        first_epoch: Where to begin: batches are those of the epochs first_epoch..E-1 of the whole run.
        augment: Names of `kood.data.augment`, applied in order to all rows alike.

    Returns:
        (dataset, steps an epoch). An element is {"image": float32 (B+O, H, W, C) in [-1, 1], "label": float32
        (B+O, K) one-hot and all-zero for outliers, "is_outlier": float32 (B+O,)}.

    Raises:
        UserError: Fewer images than a batch holds; no outliers where some are asked for.
        ValueError: `id_set` without labels, labels past K, a bad first epoch.
    """
    _check_labels(id_set, num_classes)
    outlier_count = 0 if outliers is None else len(outliers)
    if outliers is None:
        outliers_per_batch = 0
    if len(id_set) < batch_size:
        raise UserError(
            f"train.batch_size: {batch_size} is more than the {len(id_set)} training images; lower it to at most "
            f"{len(id_set)}, or give more images"
        )
    if outliers_per_batch and not outlier_count:
        raise UserError("there are no outlier images to train with; ask for at least one, or train without outliers")
    if not 0 <= first_epoch <= epochs:
        raise ValueError(f"first_epoch must lie in 0..{epochs}, not {first_epoch}")
    steps = len(id_set) // batch_size
    pixels, labels = _held(id_set.images), _held(id_set.known_labels.astype(np.int32))
    augmented = _augmentation(augment)
    outlier_pixels = _held(outliers.images) if outliers is not None else None
    rows_in_batch = batch_size + outliers_per_batch

    def epoch_orders(epoch):
        order = tf.random.experimental.stateless_shuffle(tf.range(len(id_set)), _seed(seed, _ID_ORDER, epoch))
        parts = {
            "step": epoch * steps + tf.range(steps, dtype=tf.int64),
            "id_rows": tf.reshape(order[: steps * batch_size], (steps, batch_size)),
        }
        if outliers_per_batch:
            each_epoch = steps * outliers_per_batch
            endless = _endless(outlier_count, _OUTLIER_ORDER, seed, epoch * each_epoch, each_epoch)
            parts["outlier_rows"] = tf.reshape(endless, (steps, outliers_per_batch))
        return tf.data.Dataset.from_tensor_slices(parts)

    def batch(place):
        images = tf.gather(pixels, place["id_rows"])
        rows = tf.one_hot(tf.gather(labels, place["id_rows"]), num_classes)
        if outliers_per_batch:
            images = tf.concat([images, tf.gather(outlier_pixels, place["outlier_rows"])], axis=0)
            rows = tf.pad(rows, [[0, outliers_per_batch], [0, 0]])
        is_outlier = tf.cast(tf.range(rows_in_batch) >= batch_size, tf.float32)
        order = tf.random.experimental.stateless_shuffle(
            tf.range(rows_in_batch), _seed(seed, _ROW_ORDER, place["step"])
        )
        images = normalize(tf.ensure_shape(tf.gather(images, order), (rows_in_batch, *pixels.shape[1:])))
        return {
            "image": augmented(images, _seed(seed, _AUGMENT, place["step"])),
            "label": tf.ensure_shape(tf.gather(rows, order), (rows_in_batch, num_classes)),
            "is_outlier": tf.gather(is_outlier, order),
        }

    places = tf.data.Dataset.range(first_epoch, epochs).flat_map(epoch_orders)
    return _finished(places.map(batch, tf.data.AUTOTUNE), (epochs - first_epoch) * steps), steps


def labelled_batches(
    id_set: ImageSet,
    *,
    num_classes: int,
    batch_size: int,
    steps: int,
    seed: int,
    first_step: int = 0,
    augment: Sequence[str] = (),
) -> tf.data.Dataset:
    """Labelled batches for a given number of steps, for the diffusion model: one shuffled pass after another.

    A pass goes on into the next within a batch, so no image is left out and a set smaller than a batch will do. The
    dataset can begin at any step: `model.fit(..., steps_per_epoch=S)` resumed at epoch e takes `first_step=e * S`.

    Args:
        id_set: Labelled images.
        num_classes: K, the width of the label rows.
        batch_size: B.
        steps: Where training ends, counted from step 0.
        seed: Decides every order and augmentation.
        first_step: Where to begin: batches are those of the steps first_step..steps-1 of the whole run.
        augment: Names of `kood.data.augment`, applied in order.

    Returns:
        A dataset of steps - first_step elements {"image": float32 (B, H, W, C) in [-1, 1], "label": float32 (B, K)
        one-hot}.

    Raises:
        UserError: No images at all.
        ValueError: `id_set` without labels, labels past K, a bad first step.
    """
    _check_labels(id_set, num_classes)
    if not len(id_set):
        raise UserError("there are no images to train the diffusion model on; check data.id")
    if not 0 <= first_step <= steps:
        raise ValueError(f"first_step must lie in 0..{steps}, not {first_step}")
    pixels, labels = _held(id_set.images), _held(id_set.known_labels.astype(np.int32))
    augmented = _augmentation(augment)
    # Steps are dealt in blocks of about one pass, so that a pass's order is drawn once or twice and not every step.
    block = max(1, len(id_set) // batch_size)
    first_block = first_step // block

    def block_orders(number):
        endless = _endless(len(id_set), _ID_ORDER, seed, number * (block * batch_size), block * batch_size)
        parts = {
            "step": number * block + tf.range(block, dtype=tf.int64),
            "rows": tf.reshape(endless, (block, batch_size)),
        }
        return tf.data.Dataset.from_tensor_slices(parts)

    def batch(place):
        images = tf.ensure_shape(tf.gather(pixels, place["rows"]), (batch_size, *pixels.shape[1:]))
        return {
            "image": augmented(normalize(images), _seed(seed, _AUGMENT, place["step"])),
            "label": tf.one_hot(tf.gather(labels, place["rows"]), num_classes),
        }

    places = tf.data.Dataset.range(first_block, -(-steps // block)).flat_map(block_orders)
    places = places.skip(first_step - first_block * block).take(steps - first_step)
    return _finished(places.map(batch, tf.data.AUTOTUNE), steps - first_step)


def image_batches(images: np.ndarray, batch_size: int) -> tf.data.Dataset:
    """Images in order, for prediction; the last batch may be smaller.

    Args:
        images: uint8 (N, H, W, C).
        batch_size: Images a batch.

    Returns:
        A dataset of ceil(N / batch_size) float32 tensors (B, H, W, C) in [-1, 1].
    """
    pixels = _held(images)

    def batch(start):
        found = normalize(pixels[start : start + batch_size])
        return tf.ensure_shape(found, (None, *images.shape[1:]))

    starts = tf.data.Dataset.range(0, len(images), batch_size)
    return _finished(starts.map(batch, tf.data.AUTOTUNE), -(-len(images) // batch_size))


def _check_labels(id_set: ImageSet, num_classes: int) -> None:
    labels = id_set.known_labels
    if len(labels) and labels.max() >= num_classes:
        raise ValueError(f"label {labels.max()} does not fit into {num_classes} classes")


def _held(values: np.ndarray):
    # Where tf.data works; else TensorFlow would put the whole set on its GPU.
    with tf.device("CPU"):
        return tf.constant(values)


def _seed(seed: int, purpose: int, place):
    """The stateless seed (2,) for `purpose` at `place`, an epoch, a pass or a step."""
    base = tf.constant([seed % 2**31, purpose], tf.int32)
    return tf.random.fold_in(base, tf.cast(place, tf.int32))


def _endless(size: int, purpose: int, seed: int, start, length: int):
    """Rows start..start+length-1 of an endless series of shuffled passes over `size` rows."""
    passes = -(-length // size) + 1
    first = start // size
    shuffled = tf.map_fn(
        lambda number: tf.random.experimental.stateless_shuffle(tf.range(size), _seed(seed, purpose, number)),
        first + tf.range(passes, dtype=tf.int64),
        fn_output_signature=tf.TensorSpec((size,), tf.int32),
    )
    offset = start - first * size
    return tf.reshape(shuffled, [-1])[offset : offset + length]


def _augmentation(names: Sequence[str]):
    functions = [registry.obtain("augmentations", name, "data.augment") for name in names]

    def augmented(images, seed):
        for place, function in enumerate(functions):
            images = function(images, tf.random.fold_in(seed, place))
        return images

    return augmented


def _finished(dataset: tf.data.Dataset, length: int) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    sized = dataset.apply(tf.data.experimental.assert_cardinality(length))
    return sized.with_options(options).prefetch(tf.data.AUTOTUNE)
