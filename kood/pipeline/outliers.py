"""The stages that make outlier images: label mixup, of another file, and the controls."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kood.data import ImageSet
from kood.data.outliers import amplitude_swap, cutmix, noise_images, patch_shuffle, pixel_mixup
from kood.data.stored import write_images
from kood.pipeline.samples import make_label_mixup
from kood.pipeline.work import Work
from kood.runs import Stage

__all__ = ["make_outliers"]


def make_outliers(work: Work) -> list[Stage]:
    """Makes the outliers of each source of images that the recipe uses, `outliers.count_of` it each."""
    makers = {
        "label_mixup": make_label_mixup, "pixel_mixup": _pixel_mixup, "cutmix": _cutmix, "noise": _noise,
        "patch_shuffle": _patch_shuffle, "amplitude_swap": _amplitude_swap, "real": _real,
    }  # fmt: skip
    return [makers[name](work) for name in work.recipe.outliers.use if name in makers]


def _pixel_mixup(work: Work) -> Stage:
    return _pairs_of_images(work, "pixel_mixup", pixel_mixup)


def _cutmix(work: Work) -> Stage:
    return _pairs_of_images(work, "cutmix", cutmix)


def _pairs_of_images(work: Work, name: str, mix: Callable[..., np.ndarray]) -> Stage:
    settings, seed = getattr(work.recipe.outliers, name), work.seed(name)
    count = work.recipe.outliers.count_of(name)

    def make(folder: Path) -> dict[str, Any]:
        train = work.data("train")
        how: dict[str, Any] = {"weight": settings.weight, "alpha": settings.alpha}
        how |= {"rng": np.random.default_rng(seed), "shares": np.empty((count, len(train.class_names)), np.float32)}
        images = mix(np.asarray(train.images), train.known_labels, count, **how)
        np.save(folder / "mixtures.npy", how["shares"])
        return write_images(folder, "outliers", ImageSet(images))

    return work.stage(
        name, {**settings.model_dump(), "count": count, "train": work.digest("train"), "seed": seed}, make
    )


def _patch_shuffle(work: Work) -> Stage:
    settings, seed = work.recipe.outliers.patch_shuffle, work.seed("patch_shuffle")
    count = work.recipe.outliers.count_of("patch_shuffle")

    def make(folder: Path) -> dict[str, Any]:
        images, rng = work.data("train").images, np.random.default_rng(seed)
        # Passes over all images, the last of them in part: each is taken as often as any other, or once more.
        rows = np.concatenate([rng.permutation(len(images)) for _ in range(-(-count // len(images)))])[:count]
        return write_images(folder, "outliers", ImageSet(patch_shuffle(images[rows], rng=rng, grid=settings.grid)))

    return work.stage(
        "patch_shuffle", {**settings.model_dump(), "count": count, "train": work.digest("train"), "seed": seed}, make
    )


def _amplitude_swap(work: Work) -> Stage:
    count, seed = work.recipe.outliers.count_of("amplitude_swap"), work.seed("amplitude_swap")

    def make(folder: Path) -> dict[str, Any]:
        train, rng = work.data("train"), np.random.default_rng(seed)
        images = amplitude_swap(np.asarray(train.images), train.known_labels, count, rng=rng)
        return write_images(folder, "outliers", ImageSet(images))

    return work.stage("amplitude_swap", {"count": count, "train": work.digest("train"), "seed": seed}, make)


def _noise(work: Work) -> Stage:
    settings, seed, shape = work.recipe.outliers.noise, work.seed("noise"), work.recipe.data.shape
    count = work.recipe.outliers.count_of("noise")

    def make(folder: Path) -> dict[str, Any]:
        images = noise_images(count, shape, kind=settings.kind, scale=settings.scale, rng=np.random.default_rng(seed))
        return write_images(folder, "outliers", ImageSet(images))

    return work.stage("noise", {**settings.model_dump(), "count": count, "shape": shape, "seed": seed}, make)


def _real(work: Work) -> Stage:
    count, seed = work.recipe.outliers.count_of("real"), work.seed("real")

    def make(folder: Path) -> dict[str, Any]:
        images = work.data("outliers.real").images
        if count < len(images):
            images = images[np.sort(np.random.default_rng(seed).choice(len(images), count, replace=False))]
        return write_images(folder, "outliers", ImageSet(np.asarray(images)))

    return work.stage("real", {"images": work.digest("outliers.real"), "count": count, "seed": seed}, make)
