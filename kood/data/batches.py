"""Batches for training, with `tf.data`, and for prediction.

A batch is a function of the seed and its place (epoch and step) alone: orders and augmentations are drawn by stateless
operations. So a run resumed at an epoch sees, bit for bit, what it would have seen uninterrupted. Images are gathered a
whole batch at a time: from one uint8 copy in memory, or where that would be large, from the file they are mapped from.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np

from kood import registry
from kood.data.deferred import Images, made
from kood.data.image_set import ImageSet
from kood.data.images import normalize, quantize
from kood.data.large import ahead, is_large
from kood.data.mixing import mixed_in
from kood.data.resident import moved_places
from kood.data.tf_on_cpu import tf
from kood.errors import UserError
from kood.machine import cores

__all__ = ["image_batches", "labelled_batches", "raising", "training_batches", "views_of"]

#: For functions of kood's own: they have no control flow of Python's that TensorFlow would have to rewrite, and to read
#: them for it takes as long as a short training.
_plain = tf.autograph.experimental.do_not_convert

# What a random stream is for: streams of one seed never meet.
_ID_ORDER, _OUTLIER_ORDER, _ROW_ORDER, _AUGMENT, _LABELLED_ORDER, _MIX = range(6)

#: What images raised that batches asked for, whose traceback TensorFlow makes a message of its own.
_raised: list[Exception] = []


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Raises what images raise, such as files that changed, as it is, while batches are trained on."""
    _raised.clear()
    try:
        yield
    except tf.errors.OpError as error:
        if _raised:
            raise _raised[0] from error
        raise


