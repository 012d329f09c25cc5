"""One classifier from its data to its SavedModel: the list of its stages."""

from typing import Any

from kood.pipeline.audit import Audit, Shortcut
from kood.pipeline.checks import check
from kood.pipeline.classify import Classifier, judge_recipe, unexposed
from kood.pipeline.comparison import Comparison
from kood.pipeline.diffusion import Diffusion
from kood.pipeline.evaluation import Evaluation, Validation
from kood.pipeline.export import Export
from kood.pipeline.outliers import Outliers
from kood.pipeline.prepare import Data
from kood.pipeline.samples import Pure
from kood.pipeline.stage import Stage
from kood.pipeline.summary import summarize
from kood.pipeline.work import Work
from kood.recipe import Recipe

__all__ = ["make_cell", "stages_of"]


def stages_of(recipe: Recipe) -> tuple[Data, list[Stage]]:
    """The stages of a recipe's classifier: its data, and all others, each after its inputs.

    The classifier, the judge and the baseline are trainings of one kind. Where two of them are the same to the letter,
    as the judge and the baseline are under a softmax head, one result serves both.
    """
    data, diffusion = Data(recipe), None
    judge = Classifier(judge_recipe(recipe), data, role="judge") if recipe.needs_judge else None
    audited = pure = None
    if recipe.needs_diffusion:
        diffusion = Diffusion(recipe, data)
        audited = Pure(recipe, data, diffusion, "pure_audit") if recipe.audits else None
        pure = Pure(recipe, data, diffusion, "pure") if recipe.pure_samples.trains else None
    outliers = [Outliers(recipe, name, data, diffusion, judge) for name in recipe.outliers.drawn]
    classifier = Classifier(recipe, data, outliers, pure)
    is_compared = recipe.evaluate.baseline and (recipe.outliers.exposes or recipe.pure_samples.trains)
    baseline = Classifier(unexposed(recipe), data, role="baseline_classifier") if is_compared else None
    evaluation = Evaluation(recipe, data, classifier, validates=is_compared)
    stages: list[Stage | None] = [diffusion, judge, *outliers, audited, pure, classifier, baseline, evaluation]
    if audited is not None and judge is not None:
        audit = Audit(recipe, data, judge, audited, outliers)
        stages += [audit, Shortcut(recipe, data, audit, audited, classifier, evaluation)]
    if baseline is not None:
        validation = Validation(recipe, data, baseline)
        stages += [validation, Comparison(recipe, validation, evaluation)]
    if recipe.serve.export:
        stages.append(Export(recipe, data, classifier, evaluation))
    return data, [stage for stage in stages if stage is not None]


def make_cell(work: Work) -> tuple[dict[str, Any], dict[str, Stage]]:
    """Makes one classifier, from its data to its SavedModel.

    Args:
        work: The run.

    Returns:
        Its part of the report, empty in all but the first of several processes, and its stages by their roles.
    """
    data, others = stages_of(work.recipe)
    data.obtain(work)
    check(work.recipe, data, work.devices.count)
    work.accepted(data)
    made: dict[str, Stage] = {data.role: data}
    left_out: set[str] = set()
    for stage in others:
        if not (stage.is_shared or work.team.leads):
            continue
        if why := stage.applies():
            if why not in left_out:
                work.progress.say(why, style="yellow")
            left_out.add(why)
            continue
        stage.obtain(work)
        made[stage.role] = stage
    return (summarize(work, made) if work.team.leads else {}), made
