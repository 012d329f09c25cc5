"""The first stage: images brought to the recipe's shape, split, and written down."""

import abc
from pathlib import Path
from typing import Any

import numpy as np

from kood import registry
from kood.data import ImageSet, load_id, load_ood, load_outliers
from kood.data.copies import alike, distinct, image_digests, near_others
from kood.data.deferred import are_deferred
from kood.data.image_set import Looks
from kood.data.rules import Framing
from kood.data.stored import read_images, source_state, write_digests, write_images
from kood.errors import UserError
from kood.pipeline.stage import Stage, Work
from kood.recipe import Recipe
from kood.text import clean, some_of

__all__ = ["KINDS", "PARTS", "PICTURES", "Data", "Rows", "Stored", "near_shared", "refuse_shared"]

#: The in-distribution parts.
PARTS = ("train", "validation", "calibration", "test")
#: The kinds of out-of-distribution sets, tables of `data`; images of each are compared with those of the ones before.
KINDS = ("near", "far", "validation_ood")

#: The recipe's key of what `pixmix` mixes into images.
PICTURES = "data.pictures"
#: The file of the hashes of what was learned from, chosen on and calibrated on.
_HASHES = "used.hashes.npy"
#: A smoke run looks at no more images of a set than this.
QUICK_IMAGES = 200


class Rows(abc.ABC):
    """What all that learns or measures takes its images from, whether these are pixels or features."""

    @property
    def frozen(self) -> Stage | None:
        """The stage that passed them through a frozen backbone, where they are features."""
        return None

    @property
    def groups(self) -> dict[str, dict[str, int]]:
        """As `kood.data.Splits` has them of the images."""
        return {}

    @abc.abstractmethod
    def images(self, name: str) -> ImageSet:
        """One of its image sets: "train", "validation", "calibration", "test", or the key of another in the recipe."""

    def shown(self, name: str) -> ImageSet:
        """One of its image sets as pixels, where `images` gives features of them."""
        return self.images(name)

    def seen(self) -> ImageSet:
        """What classifiers learn from: the training images, and views of them where there are any."""
        return self.images("train")

    @abc.abstractmethod
    def digest(self, *names: str) -> list[str]:
        """The contents of image sets, for fingerprints."""

    @abc.abstractmethod
    def names(self, kind: str) -> list[str]:
        """How the recipe calls the image sets of `data.near`, `data.far` or `data.validation_ood`."""

    def sets(self, kind: str) -> dict[str, ImageSet]:
        """Those sets, by name."""
        return {name: self.images(f"data.{kind}.{name}") for name in self.names(kind)}

    def digests(self, kind: str) -> dict[str, str]:
        """Their contents, for fingerprints."""
        return {name: self.digest(f"data.{kind}.{name}")[0] for name in self.names(kind)}


class Stored(Stage, Rows):
    """Image sets that a stage has written down; its facts tell of them under "sets"."""

    def images(self, name: str) -> ImageSet:
        """As of `Rows`."""
        return read_images(self.folder, name, self.facts["sets"][name])

    def digest(self, *names: str) -> list[str]:
        """As of `Rows`."""
        return [self.facts["sets"][name]["sha256"] for name in names]

    def names(self, kind: str) -> list[str]:
        """As of `Rows`."""
        start = f"data.{kind}."
        return [name.removeprefix(start) for name in self.facts["sets"] if name.startswith(start)]