def training_batches(
    id_set: ImageSet,
    outliers: ImageSet | None,
    *,
    batch_size: int,
    outliers_per_batch: int,
    epochs: int,
    seed: int,
    first_epoch: int = 0,
    augment: Sequence[str | Callable] = (),
    labelled: ImageSet | None = None,
    labelled_per_batch: int = 0,
    outlier_targets: np.ndarray | None = None,
    steps: int | None = None,
    mix: Literal["none", "linear", "cutmix"] = "none",
    mix_alpha: float = 1.0,
    resident: bool = False,
) -> tuple[tf.data.Dataset, int]:
    """Batches of in-distribution images and outliers, mixed into one forward pass.

    An epoch is one shuffled pass over `id_set`, less the remainder that does not fill a batch. Outliers, and further
    labelled images, go on from step to step and epoch to epoch through one shuffled pass after another, so that each
    is seen as often as any other. The rows of a batch are shuffled.

    Args:
        id_set: Labelled in-distribution images, of K classes.
        outliers: Images to train as out of distribution, labels ignored; or None.
        batch_size: B, in-distribution images a batch; no more than there are, where `steps` is not given.
        outliers_per_batch: O, outliers a batch; 0 where `outliers` is None.
        epochs: E, where training ends, counted from epoch 0.
        seed: Decides every order and augmentation.
        first_epoch: Where to begin: batches are those of the epochs first_epoch..E-1 of the whole run.
        augment: Names of `kood.data.augment`, or functions as are there, applied in order to all rows alike.
        labelled: Further labelled images with the same classes (generated ones, say) that every batch has some of; or
            None.
        labelled_per_batch: L, how many of them; 0 where `labelled` is None.
        outlier_targets: Label rows (M, K) of the outliers; not given, all-zero.
        steps: Batches an epoch. Not given, as many as `id_set` fills; given, its images too go on from epoch to epoch.
        mix: How each outlier is mixed with an image of `id_set` in the batch, after augmentation; see
            `kood.data.mixing.mixtures`. The batch keeps those images besides.
        mix_alpha: The shares are drawn from Beta(mix_alpha, mix_alpha).
        resident: Leave the pixels out: in place of "image" an element has "rows", int32 (B+L+O,) into what
            `kood.data.resident.pixels_of` makes of the sets, and what `moved_places` there says.

    Returns:
        (dataset, steps an epoch). An element is {"image": float32 (B+L+O, H, W, C) in [-1, 1], "label": float32
        (B+L+O, K) one-hot, and for outliers their target or all-zero, "is_outlier": float32 (B+L+O,)}. The label of a
        mixed outlier is the image's share of its one-hot row and the outlier's share of its target, so that it adds up
        to the share of what has a class.

    Raises:
        UserError: No outliers or further images where some are asked for.
    """
    num_classes, known = len(id_set.class_names), _known_labels(id_set)
    if outliers is None:
        outliers_per_batch = 0
    if labelled is None:
        labelled_per_batch = 0
    per_epoch = len(id_set) // batch_size if steps is None else steps
    # What a batch is drawn from: name, images, a function of rows to labels, purpose of the order, rows a batch.
    streams: list[tuple] = [("id_rows", id_set, known, _ID_ORDER, batch_size)]
    if labelled is not None and labelled_per_batch:
        known = _known_labels(labelled)
        streams.append(("labelled_rows", labelled, known, _LABELLED_ORDER, labelled_per_batch))
    if outliers is not None and outliers_per_batch:
        aims = None if outlier_targets is None else _held(outlier_targets.astype(np.float32))

        def aimed_at(rows):
            return tf.zeros((outliers_per_batch, num_classes)) if aims is None else tf.gather(aims, rows)

        streams.append(("outlier_rows", outliers, aimed_at, _OUTLIER_ORDER, outliers_per_batch))
    for name, of, *_ in streams:
        if not len(of):
            kind = name.removesuffix("_rows")
            raise UserError(f"there are no {kind} images to train with; ask for at least one, or train without them")
    # In `pixels_of` the outliers stand behind the further images, whether any of these are drawn or not.
    behind = {"id_rows": 0, "labelled_rows": len(id_set), "outlier_rows": len(id_set) + len(labelled or ())}
    found = {name: _looking_up(of.images, behind[name], resident) for name, of, *_ in streams}
    finished = _finishing(augment, id_set.images.shape[1:], resident)
    rows_in_batch = batch_size + labelled_per_batch + outliers_per_batch

    @_plain
    def epoch_orders(epoch):
        def order(size: int, purpose: int, rows: int):
            each_epoch = per_epoch * rows
            if purpose == _ID_ORDER and steps is None:  # A pass of its own for each epoch.
                shuffled = tf.random.experimental.stateless_shuffle(tf.range(size), _seed(seed, purpose, epoch))
                return tf.reshape(shuffled[:each_epoch], (per_epoch, rows))
            return tf.reshape(_endless(size, purpose, seed, epoch * each_epoch, each_epoch), (per_epoch, rows))

        parts = {name: order(len(of), purpose, rows) for name, of, _, purpose, rows in streams}
        parts["step"] = epoch * per_epoch + tf.range(per_epoch, dtype=tf.int64)
        return tf.data.Dataset.from_tensor_slices(parts)

    def batch(place):
        images = [found[name](place[name]) for name, *_ in streams]
        rows = [labels(place[name]) for name, _, labels, *_ in streams]
        is_outlier = tf.cast(tf.range(rows_in_batch) >= rows_in_batch - outliers_per_batch, tf.float32)
        order = tf.random.experimental.stateless_shuffle(
            tf.range(rows_in_batch), _seed(seed, _ROW_ORDER, place["step"])
        )
        mixed = tf.gather(tf.concat(images, axis=0), order)
        element = {
            **finished(mixed, rows_in_batch, _seed(seed, _AUGMENT, place["step"])),
            "label": tf.ensure_shape(tf.gather(tf.concat(rows, axis=0), order), (rows_in_batch, num_classes)),
            "is_outlier": tf.gather(is_outlier, order),
        }
        if mix == "none" or not outliers_per_batch:
            return element
        went = tf.argsort(order)
        return mixed_in(
            element, went[:batch_size], went[-outliers_per_batch:], _seed(seed, _MIX, place["step"]),
            mix=mix, alpha=mix_alpha,
        )  # fmt: skip

    places = tf.data.Dataset.range(first_epoch, epochs).flat_map(epoch_orders)
    return _finished(places.map(batch, cores()), (epochs - first_epoch) * per_epoch), per_epoch


