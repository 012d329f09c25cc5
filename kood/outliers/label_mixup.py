"""Images of a diffusion model that was asked for several classes at once."""

import shutil
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from kood.errors import UserError
from kood.outliers import OutlierSource, Rows
from kood.outliers.pairs import Alpha
from kood.section import Sampling

__all__ = ["LabelMixup"]

Confidence = Annotated[float, Field(ge=0.0, le=1.0)]

#: A filter may draw so many times the images it is to keep.
MOST_DRAWN = 20
#: Rows and columns of the sheet to look at.
SHEET = 6, 7


class LabelMixup(Sampling, OutlierSource):
    """Outliers sampled from the diffusion model under a mixture of class conditions.

    Attributes:
        classes: How many classes a mixture has, where no groups are named.
        pairs: Which classes meet, where no groups are named: any, at random ("random"); every pair equally often
            ("all"); or the pairs that a classifier trained on real images confuses most ("confused").
        groups: The classes to mix, by number or name, two or more in each group; a mixture draws one group.
        weight: Share of the first class: a number, "uniform", or "beta" (Beta(alpha, alpha)). With more than two
            classes the rest is shared out equally; "uniform" and "beta" then mean Dirichlet weights. With an image
            start the first class is the image's own; 0 then leaves only the others, and a number below 0 turns away
            from it besides.
        alpha: Parameter of the Beta or Dirichlet distribution.
        mix: Mix the label vectors ("condition") or the network's predictions under each label ("prediction").
        push: How far each step moves the image, in units of [-1, 1], away from what a classifier trained on real images
            knows (classifier guidance along its energy); 0 is none.
        confidence: [low, high]: keep only images whose most probable class, by a classifier trained on real images, has
            a probability in this range; more are drawn until there are enough.
    """

    resembles, version = "pixel_mixup", 2

    classes: Annotated[int, Field(ge=2, le=100)] = 2
    pairs: Literal["random", "all", "confused"] = "random"
    groups: list[Annotated[list[int | str], Field(min_length=2)]] | None = Field(default=None, min_length=1)
    weight: Annotated[float, Field(ge=-2.0, lt=1.0)] | Literal["uniform", "beta"] = 0.5
    alpha: Alpha = 1.0
    mix: Literal["condition", "prediction"] = "condition"
    push: Annotated[float, Field(ge=0.0, le=2.0)] = 0.0
    confidence: Annotated[list[Confidence], Field(min_length=2, max_length=2)] | None = None

    @model_validator(mode="after")
    def _check(self):
        for group in self.groups or []:
            if len({str(name) for name in group}) != len(group):
                raise ValueError(f"groups: {group} names a class twice")
        if self.groups is not None and self.pairs != "random":
            raise ValueError(f"pairs = {self.pairs!r} and groups both say which classes meet; keep one")
        if self.pairs != "random" and self.classes != 2:
            raise ValueError(f"pairs = {self.pairs!r} mixes two classes, but classes is {self.classes}")
        if self.weight == 0.0 and self.start != "image":
            raise ValueError("weight = 0 leaves the first class out; that is meant for start = 'image'")
        if self.confidence is not None and self.confidence[0] >= self.confidence[1]:
            raise ValueError(f"confidence: [low, high] needs low < high, found {self.confidence}")
        return self

    @property
    def needs(self):
        """Without the judge where it has no say, and without validation images where nobody is asked about them."""
        asked = {"judge": self.confidence is not None or self.push > 0 or self._asks, "validation": self._asks}
        return tuple(name for name in super().needs if asked.get(name, True))

    @property
    def _asks(self):
        return self.pairs == "confused" and self.groups is None

    def smoke(self):
        """Few images in few steps, and all of them: the judge of a smoke run knows nothing."""
        everything = {"confidence": [0.0, 1.0]} if self.confidence else {}
        return {**super().smoke(), "sampling_steps": min(self.sampling_steps, 4), **everything}

    def check(self, recipe):
        """Refuses more steps than the schedule has, more classes than there are, numbers of classes where folds hold
        some out, and targets that are no shares."""
        self.check_steps("outliers.label_mixup", recipe.diffusion.num_steps)
        if self.push and recipe.drawn_shape != recipe.data.shape:
            raise ValueError(
                f"outliers.label_mixup.push = {self.push:g} moves images of data.image_shape, and those that are drawn "
                "are smaller; remove it, or diffusion.image_shape"
            )
        numbered = any(isinstance(one, int) for group in self.groups or [] for one in group)
        if numbered and recipe.data.hold_out is not None:
            raise ValueError(
                "outliers.label_mixup.groups: name the classes, since without those that data.hold_out holds out a "
                "number is another class's"
            )
        classes = recipe.data.id.classes
        if classes is not None and self.classes > len(classes):
            raise ValueError(f"outliers.label_mixup.classes is {self.classes}, but data.id.classes has {len(classes)}")
        if recipe.outliers.target == "parents" and not isinstance(self.weight, str) and self.weight <= 0:
            raise ValueError(
                "outliers: target = 'parents' needs label mixups of two classes or more, but label_mixup.weight = "
                f"{self.weight:g}"
            )

    def check_images(self, train, validation):
        """Refuses classes that are not there, and to ask about validation images where there are none."""
        if self.classes > len(train.class_names):
            raise UserError(f"outliers.label_mixup.classes is {self.classes}, but data.id has {len(train.class_names)}")
        self._groups(train.class_names)
        if self._asks and len(validation) == 0:
            raise UserError(
                "outliers.label_mixup.pairs = 'confused' asks validation images; raise data.id.validation or add images"
            )

    def _groups(self, class_names):
        from kood.data.classes import class_indices

        try:
            return [class_indices(group, class_names) for group in self.groups] if self.groups else None
        except ValueError as error:
            raise UserError(f"outliers.label_mixup.groups: {error}") from error

    def draw(self, count, rng, train, denoiser, seeds, folder, show, over, judge=None, validation=None):
        """Samples images, and keeps those that the judge is as unsure of as the recipe asks.

        Raises:
            UserError: too few of them are.
        """
        from kood.diffusion.collected import Collected
        from kood.diffusion.label_mixup import choose_classes, condition_rows, confusion
        from kood.diffusion.sampling import Start, draw_rows, image_sampler, resized

        seed, push, shape = seeds("label_mixup"), self._push(denoiser, judge), denoiser.image_shape
        sampler = image_sampler(denoiser, shape, self, seeds("label_mixup noise"), mix=self.mix, push=push)
        classes, groups, keeps = len(train.class_names), self._groups(train.class_names), self._filter(judge)
        confused = confusion(judge.posteriors(validation.images), validation.known_labels) if self._asks else None
        made = Collected(count, show, train.images.shape[1:])
        if self.start == "image":
            train = resized(train, shape)
        for number in range(MOST_DRAWN if keeps else 1):
            draws, start = np.random.default_rng([seed, number]), None
            chosen = choose_classes(
                count, classes, classes=self.classes, pairs=self.pairs, groups=groups, confused=confused, rng=draws
            )
            condition = condition_rows(chosen, classes, weight=self.weight, alpha=self.alpha, rng=draws)
            if self.start == "image":
                rows = draw_rows(train.known_labels, chosen[:, 0], np.random.default_rng([seed, number, 1]))
                start = Start(train.images, rows)
            first = number * sampler.blocks_of(count)
            shards = sampler.shards(folder, condition, start=start, first_block=first, progress=made.show_part)
            if made.take(shards, condition, keeps=keeps, over=over):
                break
        else:
            shutil.rmtree(folder)
            raise UserError(
                f"outliers.label_mixup.confidence = {self.confidence} kept {made.kept} of {made.drawn} images "
                f"({made.kept / made.drawn:.1%}), but {count} are wanted; widen the range, or lower "
                "outliers.label_mixup.count",
                exit_code=1,
            )
        sheet = self._sheet(sampler, train, seed)
        facts, shares = made.facts, np.concatenate(made.conditions)
        if shape != made.image_shape:
            facts["enlarged"] = [list(shape[:2]), list(made.image_shape[:2])]
        # Less than nothing of a class, which an image is turned away from, is no share.
        return Rows(made.blocks(), made.kept, shares if (shares >= 0).all() else None, facts, sheet)

    def notes(self, facts):
        """How the images were sampled, and what the judge left out."""
        start = f"from training images noised to level {self.level}" if self.start == "image" else "from noise"
        notes = [
            f"Label mixup, {start}: {self.sampler}, {self.sampling_steps} steps, guidance {self.guidance:g}, "
            f"{self.mix}s mixed; {facts['images']:,} images at {facts['images_per_second']:,.3g} images/s."
        ]
        if "enlarged" in facts:
            drawn, shown = (f"{high} x {wide}" for high, wide in facts["enlarged"])
            notes.append(f"They were drawn at {drawn} pixels and enlarged to {shown}, so that they are smooth.")
        if self.confidence is not None:
            notes.append(
                f"Of {facts['drawn']:,} drawn, {facts['drop_rate']:.1%} were dropped: a classifier trained on real "
                f"images gave their most probable class less than {self.confidence[0]:g} or more than "
                f"{self.confidence[1]:g}."
            )
        return notes

    def _filter(self, judge):
        """The function of images that says which are kept, None where all are."""
        if self.confidence is None:
            return None
        low, high = self.confidence

        def keeps(images):
            most = judge.posteriors(images).max(axis=1)
            return (most >= low) & (most <= high)

        return keeps

    def _push(self, denoiser, judge):
        """The push away from what the judge knows, None where there is none."""
        from kood.diffusion.label_mixup import away_from

        return away_from(judge.energy_gradient(), denoiser.alpha_bar, self.push) if self.push else None

    def _sheet(self, sampler, train, seed):
        """Images on their way from one class to another, to look at."""
        from kood.data.images import quantize
        from kood.diffusion.label_mixup import interpolation
        from kood.diffusion.sampling import same_start

        rng, classes = np.random.default_rng([seed, 0, 2]), len(train.class_names)
        pairs = np.stack([rng.permutation(classes)[:2] for _ in range(SHEET[0])])
        conditions = interpolation(classes, pairs, SHEET[1])
        flat, how = same_start(conditions, sampler.image_shape, rng, train if self.start == "image" else None)
        images = quantize(sampler.images(flat, **how))
        return images.reshape(*conditions.shape[:2], *images.shape[1:]), conditions
