"""One classifier from its data to its SavedModel: the list of its stages."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kood.pipeline.attached import Attached
from kood.pipeline.audit import Audit, Shortcut
from kood.pipeline.classify import Classifier, FineTuned, head_recipe, judge_recipe, unexposed
from kood.pipeline.comparison import Comparison
from kood.pipeline.diffusion import Diffusion, Pure
from kood.pipeline.evaluation import DecisionCost, Evaluation, Validation
from kood.pipeline.export import Export
from kood.pipeline.features import Features, OutlierFeatures
from kood.pipeline.held_out import Fewer, HeldOut, folds_of
from kood.pipeline.outliers import Outliers
from kood.pipeline.prepare import Data, Rows
from kood.pipeline.stage import Stage
from kood.recipe import Recipe

__all__ = ["Cell"]


class Cell:
    """The stages of a recipe's classifier; None stands for those that the recipe has no use for.

    The classifier, the judge and the unexposed classifier are trainings of one kind. Where two of them are the same to
    the letter, as the judge and the unexposed one are under a softmax head, one result serves both.

    Args:
        data: Its images; not given, those that the recipe says.
        learned: What classifiers learn from, likewise.
        ready: Outliers that are there already, by their source; the others are drawn.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Rows | None = None,
        learned: Rows | None = None,
        ready: Mapping[str, Sequence[Fewer]] | None = None,
    ):
        self.recipe = recipe
        self.data: Rows = data or Data(recipe)
        data = self.data
        self.diffusion = self.judge = self.pure_audit = self.pure = None
        #: What classifiers learn from: the images, or what a frozen backbone gives for them.
        self.learned: Rows = learned or data
        if recipe.classifier.begins_frozen and recipe.attach is None and isinstance(data, Data):
            self.learned = Features(head_recipe(recipe), data)
        if recipe.needs_diffusion:
            self.diffusion = Diffusion(recipe, data)
            self.pure_audit = Pure(recipe, data, self.diffusion, "pure_audit") if recipe.audits else None
            self.pure = Pure(recipe, data, self.diffusion, "pure") if recipe.pure_samples.trains else None
        if recipe.needs_judge:
            self.judge = self._trained(judge_recipe(recipe), "judge")
        self.outliers: list[Outliers] = []
        #: What each training of a classifier is exposed to, by source.
        self.exposed_to: dict[str, Sequence[Any]] = dict(ready or {})
        for name in recipe.outliers.drawn:
            if name not in self.exposed_to:
                drawn = Outliers(recipe, name, data, self.diffusion, self.judge)
                self.outliers.append(drawn)
                passed = [] if self.learned is data else [OutlierFeatures(head_recipe(recipe), drawn)]
                self.exposed_to[name] = passed if recipe.classifier.is_frozen else [*passed, drawn]
        self.classifier: Classifier | Attached
        if recipe.attach is None:
            self.classifier = self._trained(recipe, exposed_to=recipe.outliers.drawn, pure=self.pure)
        else:
            assert isinstance(data, Data)  # A fold trains.
            self.classifier = Attached(recipe, data)
        self.unexposed = self.validation = self.comparison = None
        is_compared = recipe.evaluate.baseline and (recipe.outliers.exposes or recipe.pure_samples.trains)
        self.evaluation = Evaluation(recipe, data, self.classifier, validates=is_compared)
        if is_compared:
            self.unexposed = self._trained(unexposed(recipe), "baseline_classifier")
            self.validation = Validation(recipe, data, self.unexposed)
            self.unexposed.only_for = (self.validation,)
            self.comparison = Comparison(recipe, self.validation, self.evaluation)
        self.audit = self.shortcut = None
        if self.pure_audit is not None and self.judge is not None:
            self.audit = Audit(recipe, data, self.judge, self.pure_audit, self.outliers)
            self.pure_audit.only_for = (self.audit,)
            if not recipe.outliers.needs("judge"):
                self.judge.only_for = (self.audit,)
            assert isinstance(self.classifier, Classifier)  # Nothing is sampled for one that exists.
            self.shortcut = Shortcut(recipe, data, self.audit, self.pure_audit, self.classifier, self.evaluation)
        self.cost = None
        if recipe.report.leaderboard and isinstance(data, Data) and isinstance(self.classifier, Classifier):
            self.cost = DecisionCost(recipe, data, self.classifier, self.evaluation)
        self.export = None
        if recipe.serve.export and isinstance(data, Data):
            self.export = Export(recipe, data, self.classifier, self.evaluation)

    def _trained(
        self, recipe: Recipe, role: str = "classifier", exposed_to: Iterable[str] = (), pure: Pure | None = None
    ) -> Classifier:
        sources = [self.exposed_to[name] for name in exposed_to]
        if recipe.classifier.train != "last":
            return Classifier(recipe, self.learned, [source[0] for source in sources], pure, role)
        first = Classifier(head_recipe(recipe), self.learned, [source[0] for source in sources], role=f"{role}_head")
        return FineTuned(recipe, self.data, [source[1] for source in sources], first, role)

    @property
    def stages(self) -> list[Stage]:
        """All of them, each once and after its inputs."""
        return _stages(
            self.data, self.diffusion, self.learned, self.judge, *self.outliers, *self.exposed_to.values(),
            self.pure_audit, self.pure, self.classifier, self.unexposed, self.evaluation, self.audit, self.shortcut,
            self.validation, self.comparison, self.cost, self.export,
        )  # fmt: skip

    @property
    def learning(self) -> list[Stage]:
        """What training the classifier takes, from its images on: itself and what it is exposed to."""
        judge = self.judge if self.recipe.outliers.needs("judge") else None
        learned = None if self.learned is self.data else self.learned
        return _stages(
            self.diffusion, learned, judge, *self.outliers, *self.exposed_to.values(), self.pure, self.classifier
        )

    def folds(self, headline: str) -> "list[tuple[tuple[str, ...], Cell]]":
        """The cells of the same classifier without some classes, with what each holds out.

        Args:
            headline: The score that decides in each, as in this one.
        """
        recipe, held_out = self.recipe, self.recipe.data.hold_out
        if held_out is None or recipe.attach is not None:
            return []
        names = self.data.images("train").class_names
        folds = []
        for held in folds_of(held_out, names, recipe.data.split_seed):
            weights = recipe.train.class_weight
            if isinstance(weights, dict):
                weights = {name: weight for name, weight in weights.items() if name not in held}
            fold = recipe.changed(
                train={"class_weight": weights},
                evaluate={"headline": headline, "baseline": False, "tune": False},
                pure_samples={"use": [use for use in recipe.pure_samples.use if use != "audit"]},
            )
            data = HeldOut(self.data, held)
            learned = data if self.learned is self.data else HeldOut(self.learned, held)
            ready = {
                name: [Fewer(one, data.numbers, len(names)) for one in passed]
                for name, passed in self.exposed_to.items()
                if all(one.serves_fewer() for one in passed)
            }
            folds.append((held, Cell(fold, data, learned, ready)))
        return folds

    @property
    def made(self) -> list[Stage]:
        """Those that have a result."""
        return [stage for stage in self.stages if stage.result is not None]


def _stages(*wanted: Any) -> list[Stage]:
    """Those that are stages, or lists of some, each once; a classifier after the trainings that it begins with."""
    found = []
    for one in wanted:
        for stage in one if isinstance(one, list) else [one]:
            found += [*getattr(stage, "begun", ()), stage]
    return list(dict.fromkeys(stage for stage in found if isinstance(stage, Stage)))