def labelled_batches(
    id_set: ImageSet,
    *,
    batch_size: int,
    steps: int,
    seed: int,
    first_step: int = 0,
    augment: Sequence[str | Callable] = (),
    resident: bool = False,
) -> tf.data.Dataset:
    """Labelled batches for a given number of steps, for the diffusion model: one shuffled pass after another.

    A pass goes on into the next within a batch, so no image is left out and a set smaller than a batch will do. The
    batches are those of the steps first_step..steps-1 of the whole run: `model.fit(..., steps_per_epoch=S)` resumed at
    epoch e takes `first_step=e * S`. The other arguments are those of `training_batches`.

    Returns:
        A dataset of steps - first_step elements {"image": float32 (B, H, W, C) in [-1, 1], "label": float32 (B, K)
        one-hot}.
    """
    labels = _known_labels(id_set)
    found = _looking_up(id_set.images, 0, resident)
    finished = _finishing(augment, id_set.images.shape[1:], resident)
    # Steps are dealt in blocks of about one pass, so that a pass's order is drawn once or twice and not every step.
    block = max(1, len(id_set) // batch_size)
    first_block = first_step // block

    @_plain
    def block_orders(number):
        endless = _endless(len(id_set), _ID_ORDER, seed, number * (block * batch_size), block * batch_size)
        parts = {
            "step": number * block + tf.range(block, dtype=tf.int64),
            "rows": tf.reshape(endless, (block, batch_size)),
        }
        return tf.data.Dataset.from_tensor_slices(parts)

    def batch(place):
        return {
            **finished(found(place["rows"]), batch_size, _seed(seed, _AUGMENT, place["step"])),
            "label": labels(place["rows"]),
        }

    places = tf.data.Dataset.range(first_block, -(-steps // block)).flat_map(block_orders)
    places = places.skip(first_step - first_block * block).take(steps - first_step)
    return _finished(places.map(batch, cores()), steps - first_step)


def image_batches(images: Images, batch_size: int) -> Iterator[np.ndarray]:
    """Images uint8 (N, H, W, C) in order, for prediction; the last batch may be smaller.

    Yields:
        ceil(N / batch_size) arrays, float32 (B, H, W, C) in [-1, 1], the next one made while the one before is used.
    """
    return ahead(lambda rows: normalize(np.asarray(images[rows])), len(images), batch_size)


def views_of(images: ImageSet, views: int, augment: Sequence[str | Callable], seed: int) -> ImageSet:
    """Augmented views of images, each as often, kept as pixels.

    Args:
        views: V, how many of each.
        augment: Names of `kood.data.augment`, or functions as are there, applied in order.

    Returns:
        V N images, one pass over all after the other, rounded to whole pixels.
    """
    finished, count = _finishing(augment, images.images.shape[1:], False), len(images)

    def seen(its: np.ndarray) -> np.ndarray:
        found = finished(tf.constant(np.asarray(images.images[its % count])), len(its), _seed(seed, _AUGMENT, its[0]))
        return quantize(found["image"])

    shape = images.images.shape[1:]
    # float32, and as much again while they are augmented.
    pixels = made((views * count, *shape), seen, 8, together=True)
    labels = None if images.labels is None else np.tile(images.labels, views)
    return ImageSet(pixels, labels, images.class_names)


def _known_labels(images: ImageSet):
    """A function of rows (n,) to their labels, one-hot (n, K)."""
    held, classes = _held(images.known_labels.astype(np.int32)), len(images.class_names)
    return lambda rows: tf.one_hot(tf.gather(held, rows), classes)


def _looking_up(images: Images, behind: int, resident: bool):
    """A function of rows (n,) to their pixels (n, H, W, C), uint8, or features (n, D); or to the rows behind others."""
    if resident:
        return lambda rows: rows + behind
    if isinstance(images, np.ndarray) and not is_large(images.nbytes):
        held = _held(images)
        return lambda rows: tf.gather(held, rows)

    def looked_up(some: np.ndarray) -> np.ndarray:
        try:
            return np.asarray(images[some])
        except Exception as error:
            _raised.append(error)
            raise

    def gather(rows):
        found = tf.numpy_function(looked_up, [rows], images.dtype, stateful=False)
        return tf.ensure_shape(found, (None, *images.shape[1:]))

    return gather


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
    passes, first = -(-length // size) + 1, start // size
    shuffled = tf.map_fn(
        lambda number: tf.random.experimental.stateless_shuffle(tf.range(size), _seed(seed, purpose, number)),
        first + tf.range(passes, dtype=tf.int64),
        fn_output_signature=tf.TensorSpec((size,), tf.int32),
    )
    offset = start - first * size
    return tf.reshape(shuffled, [-1])[offset : offset + length]


def _finishing(names: Sequence[str | Callable], shape: tuple[int, ...], resident: bool):
    """A function of what was looked up for a batch, its length and a seed to what an element says of its images."""
    functions = [
        registry.obtain("augmentations", one, "data.augment") if isinstance(one, str) else one for one in names
    ]
    moves = [one for one in names if isinstance(one, str)]

    def of_rows(rows, count, seed):
        return {"rows": tf.ensure_shape(rows, (count,)), **moved_places(moves, count, (shape[0], shape[1]), seed)}

    def of_features(features, count, seed):
        return {"image": tf.ensure_shape(features, (count, *shape))}

    def of_pixels(pixels, count, seed):
        images = normalize(tf.ensure_shape(pixels, (count, *shape)))
        for place, function in enumerate(functions):
            images = function(images, tf.random.fold_in(seed, place))
        return {"image": images}

    if len(shape) == 1:
        return of_features
    return of_rows if resident else of_pixels


def _finished(dataset: tf.data.Dataset, length: int) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    # TensorFlow's tuner, asleep between two of its looks, would hold up the end of a training or a pass by ten seconds.
    options.autotune.enabled = False
    return dataset.apply(tf.data.experimental.assert_cardinality(length)).with_options(options).prefetch(2)
