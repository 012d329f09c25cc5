"""The stages of the classifier: training, validation, evaluation."""

import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kood import training
from kood.data import ImageSet
from kood.data.amplitude import swap_amplitudes
from kood.data.batches import training_batches
from kood.data.stored import read_images
from kood.evaluate import PROXIES, evaluate, validate
from kood.pipeline.build import build_classifier, class_weights
from kood.pipeline.resident import resident_images
from kood.pipeline.work import Work
from kood.report import fit_callback
from kood.runs import Stage
from kood.timing import Pace, TimeBudget

__all__ = ["evaluate_classifier", "train_classifier", "validate_classifier"]


def train_classifier(
    work: Work, outlier_stages: list[Stage], pure: Stage | None = None, shown: str = "classifier"
) -> Stage:
    """Fits the classifier on in-distribution and outlier rows of one batch.

    Pure samples under "id_rows" are further in-distribution rows of every batch. Under "augment" they join the training
    images: each batch is as large as without them and drawn from both together, and there are as many batches, so that
    the classifiers of a table have been trained equally long and differ in what they saw alone.

    Args:
        work: The cell.
        outlier_stages: Those that made outlier images.
        pure: The one that made samples of one class each, where the recipe trains on them.
        shown: What the display calls it.
    """
    recipe, seed = work.recipe, work.seed("classifier")
    settings, per_batch = recipe.train, recipe.outliers.per_batch
    exposed = recipe.outliers.exposes
    augment = recipe.data.augment if settings.augment is None else settings.augment
    as_rows = pure is not None and "id_rows" in recipe.pure_samples.use
    as_images = pure is not None and "augment" in recipe.pure_samples.use
    seconds = work.budget.of("classifier", recipe)
    pure_per_batch = (recipe.pure_samples.per_batch or per_batch) if as_rows else 0

    def make(folder: Path) -> dict[str, Any]:
        began = time.monotonic()
        images, outliers, targets, labelled, steps = work.data("train"), None, None, None, None
        classes = len(images.class_names)
        if exposed and outlier_stages:
            outliers = ImageSet(np.concatenate([_outliers(work, stage) for stage in outlier_stages]))
            if recipe.outliers.target == "parents":
                targets = np.concatenate([_parents(stage, classes) for stage in outlier_stages])
        if pure is not None:
            labelled = read_images(pure.folder, "pure", pure.facts)
        if labelled is not None and as_images and len(images) >= settings.batch_size:
            steps, images, labelled = len(images) // settings.batch_size, _joined(images, labelled), None

        held = resident_images(work, augment, images, outliers, labelled)

        def batches(first: int):
            return training_batches(
                images, outliers, num_classes=classes, batch_size=settings.batch_size,
                outliers_per_batch=per_batch if exposed else 0, epochs=settings.epochs, seed=seed, first_epoch=first,
                augment=augment, labelled=labelled, labelled_per_batch=pure_per_batch, outlier_targets=targets,
                steps=steps, mix=recipe.outliers.mix, mix_alpha=recipe.outliers.mix_alpha,
                resident=held is not None,
            )  # fmt: skip

        _, per_epoch = batches(0)
        keras.utils.set_random_seed(seed)
        weights = class_weights(settings.class_weight, images.known_labels, images.class_names)
        model = build_classifier(
            recipe, classes, steps=settings.epochs * per_epoch, seed=work.seed("virtual"), class_weight=weights
        )
        model.compile(
            optimizer=training.optimizer(
                None if seconds else settings.epochs * per_epoch,
                name=settings.optimizer, learning_rate=settings.learning_rate,
                warmup=settings.warmup, weight_decay=settings.weight_decay, clip_norm=settings.clip_norm,
                ema=settings.ema, precision=settings.precision,
            ),
            steps_per_execution=training.steps_per_call(per_epoch, settings.steps_per_execution),
        )  # fmt: skip
        limit, pace = None, Pace(settings.batch_size + pure_per_batch + per_batch * exposed)
        if seconds:
            limit = TimeBudget(
                seconds, settings.learning_rate, steps=settings.epochs * per_epoch, warmup=settings.warmup, since=began
            )
        total = limit.shown if limit else {"total": settings.epochs}
        with work.progress.stage(shown, **total) as stage:
            model, history = training.fit(
                model,
                lambda first: batches(first)[0],
                epochs=settings.epochs,
                steps_per_epoch=per_epoch,
                folder=folder,
                log=folder / "history.csv",
                board=work.board(shown),
                callbacks=[
                    fit_callback(stage, position=(lambda: limit.spent) if limit else None),
                    pace,
                    None if limit else work.budget.deadline(),
                ],
                budget=limit,
                images=held,
            )
        trained = int(keras.ops.convert_to_numpy(model.optimizer.iterations))
        # What was trained in half precision is measured and served in float32; what only training needs stays behind.
        plain = build_classifier(recipe, classes, precision="float32", exposed=False)
        for mine, its in ((plain.backbone, model.backbone), (plain.head, model.head)):
            mine.set_weights(its.get_weights())
        plain.save(folder / "classifier.keras")
        facts = {"epochs": round(trained / per_epoch, 2)} if limit else {}
        return {"history": history, "parameters": plain.count_params(), **facts, **pace.facts}

    exposure = {
        "images": [stage.facts["sha256"] for stage in outlier_stages],
        "virtual": recipe.outliers.virtual.model_dump() if "virtual" in recipe.outliers.use else None,
        "per_batch": per_batch,
        **recipe.outliers.model_dump(include={"exposure", "weight", "begin", "reach"}),
    }
    if recipe.outliers.target != "uniform":
        exposure["target"] = recipe.outliers.target
    if recipe.outliers.amplitude != "own":
        exposure["amplitude"] = [recipe.outliers.amplitude, seed]
    if recipe.outliers.mix != "none":
        exposure["mix"] = [recipe.outliers.mix, recipe.outliers.mix_alpha]
    decides = {
        "train": settings.model_dump(exclude={"augment", "devices", "resident", "class_weight"}),
        "classifier": recipe.classifier.model_dump(),
        # What is not given decides nothing: then a setting that heads get later leaves older runs as they are.
        "head": {"margin": None, "scale": None, **recipe.head.model_dump(exclude_none=True)},
        "augment": augment,
        "exposure": exposure if exposed else None,
        "pure": [pure.facts["sha256"], as_images, pure_per_batch] if pure is not None else None,
        "images": work.digest("train"),
        "seed": seed,
        "backend": keras.backend.backend(),
    }
    if settings.class_weight is not None:
        train = work.data("train")
        decides["class_weight"] = class_weights(settings.class_weight, train.known_labels, train.class_names)
    return work.stage("classifier", decides, make, shown=shown, on=work.devices.fitting)


