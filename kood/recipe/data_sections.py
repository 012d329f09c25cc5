"""The tables of a recipe that say which images there are, and what each set of them is for."""

import itertools
import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from kood import registry
from kood.recipe.sections import SLUG, Seed
from kood.section import Augmentations, ImageShape, ImageSource, Positive, Section, Share

__all__ = ["RESERVED", "Data", "Group", "HoldOut", "IdSource"]

Byte = Annotated[int, Field(ge=0, le=255)]

#: Names that `report.json` and the evaluation use beside those of the data sets.
RESERVED = frozenset({"id", "near", "far", "validation", "calibration"})


class Group(Section):
    """What images have in common that stay together in the split: one patient, one video, one burst.

    Attributes:
        folder: The name of the N-th folder: below the class folder for the source `folder`, counted from `root` for an
            `image_list` and a `table`.
        pattern: A regular expression; what its first group, or else the whole of it, matches in a file's path.
        column: The value in this column of a `table`.
    """

    folder: Annotated[int, Field(ge=1, le=100)] | None = None
    pattern: str | None = None
    column: str | None = None

    @model_validator(mode="after")
    def _check(self):
        found = [f"{key} = {value!r}" for key, value in self.model_dump(exclude_none=True).items()]
        if len(found) != 1:
            raise ValueError(f"found {' and '.join(found) or 'nothing'}; give one of folder, pattern and column")
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            raise ValueError(f"pattern: {self.pattern!r} is no regular expression ({error})") from error
        return self


class IdSource(ImageSource):
    """The in-distribution set and its split.

    Attributes:
        validation: Share of the images that are not tested on, on which the headline score is chosen.
        calibration: Share of these on which the threshold is set.
        test: Share of all images to test on, where the set has no test split of its own.
        stratify: Whether each part has its share of every class. Where that is fewer than five images, chance rounds
            it up or down, so that all rare classes together have their share; one image of each is tested on in any
            case. False for classes of an image or two, whose images are dealt out all together; those that no training
            image is left of are named.
        per_class: At most so many training images of each class.
        group: What images have in common that stay together in one part of the split. Intervals count images as
            independent all the same, and the report says so.
        near_copies: Take images for copies of one another whose perceptual hashes (pHash, 64 bits) differ in at most so
            many bits: the same picture saved at another size, quality or brightness; 4 is cautious. Hashes are of whole
            pictures, whatever `resize` leaves of them. Not given, only images with the same pixels are copies. Copies
            stand in one part of the split. Where other sets, or what `kood calibrate` is given, hold near copies of
            these images, a warning says so; equal ones are refused or left out in either case.
    """

    validation: Share = 0.1
    calibration: Share = 0.1
    test: Share = 0.2
    stratify: bool = True
    per_class: Positive | None = None
    group: Group | None = None
    near_copies: Annotated[int, Field(ge=0, le=10)] | None = None

    @model_validator(mode="after")
    def _leave_training_images(self):
        if self.validation + self.calibration >= 1.0:
            raise ValueError("validation + calibration must leave some images to train on (sum below 1)")
        if self.calibration == 0.0:
            raise ValueError("calibration must be above 0: the threshold is set on these images")
        return self


#: A class by its name, of which a recipe may write a number as one.
ClassName = Annotated[str, BeforeValidator(lambda name: str(name) if type(name) is int else name)]


class HoldOut(Section):
    """Classes that are held out in turn: an estimate of how images of classes like these, but none of them, are told.

    For each fold the classifier is trained again without some classes, which are then tested on as near
    out-of-distribution images, but for those with the pixels of some of a class that stays. The published one is
    trained on all.

    Attributes:
        classes: Share of the classes that each fold holds out, one at least, where `folds` is a number.
        folds: How many, their classes drawn so that each is held out about as often as any other; or the classes of
            each, by name.
    """

    classes: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.3
    folds: int | list[list[ClassName]] = 5

    @model_validator(mode="after")
    def _check(self):
        if not (1 <= self.folds <= 100 if isinstance(self.folds, int) else self.folds and all(self.folds)):
            raise ValueError(f"folds = {self.folds}: give a number from 1 to 100, or a list of lists of class names")
        return self

    @property
    def asked(self) -> int:
        """How many folds are asked for; there are fewer where not so many differ."""
        return self.folds if isinstance(self.folds, int) else len(self.folds)

    def held(self, classes: int) -> int:
        """How many of so many classes each fold holds out, where they are drawn."""
        return max(1, round(self.classes * classes))


class Data(Section):
    """The images of a run.

    Attributes:
        image_shape: (height, width, channels); every image is brought to it. Channels are 1 or 3.
        ground: What is seen through transparency and around what is padded: "white", "black", "grey", or [red, green,
            blue] of 0..255; the served model lays its images over the same.
        resize: What becomes of images of other proportions than `image_shape`, in the served model too: "stretch";
            "crop": the shorter side fits, and of the longer one the middle is kept; "pad": the longer side fits, and
            the ground is put around the image.
        antialias: Whether images that are made smaller are antialiased, in the served model too. Only for a network
            that was trained without, as on what Keras's `image_dataset_from_directory` loads.
        id: The in-distribution set.
        near: Out-of-distribution test sets that resemble it, by name.
        far: Out-of-distribution test sets that do not.
        validation_ood: Out-of-distribution sets to choose on, never to report on: the headline score and, by whoever
            compares recipes, the settings. Not given, choices are made on pixel mixups and patch shuffles of validation
            images and on fractals, dead leaves and Fourier noise that kood draws, at most 500 of each.
        hold_out: Classes of the in-distribution set to hold out in turn; not given, none are.
        augment: Augmentations of the training images, in order (`kood list augmentations`).
        pictures: What the augmentation `pixmix` mixes into images: fractals, say, or anything rich in structure that is
            in no test set. Drawn by kood if not given.
        split_seed: Which images fall into which split; the same for every seed, so that cells compare.
    """

    image_shape: ImageShape
    ground: Literal["white", "black", "grey"] | Annotated[list[Byte], Field(min_length=3, max_length=3)] = "white"
    resize: Literal["stretch", "crop", "pad"] = "stretch"
    antialias: bool = True
    id: IdSource
    near: dict[str, ImageSource] = {}
    far: dict[str, ImageSource] = {}
    validation_ood: dict[str, ImageSource] = {}
    hold_out: HoldOut | None = None
    augment: Augmentations = []
    pictures: ImageSource | None = None
    split_seed: Seed = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """`image_shape` as a tuple."""
        height, width, channels = self.image_shape
        return height, width, channels

    @model_validator(mode="after")
    def _check(self):
        if self.image_shape[2] not in (1, 3):
            raise ValueError(f"image_shape: channels must be 1 (grey) or 3 (colour), found {self.image_shape[2]}")
        kinds = {"near": self.near, "far": self.far, "validation_ood": self.validation_ood}
        for name in itertools.chain(*kinds.values()):
            if name in RESERVED or not SLUG.fullmatch(name):
                raise ValueError(f"{name!r} cannot name a data set: letters, digits, '.', '_', '-', and none of "
                                 f"{', '.join(sorted(RESERVED))}")  # fmt: skip
        for one, other in itertools.combinations(kinds, 2):
            both = set(kinds[one]) & set(kinds[other])
            if both:
                raise ValueError(
                    f"{', '.join(sorted(both))} stands under both {one} and {other}; give one of them another name"
                )
        own = [("pictures", self.pictures)] if self.pictures else []
        for where, source in [("id", self.id), *own, *itertools.chain(*(sets.items() for sets in kinds.values()))]:
            registry.find("datasets", source.source, f"the source of {where!r}")
        return self
