"""Whether the images that the diffusion model makes are any good, and whether the detector merely spots them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kood import registry, specs
from kood.audit import Judged, audit, with_shortcut
from kood.data.deferred import Images
from kood.errors import UserError
from kood.files import digest_file
from kood.outputs import Judge, scores_of
from kood.pipeline.classify import Classifier
from kood.pipeline.diffusion import Pure
from kood.pipeline.evaluation import Evaluation
from kood.pipeline.outliers import Outliers
from kood.pipeline.prepare import Rows
from kood.pipeline.stage import Stage, Work
from kood.recipe import Recipe
from kood.scorer import Scorer

__all__ = ["Audit", "Shortcut"]

#: Held-out images that an audit needs.
LEAST = 3


class Audit(Stage):
    """Audits what was sampled, by the judge.

    Only validation images stand beside the samples, so that settings may be chosen by it. It depends on the samples
    alone, and the cells of a table that share them share it.

    Args:
        judge: A classifier trained on real images alone.
        outliers: Of the cell; those that the diffusion model drew are audited.
    """

    kind, version, is_shared = "audit", 3, False

    def __init__(self, recipe: Recipe, data: Rows, judge: Classifier, samples: Pure, outliers: Sequence[Outliers]):
        super().__init__(recipe)
        self.data, self.judge, self.samples = data, judge, samples
        self.mixed = next((one for one in outliers if "denoiser" in one.source.needs), None)

    def applies(self) -> str:
        few = len(self.data.images("validation")) < LEAST
        return "no audit of the outliers: data.id.validation leaves too few images" if few else ""

    def decides(self) -> dict[str, Any]:
        return {
            "judge": self.judge.key,
            "pure": self.samples.key,
            "mixed": self.mixed.key if self.mixed else None,
            "images": self.data.digest("train", "validation"),
            "seed": self.recipe.data.split_seed,
        }

    def make(self, folder: Path, work: Work) -> dict[str, Any]:
        judge = Judge(self.judge.model(), self.recipe.evaluate.batch_size)
        train, held, pure = self.data.images("train"), self.data.images("validation"), self.samples.images()
        stages: tuple[Pure | Outliers | None, ...] = self.samples, self.mixed
        for stage in stages:
            # Time may have sufficed for no more.
            if stage is not None and len(stage.images()) < 2:
                key = "pure_samples.audit_count" if stage is self.samples else f"outliers.{stage.kind}.count"
                raise UserError(
                    f"{key}: one image was sampled, and an audit compares two or more; raise it, or budget.minutes "
                    "where there is one, or take 'audit' out of pure_samples.use",
                    exit_code=1,
                )
        with work.progress.bar(self.role):
            return audit(
                _judged(judge, pure.images, pure.known_labels),
                _judged(judge, held.images, held.known_labels),
                _judged(judge, train.images),
                _judged(judge, self.mixed.images().images, _mixtures(self.mixed.shares())) if self.mixed else None,
                class_names=train.class_names,
                feature_space=(
                    f"penultimate features of {self.recipe.classifier.backbone} trained on the in-distribution "
                    "training images"
                ),
                augment=[registry.find("augmentations", name).name for name in self.recipe.data.augment],
                seed=self.recipe.data.split_seed,
            )


class Shortcut(Stage):
    """Whether the detector merely spots what was generated, beside the rest of the audit."""

    kind, version, is_shared = "shortcut", 2, False

    def __init__(
        self, recipe: Recipe, data: Rows, audit: Audit, samples: Pure, classifier: Classifier, evaluation: Evaluation
    ):
        super().__init__(recipe)
        self.data, self.audit, self.samples = data, audit, samples
        self.classifier, self.evaluation = classifier, evaluation

    def applies(self) -> str:
        return self.audit.applies()

    def decides(self) -> dict[str, Any]:
        state = self.evaluation.folder / "state.npz"
        return {
            "audit": self.audit.key,
            "classifier": self.classifier.key,
            # Not the key of the evaluation, which moves with every test set; only its score enters here.
            "score": [self.evaluation.headline, Evaluation.version, digest_file(state) if state.exists() else None],
            "batch_size": self.recipe.evaluate.batch_size,
            "validation": self.data.digest("validation"),
        }

    def uses(self) -> list[tuple[str, str]]:
        return [("scores", specs.name_of(self.evaluation.headline))]

    def make(self, folder: Path, work: Work) -> dict[str, Any]:
        score = self.evaluation.headline
        scorer, classifier = Scorer(score, self.evaluation.arrays("state")), self.classifier.model()
        with work.progress.bar(self.role):
            real, generated = (
                scores_of(classifier, scorer, one.images, self.recipe.evaluate.batch_size)
                for one in (self.data.images("validation"), self.samples.images())
            )
        np.savez(folder / "scores.npz", allow_pickle=False, validation=real, pure=generated)
        return with_shortcut(self.audit.facts, real, generated, score=score)


def _mixtures(rows: np.ndarray | None) -> np.ndarray | None:
    """The shares of the parents, None where a row has one class alone or turns away from one."""
    whole = rows is not None and (rows >= 0).all() and ((rows > 0).sum(axis=1) > 1).all()
    return rows if whole else None


def _judged(judge: Judge, images: Images, labels: np.ndarray | None = None) -> Judged:
    # What lies in files is decoded here, once, and not whenever the audit looks at it.
    pixels = np.asarray(images)
    return Judged(pixels, *judge.opinions(pixels), labels)
