"""A classifier and its scores, over images of any kind."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from kood import specs
from kood.attached import Adapted
from kood.data.copies import image_digests
from kood.data.image_set import ImageSet
from kood.data.rules import Resize
from kood.detector.choosing import Choice, Measured, by_chance, choose, tune
from kood.detector.images import are_files, parted
from kood.detector.passing import Known, unreadable
from kood.detector.reading import COMPILED, Reading
from kood.errors import UserError
from kood.outputs import Outputs, forward_of, rows_of, run_over, score_rows
from kood.scorer import Scorer, applicable, linear_weights, rehearse
from kood.scores import ON_REQUEST

__all__ = ["Measuring"]

#: Where it is kept which scores could not be fitted that nobody named: none of them is missed.
_UNASKED = "unasked"


class Measuring(Reading):
    """A classifier and its scores: images of any kind in, scores out. `Detector` is this with a decision.

    The arguments are those of `Detector`, and `key`, what messages call the scores.
    """

    def __init__(
        self,
        model: keras.Model | str | Path,
        score: str = "auto",
        class_names: Sequence[str] | None = None,
        features: str | None = None,
        preprocess: Any = None,
        *,
        scores: Sequence[str] | Literal["all"] | None = None,
        image_shape: tuple[int, int, int] | None = None,
        resize: Resize = "stretch",
        antialias: bool = True,
        batch_size: int = 64,
        key: str = "score",
    ):
        super().__init__(
            model, class_names, features, preprocess, image_shape=image_shape, resize=resize, antialias=antialias,
            batch_size=batch_size,
        )  # fmt: skip
        self.key = key
        #: The score that decides; None where `fit` is to choose it, as `chooses` says.
        self.choice: Choice | None = None if score == "auto" else Choice(Scorer(score, key=key).name)
        #: Which options of scores were chosen, as `kood.detector.choosing.tune` tells it.
        self.tuned: dict[str, Any] = {}
        #: What could not be measured or was left out, a sentence each, by what was done then.
        self.doubts: dict[str, list[str]] = {}
        #: What speaks against each fitted score that is doubted on such images.
        self.doubted: dict[str, str] = {}
        asked = [*([] if scores is None or scores == "all" else scores), *([] if score == "auto" else [score])]
        #: The scores that were asked for by name: one that so few images cannot fit is refused, and of others left out;
        #: one that only what the classifier says makes impossible is left out where another remains to decide.
        self.named = list(dict.fromkeys(Scorer(name, key=self.key).name for name in asked))
        self.chooses, self.every = self.choice is None, self._wanted(scores == "all" or not asked)
        self.scorers = {name: Scorer(name, key=self.key) for name in self.every}

    def _wanted(self, every: bool) -> list[str]:
        """The scores to measure, in the order of their room; what this classifier cannot give is refused."""
        scorers = {name: Scorer(name, key=self.key) for name in self.named}
        more = {"cosines": self.classifier.is_angular, "rotations": getattr(self.classifier, "rotation", 0.0)}
        has = {"features", "logits", *(name for name, there in more.items() if there)}
        has |= {*linear_weights(self.classifier.head)}
        possible = applicable(has)
        asked = {output for one in scorers.values() if one.perturbation for output in one.inputs.values()}
        impossible = [name for name, one in scorers.items() if not one.can_take(has | asked)]
        if impossible:
            raise UserError(
                f"{self.key}: this head cannot give {', '.join(impossible)}; it can give {', '.join(possible)}"
            )
        others = [name for name in possible if name not in ON_REQUEST or name in self.named] if every else []
        return list(dict.fromkeys([*others, *self.named]))

    # What there is to say of it.

    @property
    def warnings(self) -> list[str]:
        """What could not be measured or was left out where it was fitted and calibrated, a sentence each."""
        return [text for where, texts in self.doubts.items() if where != _UNASKED for text in texts]

    @property
    def score(self) -> str:
        """The score that decides.

        Raises:
            UserError: none was named, and `fit` has not chosen one.
        """
        if self.choice is None:
            raise UserError('score = "auto" is chosen by fit(images); call it first, or name a score')
        return self.choice.score

    @property
    def scorer(self) -> Scorer:
        """The score that decides, as a function of the classifier's outputs."""
        return self.scorers[self.score]

    @property
    def told(self) -> list[str]:
        """What was found of the model, which score decides and why, what could not be measured; a sentence each."""
        found = list(self.classifier.taken.way.told) if isinstance(self.classifier, Adapted) else []
        return [*found, *(self.choice.told() if self.choice else []), *self.warnings,
                *self.doubts.get(_UNASKED, [])]  # fmt: skip

    @functools.cached_property
    def _plain(self) -> Callable:
        """What scores are fitted on: one pass of each image, but for those that ask for moved images."""
        return self._fitting(self.scorers)

    def _fitting(self, names: Iterable[str]) -> Callable:
        scorers = {name: Scorer(name, key=self.key) for name in names}
        return forward_of(self.classifier, [k for k, one in scorers.items() if one.is_fitted and one.perturbation])

    def fit_scores(
        self, train: ImageSet, unseen: ImageSet | None = None, progress: Callable[[float], None] | None = None
    ) -> None:
        """Fits the scores that have a state on training images; looks at none where there is no such score.

        Args:
            unseen: Known images that nothing was trained on, for the scores that ask for such; without them these
                are fitted on the training images too.
            progress: Called with the share of the scores that are done.

        Raises:
            UserError: a named score that so many images cannot fit; the one that decides, or the last, that cannot be
                fitted to what the classifier says of them.
        """
        if any(scorer.is_fitted for scorer in self.scorers.values()):
            self._fit(self._set(train, self._plain), train.known_labels, unseen, progress)

    def tune_scores(self, train: ImageSet, held: Mapping[str, ImageSet]) -> dict[str, Outputs]:
        """Chooses the options of scores that have usual values, and then fits as `fit_scores` does.

        Args:
            train: What fitted scores are fitted on.
            held: The in-distribution set "validation" and others that are to be told from it.

        Returns:
            The outputs of these sets, which need not pass the classifier again.

        Raises:
            UserError: as `fit_scores`.
        """
        names = list(self.scorers)
        settings = [one for name in names for one in specs.settings(name)]
        forward, plain = forward_of(self.classifier, settings), self._fitting(settings)
        found = {where: run_over(forward, of.images, self.batch_size) for where, of in held.items()}
        learned = self._set(train, plain) if any(scorer.is_fitted for scorer in self.scorers.values()) else {}
        labels, head = train.known_labels, self.classifier.head
        chosen, self.tuned = tune(names, learned, labels, head, found, held["validation"].known_labels, self.batch_size)
        tried = sum(len(one["tried"]) for one in self.tuned.values())
        options, few = f"the options of {', '.join(self.tuned)} were chosen", min(map(len, held.values()))
        self.doubts["tune"] = by_chance(options, tried, "settings", few, "leave them as they are: tune = false")
        self.scorers = {chosen.get(name, name): Scorer(chosen.get(name, name), key=self.key) for name in names}
        self.named = [chosen.get(name, name) for name in self.named]
        if self.choice is not None:
            self.choice = Choice(chosen.get(self.choice.score, self.choice.score))
        for name in COMPILED:
            self.__dict__.pop(name, None)
        if learned:
            self._fit(learned, labels, held.get("validation"))
        return found

    def _fit(
        self,
        outputs: Outputs,
        labels: np.ndarray | None,
        unseen: ImageSet | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        # An image without a label counts as what it is labelled as.
        given = outputs["logits"].argmax(axis=1) if labels is None else labels
        learned = others = outputs, given
        if unseen is not None and len(unseen) and any(one.takes_unseen for one in self.scorers.values()):
            others = self._set(unseen, self._plain), unseen.known_labels
        names, told = list(self.scorers), self.doubts.setdefault("fit", [])
        unasked = self.doubts[_UNASKED] = list[str]()
        self.doubted = {}
        for done, name in enumerate(names, start=1):
            try:
                scorer = self.scorers[name]
                fitted_to = others if scorer.takes_unseen else learned
                scorer.fit(*fitted_to, self.classifier.head)
                if why := scorer.doubt(fitted_to[1]):
                    self.doubted[name] = why
            except UserError as error:
                decides = self.choice is not None and name == self.choice.score
                wrong = name in self.named and self._is_hopeless(name, outputs, fitted_to[1])
                if decides or wrong or len(self.scorers) == 1:
                    self.scorers = {one: Scorer(one, key=self.key) for one in names}  # Those before it count no more.
                    raise
                del self.scorers[name]
                (told if name in self.named else unasked).append(str(error))
            if progress is not None:
                progress(done / len(names))
        # Nobody asked for the others; `choose` tells what speaks against one that it takes.
        asked = {name: why for name, why in self.doubted.items() if name in self.named}
        for why in dict.fromkeys(asked.values()):
            told.append(f"{', '.join(name for name in asked if asked[name] == why)}: {why}")

    def _is_hopeless(self, name: str, outputs: Outputs, labels: np.ndarray) -> bool:
        """Whether so many images of each class cannot fit a score, whatever the classifier says of them."""
        counts = tuple(np.bincount(labels, minlength=self.num_classes).tolist())
        width, head = outputs["features"].shape[1], self.classifier.head
        try:
            rehearse(name, counts, width, type(head).__name__, bool(linear_weights(head)), self.key)
        except ValueError:
            return True
        return False

    def _set(self, images: ImageSet, forward: Callable | None = None) -> Outputs:
        """Outputs of a set; pixels of a run's own, of the right shape, are normalized while it works, and features that
        a frozen backbone gave pass the rest of the classifier."""
        pixels = images.images
        if pixels.shape[1:] != self.image_shape:
            return self.outputs(images)
        # All sets of features in batches of one size, which is compiled once.
        rows = self.batch_size if pixels.ndim == 2 else rows_of(len(pixels), self.batch_size)
        return run_over(forward or self._normal, pixels, rows)

    def measure(
        self,
        sets: Mapping[str, Any],
        progress: Callable[[int], None] | None = None,
        passed: Mapping[str, Outputs] | None = None,
        noted: dict[str, np.ndarray] | None = None,
    ) -> Measured:
        """Scores image sets; each image passes the classifier once.

        Args:
            sets: Images by name, or pairs of images and labels, of which those of "id" count.
            progress: Called with the number of finished sets.
            passed: Outputs of some sets, where these have passed already.
            noted: Is given the digests of each set's images, by its name.

        Returns:
            A `Measured`; scores that are not fitted are left out, and so are those that are NaN for some image: of all
            sets, and of what is chosen from, while no score decides; then of that set, or of all if it is "id".

        Raises:
            UserError: a named score that is not fitted; the one that decides, or all, NaN for some image.
        """
        outputs, labels, told = {}, {}, list(self.warnings)
        unready = [name for name, scorer in self.scorers.items() if not scorer.is_ready]
        if asked := [name for name in unready if name in self.named]:
            raise UserError(f"{', '.join(asked)}: fitted to known images; call fit(images) first")
        if unready:
            told.append(f"{', '.join(unready)}: not fitted, so not measured")
        for done, (where, images) in enumerate(sets.items(), start=1):
            if isinstance(images, ImageSet):
                ready = (passed or {}).get(where)
                outputs[where], its = self._set(images) if ready is None else ready, images.labels
                if noted is not None:
                    noted[where] = image_digests(images.images)
            else:
                known = Known()
                is_pair = isinstance(images, tuple) and not are_files(images)
                pixels, given = parted(images) if is_pair else (images, None)
                use = "id" if where == "id" else "images"  # Others may be called as they like.
                found = self._run(self._noted(self._batches(pixels, given, use, where), known))
                outputs[where], its = found.outputs, found.labels
                told += unreadable(found, where)
                if noted is not None:
                    noted[where] = known.digests
            if its is not None:
                labels[where] = its
            if progress is not None:
                progress(done)
        scores = {
            where: {name: self._scored(one, of) for name, one in self.scorers.items() if name not in unready}
            for where, of in outputs.items()
        }
        return Measured(outputs, scores, told + self._drop_undefined(scores), labels, self.doubts.get(_UNASKED, []))

    def _scored(self, scorer: Scorer, outputs: Outputs) -> np.ndarray:
        return score_rows(scorer, outputs, self.batch_size)

    def scored(self, images: ImageSet) -> tuple[np.ndarray, np.ndarray]:
        """What the score that decides says of a run's own images, (N,), and what they are labelled as, (N,)."""
        outputs = self._set(images)
        return self._scored(self.scorer, outputs), outputs["logits"].argmax(axis=1)

    def _drop_undefined(self, values: dict[str, dict[str, np.ndarray]]) -> list[str]:
        """Leaves out the scores that are NaN for some image, and says so; the one that decides is refused, and all are.

        While there is none that decides, such a score is measured nowhere and cannot be chosen. Then it has none of the
        figures that these images are needed for: those of their own set, or all where they are the known ones, "id".
        """
        measured = dict.fromkeys(name for by in values.values() for name in by)
        undefined, told = dict[str, dict[str, str]](), list[str]()
        for where, by in values.items():
            for name, its in by.items():
                if count := int(np.isnan(its).sum()):
                    undefined.setdefault(name, {})[where] = f"{count} of {len(its)} images of {where!r}"
        for name, sets in undefined.items():
            said, decides = (
                f"{name} is NaN for {' and '.join(sets.values())}",
                self.choice and self.choice.score == name,
            )
            if decides or (self.choice is None and len(undefined) == len(measured)):
                why = ", and it is the score that decides" if decides else ""
                raise UserError(f"{self.key}: {said}{why}; look at those images, or name other scores", exit_code=1)
            everywhere = self.choice is None or "id" in sets
            left = "is not measured" if everywhere else "has no figures of these, nor means over them"
            told.append(f"{said}, so it {left}")
            for where in values if everywhere else sets:
                values[where].pop(name, None)
            if self.choice is None:
                del self.scorers[name]
        return told

    def choose(self, measured: Measured, inside: str, outside: Sequence[str]) -> Choice:
        """Chooses the score that decides, see `kood.detector.choosing.choose`."""
        made = choose(measured, self.scorers, inside, outside)
        doubt = "" if made.score in self.named else self.doubted.get(made.score, "")
        self.choice = replace(made, doubt=doubt)
        return self.choice
