"""The stages that measure a classifier, and what its decision costs."""

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kood import registry, specs
from kood.data.images import normalize
from kood.detector.choosing import proxies_of, validation_images
from kood.detector.evaluate import evaluate
from kood.detector.measuring import Measuring
from kood.outputs import Outputs, at_once, forward_of, further_for
from kood.pipeline.attached import Attached
from kood.pipeline.classify import Classifier
from kood.pipeline.prepare import KINDS, PARTS, Rows
from kood.pipeline.stage import Stage, Work
from kood.recipe import Recipe
from kood.scores import ON_REQUEST

__all__ = ["DecisionCost", "Evaluation", "Validation"]

#: What a decision costs is the median of so many passes, after one that compiles.
ROUNDS = 5


class Validation(Stage):
    """What a classifier and its scores say of validation images alone: no test or calibration image is seen."""

    kind, version, is_shared = "validation", 8, False

    def __init__(self, recipe: Recipe, data: Rows, classifier: Classifier):
        super().__init__(recipe)
        self.data, self.classifier = data, classifier

    @property
    def _names(self) -> list[str] | None:
        headline = self.recipe.evaluate.headline
        return [headline] if headline != "auto" else self.recipe.evaluate.scores

    def uses(self) -> list[tuple[str, str]]:
        return [("scores", specs.name_of(name)) for name in _resolved(self._names)]

    def applies(self) -> str:
        sets = {f"data.validation_ood.{name}": of for name, of in self.data.sets("validation_ood").items()}
        for key, images in {"data.id.validation": self.data.images("validation"), **sets}.items():
            if len(images) < 2:
                left = "1 image, and an interval needs 2" if len(images) else "no images"
                return f"no comparison with the baseline: {key} leaves {left}"
        return ""

    def decides(self) -> dict[str, Any]:
        return {
            "names": _resolved(self._names),
            **_tuned(self.recipe),
            "batch_size": self.recipe.evaluate.batch_size,
            "classifier": self.classifier.key,
            "sets": self.data.digest("train", "validation"),
            "validation_ood": self.data.digests("validation_ood"),
            "seed": self.recipe.data.split_seed,
        }

    def make(self, folder: Path, work: Work) -> dict[str, Any]:
        rows, classifier = self.classifier.measured()
        held = rows.images("validation")
        sets = validation_images(held, rows.sets("validation_ood"), self.recipe.data.split_seed)
        with work.progress.bar(self.role, 1 + len(sets), unit="step") as bar:
            measuring = Measuring(
                classifier, scores=self._names or "all", class_names=held.class_names,
                batch_size=min(self.recipe.evaluate.batch_size, max(map(len, sets.values()))), key="evaluate.scores",
            )  # fmt: skip
            passed = {}
            if self.recipe.evaluate.tune:
                passed = measuring.tune_scores(rows.images("train"), sets)
            else:
                measuring.fit_scores(rows.images("train"), held, bar.update)
            found = measuring.measure(sets, lambda done: bar.update(1 + done), passed)
        correct = found.correct("validation")
        _write(folder / "validation.npz", found.scores, correct=correct)
        return {"accuracy": float(correct.mean()), "scores": list(measuring.scorers)}


class Evaluation(Stage):
    """Scores every set, chooses the headline score on validation images, and sets the threshold.

    Args:
        validates: Whether validation images are measured though no score is chosen on them.
    """

    kind, version, is_shared = "evaluate", 11, False

    def __init__(self, recipe: Recipe, data: Rows, classifier: Classifier | Attached, validates: bool = False):
        super().__init__(recipe)
        self.data, self.classifier = data, classifier
        self.chooses = recipe.evaluate.headline == "auto"
        self.validates = validates or self.chooses or recipe.evaluate.tune

    def decides(self) -> dict[str, Any]:
        settings = self.recipe.evaluate
        return {
            "evaluate": {
                "scores": _resolved(settings.scores),
                "batch_size": settings.batch_size,
                "headline": settings.headline,
                **_tuned(self.recipe),
            },
            "validates": self.validates,
            "accept": self.recipe.serve.accept,
            "by_class": self.recipe.serve.by_class,
            "classifier": self.classifier.key,
            "id": self.data.digest(*PARTS),
            **{kind: self.data.digests(kind) for kind in KINDS},
            **({"groups": self.data.groups} if self.data.groups else {}),
            "seed": self.recipe.data.split_seed,
        }

    def uses(self) -> list[tuple[str, str]]:
        asked = [] if self.chooses else [self.recipe.evaluate.headline]
        return [("scores", specs.name_of(name)) for name in (*_resolved(self.recipe.evaluate.scores), *asked)]

    def make(self, folder: Path, work: Work) -> dict[str, Any]:
        settings, serve, (rows, classifier) = self.recipe.evaluate, self.recipe.serve, self.classifier.measured()
        known: dict[str, Any] = {name: self.classifier.labelled(rows.images(name)) for name in PARTS}
        outside: dict[str, Any] = {kind: rows.sets(kind) for kind in KINDS}
        known["unseen"], steps = known["validation"], 3 + len(outside["near"]) + len(outside["far"])
        if self.validates and len(known["validation"]):
            steps += 1 + (len(outside["validation_ood"]) or len(proxies_of(known["validation"])))
        else:
            known["validation"] = None
        with work.progress.bar(self.role, steps, unit="step") as bar:
            result = evaluate(
                classifier, **known, **outside, names=settings.scores, headline=settings.headline, tune=settings.tune,
                accept=serve.accept, by_class=serve.by_class, batch_size=settings.batch_size,
                seed=self.recipe.data.split_seed, groups=self.data.groups, progress=bar.update,
            )  # fmt: skip
        _write(folder / "scores.npz", result.scores)
        _write(folder / "validation.npz", result.validation, correct=result.validation_correct)
        for name, arrays in result.kept.items():
            np.savez(folder / f"{name}.npz", allow_pickle=False, **arrays)
        return result.figures

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """What it kept under a name; empty where there is nothing."""
        file = self.folder / f"{name}.npz"
        if not file.exists():
            return {}
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)

    @property
    def headline(self) -> str:
        """The headline score."""
        return self.facts["headline_score"]


