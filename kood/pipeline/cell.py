"""One classifier from its data to its SavedModel: the list of its stages."""

from kood.pipeline.attached import Attached
from kood.pipeline.audit import Audit, Shortcut
from kood.pipeline.classify import Classifier, judge_recipe, unexposed
from kood.pipeline.comparison import Comparison
from kood.pipeline.diffusion import Diffusion
from kood.pipeline.evaluation import Evaluation, Validation
from kood.pipeline.export import Export
from kood.pipeline.outliers import Outliers
from kood.pipeline.prepare import Data
from kood.pipeline.samples import Pure
from kood.pipeline.stage import Stage
from kood.recipe import Recipe

__all__ = ["Cell"]


class Cell:
    """The stages of a recipe's classifier; None stands for those that the recipe has no use for.

    The classifier, the judge and the baseline are trainings of one kind. Where two of them are the same to the letter,
    as the judge and the baseline are under a softmax head, one result serves both.

    Args:
        recipe: Of the cell.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.data = data = Data(recipe)
        self.diffusion = self.judge = self.pure_audit = self.pure = None
        if recipe.needs_diffusion:
            self.diffusion = Diffusion(recipe, data)
            self.pure_audit = Pure(recipe, data, self.diffusion, "pure_audit") if recipe.audits else None
            self.pure = Pure(recipe, data, self.diffusion, "pure") if recipe.pure_samples.trains else None
        if recipe.needs_judge:
            self.judge = Classifier(judge_recipe(recipe), data, role="judge")
        self.outliers = [Outliers(recipe, name, data, self.diffusion, self.judge) for name in recipe.outliers.drawn]
        self.classifier: Classifier | Attached
        if recipe.attach is None:
            self.classifier = Classifier(recipe, data, self.outliers, self.pure)
        else:
            self.classifier = Attached(recipe, data)
        self.baseline = self.validation = self.comparison = None
        is_compared = recipe.evaluate.baseline and (recipe.outliers.exposes or recipe.pure_samples.trains)
        self.evaluation = Evaluation(recipe, data, self.classifier, validates=is_compared)
        if is_compared:
            self.baseline = Classifier(unexposed(recipe), data, role="baseline_classifier")
            self.validation = Validation(recipe, data, self.baseline)
            self.comparison = Comparison(recipe, self.validation, self.evaluation)
        self.audit = self.shortcut = None
        if self.pure_audit is not None and self.judge is not None:
            self.audit = Audit(recipe, data, self.judge, self.pure_audit, self.outliers)
            assert isinstance(self.classifier, Classifier)  # Nothing is sampled for one that exists.
            self.shortcut = Shortcut(recipe, data, self.audit, self.pure_audit, self.classifier, self.evaluation)
        self.export = Export(recipe, data, self.classifier, self.evaluation) if recipe.serve.export else None

    @property
    def stages(self) -> list[Stage]:
        """All of them, each after its inputs."""
        wanted = [
            self.data, self.diffusion, self.judge, *self.outliers, self.pure_audit, self.pure, self.classifier,
            self.baseline, self.evaluation, self.audit, self.shortcut, self.validation, self.comparison, self.export,
        ]  # fmt: skip
        return [stage for stage in wanted if stage is not None]

    @property
    def made(self) -> list[Stage]:
        """Those that have a result."""
        return [stage for stage in self.stages if stage.result is not None]
