"""Sampling as a job: blocks of one size, streamed to files, that a killed process takes up where it was.

A block is a function of the seed, its number and its conditions alone: all noise comes from NumPy generators seeded by
(seed, block). So a job that was stopped and goes on ends with the images of one that was not, and the start noise is
the same on every backend. Nothing here holds more than a block or two.

An image start takes x_t = sqrt(a_t) image + sqrt(1 - a_t) noise with a the schedule's alpha-bar and
t = round(level (T - 1)), and samples over alpha-bar[0..t] alone (SDEdit, Meng et al. 2022, arXiv 2108.01073).
"""

import copy
import hashlib
import inspect
import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops

from kood import registry
from kood.backends import compiled
from kood.data import ImageSet
from kood.data.deferred import Images
from kood.data.images import fit_images, normalize, quantize
from kood.diffusion.label_mixup import classes_mixed, noise_predictor
from kood.errors import UserError
from kood.files import digest_array, digest_file, fingerprint, write_atomically
from kood.section import Sampling

__all__ = ["ImageSampler", "Shard", "Start", "draw_rows", "image_sampler", "resized", "same_start"]

#: Blocks smaller than `batch_size` are a multiple of this, so that devices can share them evenly.
ROWS = 8


@dataclass(frozen=True)
class Start:
    """The images that sampling starts from.

    Attributes:
        images: uint8 (M, H, W, C).
        rows: Integer (N,), the image for each condition.
    """

    images: Images
    rows: np.ndarray


@dataclass(frozen=True)
class Shard:
    """A block of finished images, on disk.

    Attributes:
        path: The `.npy` file, uint8 (n, H, W, C).
        images: Its content.
        seconds: How long it took to sample, by whichever process did.
    """

    path: Path
    images: np.ndarray
    seconds: float