def _outliers(work: Work, stage: Stage) -> np.ndarray:
    """The images of a stage that made outliers, under the amplitudes that the recipe asks for."""
    images = np.asarray(read_images(stage.folder, "outliers", stage.facts).images)
    # Noise is exposed to for the texture that it has, and shows nothing.
    if work.recipe.outliers.amplitude == "own" or stage.name == "noise":
        return images
    draw = np.random.default_rng(work.seed(f"amplitude {stage.name}"))
    return swap_amplitudes(images, np.asarray(work.data("train").images), rng=draw)


def _parents(stage: Stage, classes: int) -> np.ndarray:
    """(N, K): the shares of its classes for each outlier of a stage that mixes some, else nothing."""
    rows = stage.folder / "mixtures.npy"
    return np.load(rows, allow_pickle=False) if rows.exists() else np.zeros((stage.facts["images"], classes), "float32")


def _joined(images: ImageSet, more: ImageSet) -> ImageSet:
    return ImageSet(
        np.concatenate([images.images, more.images]),
        np.concatenate([images.known_labels, more.known_labels]),
        images.class_names,
    )


def validate_classifier(work: Work, names: list[str] | None) -> Stage:
    """Scores validation images alone, for what is chosen or compared without a look at the test sets."""
    recipe = work.recipe

    def make(folder: Path) -> dict[str, Any]:
        classifier = keras.saving.load_model(work.stages["classifier"].folder / "classifier.keras", compile=False)
        result = validate(
            classifier,
            train=work.data("train"),
            validation=work.data("validation"),
            validation_ood=work.sets("validation_ood"),
            names=names,
            batch_size=recipe.evaluate.batch_size,
            seed=recipe.data.split_seed,
        )
        flat = {f"{where}/{name}": v for name, values in result.scores.items() for where, v in values.items()}
        np.savez(folder / "scores.npz", allow_pickle=False, correct=result.correct, **flat)
        return {"accuracy": result.accuracy, "scores": list(result.scores)}

    decides = {
        "names": names and [name.lower() for name in names],
        "batch_size": recipe.evaluate.batch_size,
        "classifier": work.stages["classifier"].key,
        "sets": work.digest("train", "validation"),
        "validation_ood": work.digests("validation_ood"),
        "seed": recipe.data.split_seed,
    }
    return work.stage("validation", decides, make, awaited=False)


