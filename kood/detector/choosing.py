"""Which score decides, and by which options: chosen on validation images."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kood import metrics, specs
from kood.data.augment.pictures import pictures
from kood.data.image_set import ImageSet
from kood.errors import UserError
from kood.outliers.patch_shuffle import shuffled
from kood.outliers.pixel_mixup import PixelMixup
from kood.outputs import Outputs, score_rows
from kood.scorer import Scorer
from kood.scores.streaming import spread

__all__ = [
    "MOST_PROXIES", "PROXIES", "Choice", "Measured", "by_chance", "choose", "mean_auroc", "proxies", "proxies_of",
    "tune", "validation_images",
]  # fmt: skip

#: Validation images from which on a score is chosen among many by more than chance.
ENOUGH = 50
#: What stands in for out-of-distribution validation images where a recipe names none: near ones, made of the validation
#: images, and far ones, drawn. Without the latter scores were chosen that told far images little better than chance.
PROXIES = {"pixel_mixup": "pixel mixups", "patch_shuffle": "patch shuffles", "pictures": "drawn pictures"}
#: Images of each at most: the standard error of an AUROC is below .02 then, and each is a pass through the classifier.
MOST_PROXIES = 500


@dataclass
class Measured:
    """What a classifier and its scores say of image sets.

    Attributes:
        outputs: {set: the classifier's outputs}.
        scores: {set: {score: (N,)}}.
        warnings: What could not be measured, and why.
        labels: {set: (N,)}, the classes of those sets that have any.
        notes: What could not be fitted of what nobody named, and why.
    """

    outputs: dict[str, Outputs]
    scores: dict[str, dict[str, np.ndarray]]
    warnings: list[str]
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def given(self, where: str) -> np.ndarray:
        """What the images of a set are labelled as, (N,)."""
        return self.outputs[where]["logits"].argmax(axis=1)

    def correct(self, where: str) -> np.ndarray:
        """Which images of a set are labelled rightly, (N,) bool."""
        return self.given(where) == self.labels[where]

    def of(self, name: str, sets: Iterable[str]) -> dict[str, np.ndarray]:
        """One score's values, by set."""
        return {where: self.scores[where][name] for where in sets}


@dataclass
class Choice:
    """Which of several scores decides, and why.

    Attributes:
        by: {score: mean AUROC on validation images}; empty where it was named and not chosen.
        sets: What validation images were told from.
        images: How many images the smallest of the sets has that it was chosen on; 0 where none are known of.
        doubt: What speaks against this score on such images, "" where nothing does.
    """

    score: str
    by: dict[str, float] = field(default_factory=dict)
    sets: list[str] = field(default_factory=list)
    images: int = 0
    doubt: str = ""

    @property
    def doubts(self) -> list[str]:
        """A warning where so few images chose that chance did, and what speaks against the score."""
        own = [f"{self.score}: {self.doubt}"] if self.doubt else []
        if not self.images:
            return own
        instead = "name a score that is good on most data, such as energy"
        return by_chance(f"{self.score} was chosen", len(self.by), "scores", self.images, instead) + own

    def told(self) -> list[str]:
        """Which score decides and why, and what there is to doubt; a sentence each."""
        if not self.by:
            return [f"Score: {self.score}"]
        others = sorted(self.by, key=lambda name: -self.by[name])
        beside = ", ".join(f"{name} {self.by[name]:.3f}" for name in others if name != self.score)
        # Images of the user's own may be called as one of them is.
        made = {*list(PROXIES)[1:]} <= {*self.sets} <= {*PROXIES}
        names = [PROXIES[name] if made else name for name in self.sets]
        apart = " and ".join([", ".join(names[:-1]), *names[-1:]] if names[1:] else names)
        return [
            f"Score: {self.score}, which best tells validation images from {apart} "
            f"(mean AUROC {self.by[self.score]:.3f}" + (f"; {beside})" if beside else ")"),
            *self.doubts,
        ]


def by_chance(chosen: str, tried: int, what: str, images: int, instead: str) -> list[str]:
    """A warning where several things were tried on so few images, in the smallest set, that chance chose among them."""
    if tried < 2 or images >= ENOUGH:
        return []
    return [
        f"{chosen} from {tried} {what} on {images} images, where chance decides; give {ENOUGH} or more, or {instead}"
    ]


def validation_images(validation: ImageSet, ood: dict[str, ImageSet] | None, seed: int) -> dict[str, ImageSet]:
    """What choices are made on.

    Args:
        ood: Out-of-distribution ones by name; where there are none, those of `proxies`, made of the former.

    Returns:
        Sets by name, "validation" being the in-distribution images.
    """
    return {"validation": validation, **(ood or proxies(validation, seed))}


def proxies_of(validation: ImageSet) -> list[str]:
    """Which of `PROXIES` are made of validation images: pixel mixup is of two classes."""
    mixes = len(np.unique(_thinned(validation).known_labels)) > 1
    return [name for name in PROXIES if mixes or name != "pixel_mixup"]


def proxies(validation: ImageSet, seed: int) -> dict[str, ImageSet]:
    """Those of `proxies_of`, of validation images: one image of each, at most `MOST_PROXIES` evenly spaced.

    "pictures" are the fractals, dead leaves and Fourier noise of `kood.data.augment.pictures`, as many where there are.
    """
    rng, made, names = np.random.default_rng([seed, 1]), {}, proxies_of(validation)
    validation = _thinned(validation)
    if "pixel_mixup" in names:
        made["pixel_mixup"] = ImageSet(PixelMixup().draw(len(validation), rng, validation).images)
    drawn = pictures(*validation.images.shape[1:])
    some = spread(len(drawn), len(validation))
    return {**made, "patch_shuffle": ImageSet(shuffled(validation.images, rng=rng)), "pictures": ImageSet(drawn[some])}


def _thinned(validation: ImageSet) -> ImageSet:
    if len(validation) <= MOST_PROXIES:
        return validation
    return validation.take(np.linspace(0, len(validation) - 1, MOST_PROXIES).astype(int))


def choose(measured: Measured, scorers: Mapping[str, Scorer], inside: str, outside: Sequence[str]) -> Choice:
    """The score with the largest mean AUROC; of equals, one that serves without a fitted state.

    Args:
        inside: The in-distribution set.
        outside: The others.
    """
    by = {name: mean_auroc(measured.scores[inside][name], measured.of(name, outside).values()) for name in scorers}
    best = max(by, key=lambda name: (by[name], not scorers[name].is_fitted))
    images = min(len(measured.scores[where][best]) for where in (inside, *outside))
    return Choice(best, by, list(outside), images)


def mean_auroc(inside: np.ndarray, outside: Iterable[np.ndarray]) -> float:
    """Unweighted mean over out-of-distribution sets of the AUROC.

    Args:
        inside: (N,) the scores of in-distribution images.
        outside: Those of each set.
    """
    return float(np.mean([metrics.auroc(*metrics.joined(inside, others)) for others in outside]))


def tune(
    names: Iterable[str],
    fit_outputs: Outputs,
    labels: np.ndarray,
    head: Any,
    validation: Mapping[str, Outputs],
    validation_labels: np.ndarray,
    batch_size: int,
) -> tuple[dict[str, str], dict[str, Any]]:
    """Chooses the options of scores as OpenOOD does: every combination of their usual values is tried.

    Args:
        names: Specs. One that gives an option is left as it is, and so is a score without usual values.
        fit_outputs: The classifier's outputs for the training images, which fitted scores are fitted on.
        labels: (N,) the classes of these.
        validation: {set: the classifier's outputs}, of the in-distribution images "validation" and at least one
            out-of-distribution set, with what perturbed logits the settings ask for.
        validation_labels: Classes of the in-distribution ones, on which the scores are fitted that ask for images that
            nothing was trained on.
        batch_size: Rows that are scored at a time.

    Returns:
        {name: the spec with the highest mean AUROC over the sets, of equals the first, the defaults before all}, and
        what the report tells of it, {name: {"chosen": spec, "tried": {spec: mean AUROC}}}. A setting that the images
        do not determine, or that is NaN for one of them, is not tried; a score whose settings all are that is not in
        either.
    """
    told: dict[str, Any] = {}
    for name in names:
        tried: dict[str, float] = {}
        settings = list(specs.settings(name))
        for setting in settings if len(settings) > 1 else ():
            try:
                scorer = Scorer(setting)
                unseen = validation["validation"], validation_labels
                scorer.fit(*(unseen if scorer.takes_unseen else (fit_outputs, labels)), head)
            except UserError:
                continue
            scores = {where: score_rows(scorer, outputs, batch_size) for where, outputs in validation.items()}
            if not any(np.isnan(values).any() for values in scores.values()):
                tried[setting] = mean_auroc(scores.pop("validation"), scores.values())
        if tried:
            told[name] = {"chosen": max(tried, key=lambda one: tried[one]), "tried": tried}
    return {name: one["chosen"] for name, one in told.items()}, told