class Data(Stored):
    """Images brought to the recipe's shape, split, and written down. Every other stage begins with it."""

    kind, version = "data", 9

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        self.sources = _ood_sources(recipe)

    def decides(self) -> dict[str, Any]:
        real = self.sources.get("outliers.real")
        sources = {"data.id": self.recipe.data.id, **self.sources}
        placed = are_deferred(self.recipe.data.shape)
        data = self.recipe.data
        return {
            "data": data.model_dump(exclude={"augment", "hold_out"}),
            **({} if data.id.near_copies is None else {"near": "others"}),  # Other sets are looked at too.
            "real": real.model_dump() if real else None,
            "states": {key: source_state(source, key, placed=placed) for key, source in sources.items()},
        }

    @property
    def groups(self) -> dict[str, dict[str, int]]:
        """As of `Rows`."""
        return self.facts["groups"]

    def uses(self) -> list[tuple[str, str]]:
        return [("datasets", source.source) for source in (self.recipe.data.id, *self.sources.values())]

    def make(self, folder: Path, work: Work) -> dict[str, Any]:
        try:
            return self._written(folder, work)
        except UserError:  # The images of a refused recipe are of no use to the next one.
            for file in (*folder.glob("*.npy"), *folder.glob("*.files.json")):
                file.unlink()
            raise

    def _written(self, folder: Path, work: Work) -> dict[str, Any]:
        data, limit = self.recipe.data, QUICK_IMAGES if self.recipe.quick else None
        distance = data.id.near_copies
        facts: dict[str, Any] = {}
        parts: dict[str, str] = {}
        skipped: dict[str, list[str]] = {}
        seen: dict[str, np.ndarray] = {}

        def keep(key: str, name: str, images: ImageSet) -> np.ndarray:
            """Writes a set down, and what its source has to say of it."""
            facts[name] = write_images(folder, name, images)
            digests = image_digests(images.images)
            write_digests(folder, name, digests)
            skipped.setdefault(key, []).extend(why for why in images.skipped if why not in skipped[key])
            notes.extend(told for note in images.notes if (told := f"{key}: {note}") not in notes)
            return digests

        with work.progress.bar(self.role, 1 + len(self.sources), unit="set") as bar:
            splits = load_id(data)
            notes, warnings = list(splits.notes), list(splits.warnings)
            sets = {name: getattr(splits, name) for name in PARTS}
            if limit:  # The training part is cut by `per_class`.
                sets |= {name: _some(sets[name], limit) for name in PARTS if name != "train"}
            for name, images in sets.items():
                keep("data.id", name, images)
            write_digests(folder, "data.id", splits.digests)
            seen["data.id"] = splits.digests  # What is not learned from is of its classes all the same.
            met = {"data.id": splits.looks} if splits.looks else {}
            if splits.looks:
                used = [sets[name] for name in PARTS if name != "test" and len(sets[name])]
                np.save(folder / _HASHES, np.unique(Looks.of(used).hashes))
            bar.update(1)
            for done, (key, source) in enumerate(self.sources.items(), start=2):
                how: dict[str, Any] = {"seed": data.split_seed, "key": key, "framing": Framing.of(data)}
                how["hashed"] = distance is not None
                if key == "outliers.real":
                    parts[key], images = load_outliers(source, data.shape, **how)
                    notes.append(f"{key}: {_taken(parts[key], source.source)}")
                else:
                    images = load_ood(source, data.shape, **how)
                images = _some(images, limit) if limit else images
                found = keep(key, key, images)
                if same := alike(images.images, found):
                    warnings.append(f"{key}: {same}")
                refuse_shared(key, distinct(found), seen)
                if distance is not None and not _is_noise(source):
                    warnings += near_shared(key, Looks.of([images]), met, distance)
                bar.update(done)
        return {
            "sets": facts, "skipped": {key: why for key, why in skipped.items() if why}, "notes": notes,
            "warnings": warnings, "copies": splits.copies, "groups": splits.groups, "parts": parts,
        }  # fmt: skip

    def says(self) -> list[tuple[str, str]]:
        return [*((text, "") for text in self.facts["notes"]), *super().says()]

    def hashes(self) -> np.ndarray | None:
        """Perceptual hashes of the images that were learned from, chosen on and calibrated on; None where near copies
        do not count."""
        asked = self.recipe.data.id.near_copies is not None
        return np.load(self.folder / _HASHES, allow_pickle=False) if asked else None

    @property
    def warnings(self) -> list[str]:
        """What speaks against the data, and what was left out because it could not be read, a sentence each."""
        return self.facts["warnings"] + [
            f"{key}: {len(why)} files cannot be read and are left out: "
            + "; ".join(why[:5])
            + ("; ..." if why[5:] else "")
            for key, why in self.facts["skipped"].items()
        ]


