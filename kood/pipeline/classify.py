"""The stages of the classifier: training, evaluation, export."""

import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kood import training
from kood.data import ImageSet
from kood.data.batches import training_batches
from kood.data.stored import read_images
from kood.evaluate import evaluate
from kood.pipeline.build import build_classifier
from kood.pipeline.work import Work
from kood.report import fit_callback
from kood.runs import Stage
from kood.serving.publishing import publish

__all__ = ["evaluate_classifier", "export_model", "train_classifier"]


def train_classifier(work: Work, outlier_stages: list[Stage]) -> Stage:
    """Fits the classifier on in-distribution and outlier rows of one batch."""
    recipe, seed = work.recipe, work.seed("classifier")
    settings, per_batch = recipe.train, recipe.outliers.per_batch
    exposed = recipe.outliers.exposes

    def make(folder: Path) -> dict[str, Any]:
        images = work.data("train")
        outliers = None
        if exposed:
            sets = [read_images(stage.folder, "outliers", stage.facts) for stage in outlier_stages]
            outliers = ImageSet(np.concatenate([s.images for s in sets]))

        def batches(first: int):
            return training_batches(
                images, outliers, num_classes=len(images.class_names), batch_size=settings.batch_size,
                outliers_per_batch=per_batch if exposed else 0, epochs=settings.epochs, seed=seed, first_epoch=first,
                augment=recipe.data.augment,
            )  # fmt: skip

        _, per_epoch = batches(0)
        keras.utils.set_random_seed(seed)
        model = build_classifier(recipe, len(images.class_names))
        model.compile(
            optimizer=training.optimizer(
                settings.epochs * per_epoch, name=settings.optimizer, learning_rate=settings.learning_rate,
                warmup=settings.warmup, weight_decay=settings.weight_decay, clip_norm=settings.clip_norm,
                ema=settings.ema, precision=settings.precision,
            ),
            steps_per_execution=training.steps_per_call(per_epoch, settings.steps_per_execution),
        )  # fmt: skip
        with work.progress.stage("classifier", settings.epochs) as stage:
            model, history = training.fit(
                model,
                lambda first: batches(first)[0],
                epochs=settings.epochs,
                steps_per_epoch=per_epoch,
                folder=folder,
                callback=fit_callback(stage),
            )
        if settings.precision != "float32":
            # Scores and the threshold are float32: what was trained in half precision is measured and served in full.
            plain = build_classifier(recipe, len(images.class_names), precision="float32")
            plain.set_weights(model.get_weights())
            model = plain
        model.save(folder / "classifier.keras")
        return {"history": history, "parameters": model.count_params()}

    decides = {
        "train": settings.model_dump(exclude={"devices"}),
        "classifier": recipe.classifier.model_dump(),
        "head": recipe.head.model_dump(),
        "augment": recipe.data.augment,
        "exposure": [recipe.outliers.exposure, recipe.outliers.weight, per_batch] if exposed else None,
        "outliers": [stage.facts["sha256"] for stage in outlier_stages] if exposed else [],
        "images": work.digest("train"),
        "seed": seed,
        "backend": keras.backend.backend(),
    }
    return work.stage("classifier", decides, make, on=work.devices.fitting)


def evaluate_classifier(work: Work) -> Stage:
    """Scores every set, chooses the headline score on validation images, and sets the threshold."""
    recipe = work.recipe
    near = {name: work.data(f"data.near.{name}") for name in recipe.data.near}
    far = {name: work.data(f"data.far.{name}") for name in recipe.data.far}

    def make(folder: Path) -> dict[str, Any]:
        classifier = keras.saving.load_model(work.stages["classifier"].folder / "classifier.keras", compile=False)
        total = 1 + len(near) + len(far) + 1 + (2 + 1) * (recipe.evaluate.headline == "auto")
        with work.progress.stage("evaluate", total, unit="set") as stage:
            result = evaluate(
                classifier,
                **{name: work.data(name) for name in ("train", "validation", "calibration", "test")},
                near=near,
                far=far,
                names=recipe.evaluate.scores,
                headline=recipe.evaluate.headline.lower(),
                accept=recipe.serve.accept,
                batch_size=recipe.evaluate.batch_size,
                seed=recipe.data.split_seed,
                progress=stage.update,
            )
        flat = {f"{where}/{name}": v for where, values in result.scores.items() for name, v in values.items()}
        np.savez(folder / "scores.npz", allow_pickle=False, **flat)
        np.savez(folder / "parity.npz", allow_pickle=False, **result.parity)
        if result.state:
            np.savez(folder / "state.npz", allow_pickle=False, **result.state)
        return result.figures

    decides = {
        "evaluate": recipe.evaluate.model_dump(),
        "accept": recipe.serve.accept,
        "classifier": work.stages["classifier"].key,
        "id": work.digest("train", "validation", "calibration", "test"),
        "near": dict(zip(near, work.digest(*(f"data.near.{n}" for n in near)), strict=True)),
        "far": dict(zip(far, work.digest(*(f"data.far.{n}" for n in far)), strict=True)),
        "seed": recipe.data.split_seed,
    }
    return work.stage("evaluate", decides, make, awaited=False)


def export_model(work: Work) -> Stage:
    """Publishes the SavedModel as the next integer version, if it answers as the Keras model does."""
    evaluated = work.stages["evaluate"]
    state = evaluated.folder / "state.npz"

    def make(_: Path) -> dict[str, Any]:
        version = work.run.next_version()
        with work.progress.stage("export"), np.load(evaluated.folder / "parity.npz", allow_pickle=False) as expected:
            differences = publish(
                work.stages["classifier"].folder / "classifier.keras",
                work.run.folder / str(version),
                score=evaluated.facts["headline_score"],
                state_file=state if state.exists() else None,
                threshold=evaluated.facts["threshold"]["value"],
                image_shape=work.recipe.data.shape,
                class_names=list(work.data("train").class_names),
                images=np.asarray(work.data("test").images[: len(expected["label"])]),
                expected=dict(expected),
            )
        return {"version": version, "differences": differences}

    decides = {"evaluate": evaluated.key}
    stage = work.stage("export", decides, make, awaited=False)
    if not (work.run.folder / str(stage.facts["version"]) / "saved_model.pb").exists():
        shutil.rmtree(stage.folder)
        stage = work.stage("export", decides, make, awaited=False)
    return stage
