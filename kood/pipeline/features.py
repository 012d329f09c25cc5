"""The stages that pass images through a frozen backbone, once each."""

import io
import math
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kood import registry
from kood.backends import compiled
from kood.data import ImageSet
from kood.data.batches import image_batches, views_of
from kood.data.deferred import Images
from kood.data.image_set import joined
from kood.data.large import blocks_of
from kood.data.stored import read_images, write_blocks
from kood.detector.choosing import MOST_PROXIES, PROXIES, proxies
from kood.files import fingerprint, write_atomically
from kood.machine import arithmetic
from kood.outputs import at_once, run_batches
from kood.pipeline.build import frozen_backbone, network_of, said_of
from kood.pipeline.fitting import augmentations, decided
from kood.pipeline.outliers import Outliers
from kood.pipeline.prepare import KINDS, PARTS, Data, Stored
from kood.pipeline.stage import Work
from kood.recipe import Recipe

__all__ = ["Features", "OutlierFeatures", "moments"]


#: Images whose features are kept together until all are there, so that a kill costs no more than these.
PIECE = 2000


class _Passing(Stored):
    """Images passed through the frozen backbone of a recipe."""

    version = 3

    def uses(self) -> list[tuple[str, str]]:
        return [("backbones", self.recipe.classifier.backbone)]

    @property
    def passing(self) -> dict[str, Any]:
        """What decides the features of an image, whichever sets there are."""
        network = {**network_of(self.recipe), "neck": None}
        return {
            "version": self.version,
            "backbone": [network, self.recipe.data.shape, self.recipe.data.split_seed],
            "backend": keras.backend.backend(),
        }

    def _passed(self, folder: Path, work: Work, sets: dict[str, ImageSet], of: dict[str, Any]) -> dict[str, Any]:
        """Writes the features of image sets down and tells of each what `images` needs.

        `of` says what decides those of each set beside the network. Whose features an earlier result has, such as one
        with fewer sets to test on, passes no more.
        """
        backend = keras.backend.backend()
        network = [self.passing, registry.versions(*_Passing.uses(self)), arithmetic(backend)]
        keys = {name: fingerprint(network, of[name]) for name in sets}
        results = [] if work.run.fresh else work.run.finished(self.kind)
        earlier = {
            key: read_images(one.folder, name, one.facts["sets"][name]).images
            for one in results if one.backends == (backend,)
            for name, key in one.facts.get("keys", {}).items()
        }  # fmt: skip
        backbone = frozen_backbone(self.recipe)
        forward, width = compiled(backbone), backbone.output_shape[-1]
        rows, told = min(at_once(self.recipe.data.shape), self.recipe.evaluate.batch_size), {}
        total, done, passed, first = sum(map(len, sets.values())), 0, 0, (math.nan, 0)
        pieces, each = folder / "pieces", rows * -(-PIECE // rows)
        pieces.mkdir(exist_ok=True)
        with work.progress.bar(self.role, total, unit="image") as bar:

            def batches(images: Images) -> Iterator[np.ndarray]:
                nonlocal done, passed, first
                for batch in image_batches(images, rows):
                    yield batch
                    done, passed = done + len(batch), passed + len(batch)
                    if math.isnan(first[0]):  # The first batch compiles.
                        first = time.monotonic(), passed
                    bar.update(done)

            def features(name: str, images: ImageSet, start: int) -> np.ndarray:
                nonlocal done
                file, due = pieces / f"{name}-{start}.npy", min(each, len(images) - start)
                if file.exists():  # From before a kill, when batches may have been of another size.
                    found = np.load(file, allow_pickle=False)
                    if len(found) == due:
                        done += len(found)
                        return found
                some = images.take(np.arange(start, start + due)).images
                found = run_batches(lambda of: {"features": forward(of)}, batches(some), rows, len(some))["features"]
                written = io.BytesIO()
                np.save(written, found)
                write_atomically(file, written.getvalue())
                return found

            for name, images in sets.items():
                blocks: Iterable[np.ndarray] = (features(name, images, start) for start in range(0, len(images), each))
                if (there := earlier.get(keys[name])) is not None:
                    blocks, done = blocks_of(there), done + len(there)
                told[name] = write_blocks(
                    folder, name, blocks, count=len(images), image_shape=(width,), labels=images.labels,
                    class_names=images.class_names, dtype=np.float32,
                )  # fmt: skip
        shutil.rmtree(pieces)
        seconds, later = time.monotonic() - first[0], passed - first[1]
        facts = {"sets": told, "keys": keys, "notes": said_of(backbone)}
        return {**facts, **({"images_per_second": round(later / seconds, 1)} if later > 0 else {})}


class Features(_Passing):
    """What the frozen backbone gives for the images of a run. To all that learns or measures it stands for these.

    Proxies stand in for `data.validation_ood` where that names no images and some are measured.
    """

    kind = "features"

    def __init__(self, recipe: Recipe, data: Data):
        super().__init__(recipe)
        self.data = data

    @property
    def _proxied(self) -> bool:
        """Whether proxies stand in for out-of-distribution validation images."""
        settings = self.recipe.evaluate
        validates = settings.baseline or settings.tune or settings.headline == "auto"
        return validates and not self.recipe.data.validation_ood and len(self.data.images("validation")) > 0

    @property
    def _sets(self) -> list[str]:
        return [*PARTS, *(f"data.{kind}.{name}" for kind in KINDS for name in self.data.names(kind))]

    @property
    def _of(self) -> dict[str, Any]:
        """What decides the features of each set beside the network; of proxies, of all of them."""
        views, names, seed = self.recipe.classifier.views, self.recipe.data.augment, self.recipe.data.split_seed
        of: dict[str, Any] = {name: self.data.digest(name)[0] for name in self._sets}
        if self._proxied:
            of["proxies"] = [seed, MOST_PROXIES, *PROXIES, of["validation"]]
        if views:
            versions = registry.versions(*(("augmentations", name) for name in names))
            of["views"] = [views, decided(self.recipe, self.data, names), seed, of["train"], versions]
        return of

    def decides(self) -> dict[str, Any]:
        return {**self.passing, "images": self._of}

    def make(self, folder: Path, work: Work) -> dict[str, Any]:
        sets, of = {name: self.data.images(name) for name in self._sets}, self._of
        seed = self.recipe.data.split_seed
        if self._proxied:
            made = {f"data.validation_ood.{name}": one for name, one in proxies(sets["validation"], seed).items()}
            sets, of = sets | made, of | {name: [name, of["proxies"]] for name in made}
        if views := self.recipe.classifier.views:
            augment = augmentations(self.recipe, self.data, self.recipe.data.augment)
            sets["views"] = views_of(sets["train"], views, augment, seed)
        return self._passed(folder, work, sets, of)

    def shown(self, name: str) -> ImageSet:
        """As of `Rows`."""
        return self.data.images(name)

    def seen(self) -> ImageSet:
        """What the classifier learns from: the features of the training images, and those of their views."""
        train = self.images("train")
        return joined([train, self.images("views")]) if self.recipe.classifier.views else train

    def says(self) -> list[tuple[str, str]]:
        return [*((f"classifier: {note}", "") for note in self.notes), *super().says()]

    @property
    def frozen(self) -> "Features":
        """Itself."""
        return self


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (D,) of features (N, D), float64."""
    mean = sum(block.sum(axis=0, dtype=np.float64) for block in blocks_of(features)) / len(features)
    return mean, sum(np.square(block - mean).sum(axis=0) for block in blocks_of(features)) / len(features)


class OutlierFeatures(_Passing):
    """What the frozen backbone gives for the outliers of one source."""

    def __init__(self, recipe: Recipe, outliers: Outliers):
        self.kind = f"{outliers.kind}_features"
        super().__init__(recipe)
        self.outliers = outliers
        # A backbone changes nothing of what they were made of.
        self.shares = outliers.shares
        self.serves_fewer, self.made_without = outliers.serves_fewer, outliers.made_without

    @property
    def _seed(self) -> int:
        return self.seed(f"amplitude {self.outliers.kind}")

    def decides(self) -> dict[str, Any]:
        return {**self.passing, "images": self._of}

    @property
    def _of(self) -> list[Any]:
        swapped = [self.outliers.data.digest("train"), self._seed] if self.outliers.is_swapped else None
        return [self.outliers.facts["sha256"], swapped]

    def make(self, folder: Path, work: Work) -> dict[str, Any]:
        told = self._passed(folder, work, {"outliers": self.outliers.exposed(self._seed)}, {"outliers": self._of})
        return {**told, "sha256": told["sets"]["outliers"]["sha256"]}

    def exposed(self, seed: int) -> ImageSet:
        """As `Outliers.exposed`, their features."""
        return self.images("outliers")