def _taken(part: str, source: str) -> str:
    """Which part of its source real outliers are."""
    if part == "all":
        return f"the images of {source!r}, which has one part"
    return f"the {'training' if part == 'train' else part} part of {source!r}"


def refuse_shared(key: str, digests: np.ndarray, seen: dict[str, np.ndarray]) -> None:
    """Refuses an image on two sides of what is compared; test sets may share images with one another.

    Args:
        key: The recipe's, of a set.
        digests: Of its different images.
        seen: Those of the sets before it, by key; this one is added.

    Raises:
        UserError: an image is in one of them that may not be.
    """
    for other, theirs in seen.items():
        together = len(distinct(np.concatenate([digests, theirs])))
        shared, reason = len(digests) + len(theirs) - together, _forbidden(key, other)
        if shared and reason:
            raise UserError(
                f"{key}: {shared} of its {len(digests)} different images are in {other} as well, so {reason}; remove "
                "them from one, or give the two different classes"
            )
    seen[key] = digests


def near_shared(key: str, looks: Looks, met: dict[str, Looks], distance: int) -> list[str]:
    """A warning for each set that holds near copies of images of this one and, by `refuse_shared`, may not hold equals.

    Args:
        key: The recipe's, of a set.
        looks: What its images show.
        met: Those of the sets before it, by key; this one is added.
        distance: Bits in which the perceptual hashes of near copies differ at most.
    """
    told = []
    for other, theirs in met.items():
        reason = _forbidden(key, other)
        near = near_others(looks.hashes, theirs.hashes, distance) if reason else np.empty(0, np.int64)
        if len(rows := np.flatnonzero(near >= 0)):
            pairs = [(looks.files[row], theirs.files[near[row]]) for row in rows]
            such = some_of([f"{clean(mine)} like {clean(its)}" for mine, its in pairs if mine and its][:3])
            told.append(
                f"{key}: {len(rows):,} of its {len(near):,} images are near copies of some in {other} (perceptual "
                f"hashes that differ in at most {distance} bits{such and f', such as {such}'}), so {reason}; look at "
                "them, and take them out of one"
            )
    met[key] = looks
    return told


def _is_noise(source: Any) -> bool:
    """Whether a source draws what shows nothing, which no image is a copy of."""
    return registry.find("datasets", source.source).module.endswith(".sources.noise")


def _forbidden(key: str, other: str) -> str:
    """Why two sets may not share an image; "" where they may."""
    if key == PICTURES and other in ("data.id", "outliers.real"):
        return ""
    if other == "data.id":
        return "the detector would be wrong to flag them, and wrong to accept them"
    if key == PICTURES or key.startswith("outliers."):
        if other.startswith("data.validation_ood."):
            return "choices would be made on images that the classifier was trained on"
        return "the detector would be tested on images that it was trained on"
    if key.startswith("data.validation_ood."):
        return "" if other.startswith("data.validation_ood.") else "choices would be made on test images"
    return ""


def _ood_sources(recipe: Recipe) -> dict[str, Any]:
    """The out-of-distribution sets by their recipe keys."""
    sources = {f"data.{kind}.{name}": s for kind in KINDS for name, s in getattr(recipe.data, kind).items()}
    if recipe.outliers.real is not None and "real" in recipe.outliers.use:
        sources["outliers.real"] = recipe.outliers.real
    if recipe.data.pictures is not None:
        sources[PICTURES] = recipe.data.pictures
    return sources


def _some(images: ImageSet, most: int) -> ImageSet:
    if len(images) <= most:
        return images
    return images.take(np.sort(np.random.default_rng(0).choice(len(images), most, replace=False)))