@dataclass(eq=False)
class ImageSampler:
    """Draws an image for each condition; the denoiser's forward pass is compiled once for each size of block.

    Args:
        denoiser: A `Denoiser`.
        image_shape: (H, W, C).
        sampler: A function of `kood.diffusion.samplers`.
        num_steps: Its number of steps.
        mix: "condition" or "prediction", see `noise_predictor`.
        guidance: Classifier-free guidance, see `noise_predictor`; 1 is none, 0 takes no class at all.
        clip: Bound of the predicted clean image at each step, or None.
        level: Where on the schedule an image start begins, in (0, 1]; None for a start from noise.
        push: Turns the noise predictor into another, as `kood.diffusion.label_mixup.away_from` does; or None.
        seed: Seed of all noise.
        batch_size: Images a block; smaller jobs have a smaller block, and the last block is padded.

    Raises:
        ValueError: more sampling steps than there are steps of the schedule below the level.
    """

    denoiser: Any
    image_shape: tuple[int, ...]
    _: KW_ONLY
    sampler: Callable
    num_steps: int
    mix: str = "condition"
    guidance: float = 1.0
    clip: float | None = 1.0
    level: float | None = None
    push: Callable[[Callable], Callable] | None = None
    seed: int = 0
    batch_size: int = 256

    def __post_init__(self) -> None:
        last = len(self.denoiser.alpha_bar) - 1
        if self.level is not None:
            last = round(self.level * last)
        self.alpha_bar = np.asarray(self.denoiser.alpha_bar)[: last + 1]
        self._forward = compiled(self.denoiser)
        if self.num_steps > len(self.alpha_bar):
            where = "of the schedule" if self.level is None else f"below level {self.level}"
            raise ValueError(f"{self.num_steps} sampling steps are more than the {len(self.alpha_bar)} {where}")

    def with_steps(self, num_steps: int) -> "ImageSampler":
        """The same sampler with another number of steps, not more; they share the compiled forward pass."""
        other = copy.copy(self)
        other.num_steps = num_steps
        return other

    def images(
        self,
        condition: np.ndarray,
        *,
        noise: np.ndarray | None = None,
        start: Start | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> np.ndarray:
        """Samples images in memory.

        Args:
            condition: (N, K) label vectors.
            noise: Noise (N, H, W, C) in place of drawn noise.
            start: The images to start from, where the sampler has a level.
            progress: Called with the number of finished images after each block.

        Returns:
            (N, H, W, C) float32, not clipped to [-1, 1] unless `clip` did so.
        """
        images = np.empty((len(condition), *self.image_shape), "float32")
        for block, rows, stop in self._blocks(len(condition)):
            made = self._block(block, rows, condition, noise=noise, start=start)
            images[rows[0] : stop] = made[: stop - rows[0]]
            if progress is not None:
                progress(stop)
        return images

    def shards(
        self,
        folder: Path,
        condition: np.ndarray,
        *,
        start: Start | None = None,
        first_block: int = 0,
        progress: Callable[[float], object] | None = None,
    ) -> Iterator[Shard]:
        """Samples images into files `shard-00000.npy`, ..., one a block, each there whole or not at all.

        A shard whose record beside it names the same job (these settings, conditions and start images) and whose
        content has the recorded SHA-256 is taken as it lies; any other is made again. The denoiser and the push are not
        looked at: others need another folder.

        Args:
            folder: Where; made where missing.
            condition: (N, K) label vectors.
            start: The images to start from, where the sampler has a level.
            first_block: Number of the first block, for a job that goes on from another.
            progress: Called while a block is made, with the share of it that is done, as a number of images.

        Yields:
            A `Shard` for each block, in order.

        Raises:
            UserError: images are not finite.
        """
        folder.mkdir(parents=True, exist_ok=True)
        most = classes_mixed(condition)
        for block, rows, stop in self._blocks(len(condition), first_block):
            path = folder / f"shard-{block:05d}.npy"
            job = self._job(block, rows, condition, start, most)
            found = _read(path, job)
            if found is not None:
                yield found
                continue
            size = stop - rows[0]
            began = time.monotonic()

            def step(i: int, _: Any, size: int = size) -> None:
                if progress is not None:
                    progress(size * (i + 1) / self.num_steps)

            try:
                images = quantize(self._block(block, rows, condition, start=start, callback=step)[:size])
            except ValueError as error:
                raise UserError(
                    f"the diffusion model's images are no numbers ({error}); train it longer or at a lower "
                    "diffusion.learning_rate, or clip its samples",
                    exit_code=1,
                ) from error
            seconds = time.monotonic() - began
            _write(path, images, {"job": job, "seconds": seconds})
            yield Shard(path, images, seconds)

    def blocks_of(self, count: int) -> int:
        """How many blocks so many images make."""
        return -(-count // self._size(count))

    def _size(self, count: int) -> int:
        return max(1, min(self.batch_size, -(-count // ROWS) * ROWS))

    def _blocks(self, count: int, first: int = 0) -> Iterator[tuple[int, np.ndarray, int]]:
        """(number, the rows of a full block, where its own rows stop): rows past the end repeat the last."""
        size = self._size(count)
        for number, begin in enumerate(range(0, count, size), start=first):
            yield number, np.minimum(np.arange(begin, begin + size), count - 1), min(begin + size, count)

    def _block(
        self,
        number: int,
        rows: np.ndarray,
        condition: np.ndarray,
        *,
        noise: np.ndarray | None = None,
        start: Start | None = None,
        callback: Callable | None = None,
    ) -> np.ndarray:
        if (self.level is None) != (start is None):
            raise ValueError("a sampler with a level needs images to start from, and one without a level takes none")
        shape = (len(rows), *self.image_shape)
        if noise is None:
            first = np.random.default_rng([self.seed, number]).standard_normal(shape, dtype="float32")
        else:
            first = np.asarray(noise, "float32")[rows]
        if start is not None:
            signal, spread = np.sqrt([self.alpha_bar[-1], 1.0 - self.alpha_bar[-1]]).astype("float32")
            first = signal * normalize(np.asarray(start.images[start.rows[rows]])) + spread * first
        options: dict[str, Any] = {"clip": self.clip, "callback": callback}
        if "step_noise" in inspect.signature(self.sampler).parameters:
            rng = np.random.default_rng([self.seed, number, 1])
            options["step_noise"] = lambda i, x: ops.convert_to_tensor(rng.standard_normal(shape, dtype="float32"))
        denoise = noise_predictor(
            self._forward, condition[rows], mix=self.mix, guidance=self.guidance, most=classes_mixed(condition)
        )
        if self.push is not None:
            denoise = self.push(denoise)
        sampled = self.sampler(denoise, self.alpha_bar, ops.convert_to_tensor(first), self.num_steps, **options)
        return ops.convert_to_numpy(sampled)

    def _job(self, block: int, rows: np.ndarray, condition: np.ndarray, start: Start | None, most: int) -> str:
        """What decides a block's images, apart from the denoiser."""
        settings = [self.sampler.__name__, self.num_steps, self.mix, self.guidance, self.clip, self.level, self.seed]
        pixels = None if start is None else digest_array(start.images[start.rows[rows]])
        return fingerprint(
            block, settings, list(self.image_shape), len(rows), most, digest_array(condition[rows]), pixels
        )


def resized(images: ImageSet, image_shape: tuple[int, int, int]) -> ImageSet:
    """Labelled images as a diffusion model of another size sees them: stretched by `kood.data.images.to_shape`."""
    return ImageSet(fit_images(images.images, image_shape), images.labels, images.class_names)


def draw_rows(labels: np.ndarray, wanted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An image of the wanted class for each draw: without replacement until a class's images are used up, then again.

    Args:
        labels: Integer (M,), the classes of the images.
        wanted: Integer (N,), the classes to draw.
        rng: Decides which images.

    Returns:
        (N,) indices into `labels`.

    Raises:
        ValueError: a class without an image.
    """
    rows = np.empty(len(wanted), np.int64)
    for label in np.unique(wanted):
        pool, places = np.flatnonzero(labels == label), np.flatnonzero(wanted == label)
        if not len(pool):
            raise ValueError(f"class {label} has no image to start from")
        passes = [rng.permutation(pool) for _ in range(-(-len(places) // len(pool)))]
        rows[places] = np.concatenate(passes)[: len(places)]
    return rows


def image_sampler(denoiser, image_shape: tuple[int, ...], settings: Sampling, seed: int, **how: Any) -> ImageSampler:
    """The sampler that a table of the recipe describes.

    Args:
        denoiser: A `Denoiser`.
        image_shape: (H, W, C).
        settings: The table.
        seed: Seed of all noise.
        **how: What else an `ImageSampler` takes.

    Raises:
        ValueError: as `ImageSampler` does.
    """
    return ImageSampler(
        denoiser,
        image_shape,
        sampler=registry.obtain("samplers", settings.sampler),
        num_steps=settings.sampling_steps,
        guidance=settings.guidance,
        clip=settings.clip or None,
        level=settings.level if settings.start == "image" else None,
        seed=seed,
        batch_size=settings.batch_size,
        **how,
    )


def same_start(
    conditions: np.ndarray, image_shape: tuple[int, ...], rng: np.random.Generator, images: ImageSet | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """What samples images that begin alike along each row of a sheet, so that only their conditions differ.

    Args:
        conditions: (rows, columns, K).
        image_shape: (H, W, C).
        rng: Decides the beginnings.
        images: Labelled images, where each row starts from one of the largest class of its first condition.

    Returns:
        (rows * columns, K), and {"noise", "start"} for `ImageSampler.images`.
    """
    rows, columns = conditions.shape[:2]
    noise, start = rng.standard_normal((rows, *image_shape)).astype("float32"), None
    if images is not None:
        chosen = draw_rows(images.known_labels, conditions[:, 0].argmax(axis=1), rng)
        start = Start(images.images, np.repeat(chosen, columns))
    flat = conditions.reshape(rows * columns, -1)
    return flat, {"noise": np.repeat(noise, columns, axis=0), "start": start}


def _write(path: Path, images: np.ndarray, record: dict[str, Any]) -> None:
    content = io.BytesIO()
    np.save(content, images, allow_pickle=False)
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    write_atomically(path, content.getvalue())
    write_atomically(path.with_suffix(".json"), json.dumps({**record, "sha256": digest}).encode())


def _read(path: Path, job: str) -> Shard | None:
    """A shard that is whole and of this job."""
    try:
        record = json.loads(path.with_suffix(".json").read_bytes())
        if record["job"] != job or digest_file(path) != record["sha256"]:
            return None
        return Shard(path, np.load(path, allow_pickle=False), float(record["seconds"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # Whatever is wrong with it, it is made again.