class DecisionCost(Stage):
    """Milliseconds an image of each score that was measured: its forward passes and the score itself.

    Test images in one batch, the compiled passes and the score as an evaluation takes it. A measurement, which another
    machine does not repeat: it is made once.
    """

    kind, version, is_shared = "decision_cost", 1, False

    def __init__(self, recipe: Recipe, data: Rows, classifier: Classifier, evaluation: Evaluation):
        super().__init__(recipe)
        self.data, self.classifier, self.evaluation = data, classifier, evaluation

    def decides(self) -> dict[str, Any]:
        return {
            "classifier": self.classifier.key,
            "scores": list(self.evaluation.facts["scores"]),
            "images": self.data.digest("train", "validation", "test"),
            "batch_size": self.recipe.evaluate.batch_size,
        }

    def uses(self) -> list[tuple[str, str]]:
        names = (specs.name_of(spec) for spec in self.evaluation.facts["scores"])
        # How long kood's own take changes with much that no version tells of.
        return [("scores", name) for name in names if registry.find("scores", name).package]

    def make(self, folder: Path, work: Work) -> dict[str, Any]:
        names, batch_size = list(self.evaluation.facts["scores"]), self.recipe.evaluate.batch_size
        with work.progress.bar(self.role, len(names), unit="score") as bar:
            rows, part = self.classifier.measured()
            measuring = Measuring(part, scores=names, batch_size=batch_size, key="evaluate.scores")
            measuring.fit_scores(rows.images("train"), rows.images("validation"))
            model = self.classifier.model()
            test = self.data.images("test").images
            images = normalize(np.asarray(test[: min(len(test), batch_size, at_once(test.shape[1:]))]))
            passes: dict[tuple[str, ...], tuple[float, Outputs]] = {}
            found = {}
            for done, (name, scorer) in enumerate(measuring.scorers.items(), start=1):
                further = tuple(further_for(model, [scorer]))
                if further not in passes:
                    passes[further] = _timed(forward_of(model, [name]), images)
                took, outputs = passes[further]
                scorer.place()
                found[name] = 1000.0 * (took + _timed(scorer, outputs)[0]) / len(images)
                bar.update(done)
        return {"milliseconds": found, "images": len(images)}


def _tuned(recipe: Recipe) -> dict[str, Any]:
    """What decides the options of scores, where they are chosen at all."""
    if not recipe.evaluate.tune:
        return {}
    return {"tune": {name: {k: list(v) for k, v in entry.usual.items()}
                     for name, entry in registry.room("scores").items() if entry.usual}}  # fmt: skip


def _resolved(names: list[str] | None) -> list[str]:
    """The scores that are asked for; where none are named, those that are measured by themselves."""
    return names if names is not None else [name for name in registry.room("scores") if name not in ON_REQUEST]


def _write(file: Path, scores: Mapping[str, Mapping[str, np.ndarray]], **more: np.ndarray) -> None:
    """Keeps {set: {score: values}} under "set/score"."""
    flat = {f"{where}/{name}": values for where, by in scores.items() for name, values in by.items()}
    np.savez(file, allow_pickle=False, **more, **flat)


def _timed(call: Callable, given: Any) -> tuple[float, Any]:
    """Seconds of a call, its result read back, and the result."""
    took, result = [], None
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        result = keras.tree.map_structure(keras.ops.convert_to_numpy, call(given))
        took.append(time.perf_counter() - start)
    return statistics.median(took[1:]), result