def evaluate_classifier(work: Work) -> Stage:
    """Scores every set, chooses the headline score on validation images, and sets the threshold."""
    recipe = work.recipe
    near, far, validation_ood = (work.sets(kind) for kind in ("near", "far", "validation_ood"))

    def make(folder: Path) -> dict[str, Any]:
        classifier = keras.saving.load_model(work.stages["classifier"].folder / "classifier.keras", compile=False)
        chosen_on = 1 + (len(validation_ood) or len(PROXIES)) if recipe.evaluate.headline == "auto" else 0
        total = 1 + len(near) + len(far) + 1 + chosen_on
        with work.progress.stage("evaluate", total, unit="set") as stage:
            result = evaluate(
                classifier,
                **{name: work.data(name) for name in ("train", "validation", "calibration", "test")},
                near=near,
                far=far,
                validation_ood=validation_ood,
                names=recipe.evaluate.scores,
                headline=recipe.evaluate.headline.lower(),
                accept=recipe.serve.accept,
                by_class=recipe.serve.by_class,
                batch_size=recipe.evaluate.batch_size,
                seed=recipe.data.split_seed,
                progress=stage.update,
            )
        flat = {f"{where}/{name}": v for where, values in result.scores.items() for name, v in values.items()}
        np.savez(folder / "scores.npz", allow_pickle=False, **flat)
        np.savez(folder / "parity.npz", allow_pickle=False, **result.parity)
        np.savez(folder / "details.npz", allow_pickle=False, **result.details)
        held = {"scores": result.calibration, "labels": result.calibration_labels}
        np.savez(folder / "calibration.npz", allow_pickle=False, **held)
        if result.state:
            np.savez(folder / "state.npz", allow_pickle=False, **result.state)
        return result.figures

    decides = {
        "format": 3,  # With the calibration scores and labels.
        "evaluate": {
            "scores": recipe.evaluate.scores and [name.lower() for name in recipe.evaluate.scores],
            **recipe.evaluate.model_dump(exclude={"baseline", "scores", "headline"}),
            "headline": recipe.evaluate.headline.lower(),
        },
        "accept": recipe.serve.accept,
        "by_class": recipe.serve.by_class,
        "classifier": work.stages["classifier"].key,
        "id": work.digest("train", "validation", "calibration", "test"),
        **{kind: work.digests(kind) for kind in ("near", "far", "validation_ood")},
        "seed": recipe.data.split_seed,
    }
    return work.stage("evaluate", decides, make, awaited=False)
