"""The whole story of a run, one function per stage, in order.

    recipe -> data -> diffusion model -> outliers -> classifier -> evaluation -> SavedModel -> report

Stages hand each other only files. What a stage's result depends on is spelled out in its call of `run.stage`; where
nothing of that changed, its result is taken as it lies.
"""

import json
import os
import platform
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
from rich.console import Console

import kood
from kood import registry, report, training
from kood.classifier import Classifier
from kood.data import ImageSet, load_id, load_ood
from kood.data.batches import labelled_batches, training_batches
from kood.data.outliers import noise_images, pixel_mixup
from kood.data.stored import read_images, source_state, write_images
from kood.diffusion import label_mixup
from kood.diffusion.denoiser import Denoiser
from kood.errors import UserError
from kood.evaluate import evaluate
from kood.recipe import Recipe, load
from kood.report.sheet import write_sheet
from kood.runs import Run, Stage, fingerprint, write_atomically
from kood.serving.publishing import publish

__all__ = ["make_cell", "run"]

#: Raised by one when a stage's code changes its result, so that results of older code are not taken for it.
VERSIONS = {
    "data": 1, "diffusion": 1, "label_mixup": 1, "pixel_mixup": 1, "noise": 1, "real": 1, "classifier": 1,
    "evaluate": 1, "export": 1,
}  # fmt: skip

#: A smoke run looks at no more images of a set than this.
QUICK_IMAGES = 200


@dataclass
class Work:
    """What every stage function is given: the recipe of one cell, the folder, the display, and the stages so far."""

    recipe: Recipe
    run: Run
    progress: report.StageProgress
    stages: dict[str, Stage] = field(default_factory=dict)
    seen: set[Path] = field(default_factory=set)

    def stage(self, name: str, decides: dict[str, Any], make) -> Stage:
        """Finds or makes a stage's result and keeps it under its name."""
        decides = {"version": VERSIONS[name], "quick": self.recipe.quick, **decides}
        stage = self.run.stage(name, decides, make)
        if stage.cached and stage.folder not in self.seen:
            self.progress.cached(name)
        self.seen.add(stage.folder)
        self.stages[name] = stage
        return stage

    def seed(self, purpose: str) -> int:
        """A seed for one purpose, which follows from the recipe's."""
        return int(fingerprint(self.recipe.seed, purpose), 16) % 2**31

    def data(self, name: str) -> ImageSet:
        """One of the image sets of the data stage."""
        stage = self.stages["data"]
        return read_images(stage.folder, name, stage.facts["sets"][name])

    def digest(self, *names: str) -> list[str]:
        """The contents of image sets, for fingerprints."""
        return [self.stages["data"].facts["sets"][name]["sha256"] for name in names]


def run(
    path: str | Path,
    overrides: tuple[str, ...] | list[str] = (),
    *,
    fresh: bool = False,
    quick: bool = False,
    saved: Path = Path("saved"),
    console: Console | None = None,
) -> dict[str, Any]:
    """Runs a recipe from its file to its report.

    Args:
        path: The recipe.
        overrides: `KEY=VALUE` settings.
        fresh: Make every stage again.
        quick: Smoke run.
        saved: Where run folders go.
        console: Where to print.

    Returns:
        What `report.json` holds.

    Raises:
        UserError: the recipe, the data or the environment cannot do it.
    """
    console = console or Console()
    recipe = load(path, overrides, quick=quick)
    cells = recipe.cells()
    with Run(saved / recipe.name, fresh=fresh).held() as folder:
        write_atomically(folder.folder / "recipe.toml", recipe.to_toml().encode())
        progress = report.StageProgress(console)
        if not recipe.matrix:
            work = Work(recipe, folder, progress)
            result = make_cell(work)
            _write_single(folder.folder, result, work)
            report.print_cell(console, result)
        else:
            result = _run_matrix(recipe, cells, folder, progress)
            report.write_json(folder.folder / "report.json", result)
            report.write(folder.folder / "report.html", result)
            report.print_matrix(console, result)
        _say_where(console, folder.folder, result)
    return result


def _run_matrix(recipe: Recipe, cells, folder: Run, progress: report.StageProgress) -> dict[str, Any]:
    made, failed = [], []
    seen: set[Path] = set()
    for number, (labels, cell) in enumerate(cells, start=1):
        shown = ", ".join(f"{key} {label}" for key, label in labels.items())
        progress.say(f"cell {number}/{len(cells)}: {shown}", style="bold")
        try:
            made.append({**make_cell(Work(cell, folder, progress, seen=seen)), "cell": labels})
        except (UserError, ValueError, RuntimeError, ArithmeticError, MemoryError, OSError) as error:
            failed.append({"cell": labels, "error": f"{error}" if isinstance(error, UserError) else repr(error)})
            progress.say(f"cell {number}/{len(cells)} failed: {failed[-1]['error']}", style="red")
        keras.utils.clear_session()
    if not made:
        raise UserError(f"every cell failed; the first: {failed[0]['error']}", exit_code=1)
    return {
        **{key: made[0][key] for key in ("backend", "kood", "quick", "environment")},
        "recipe": recipe.name,
        "cells": made,
        "failed": failed,
        "table": report.aggregate(made),
    }


def make_cell(work: Work) -> dict[str, Any]:
    """One classifier, from data to SavedModel; returns its part of the report."""
    prepare_data(work)
    check(work)
    if "label_mixup" in work.recipe.outliers.use:
        train_denoiser(work)
    outliers = make_outliers(work)
    train_classifier(work, outliers)
    evaluate_classifier(work)
    if work.recipe.serve.export:
        export_model(work)
    return summarize(work)


def prepare_data(work: Work) -> Stage:
    """Brings every image set to the recipe's shape, splits the in-distribution one, and writes down what entered."""
    data, limit = work.recipe.data, QUICK_IMAGES if work.recipe.quick else None
    places = {"id": data.id, **data.near, **data.far}
    if work.recipe.outliers.real is not None and "real" in work.recipe.outliers.use:
        places["outliers.real"] = work.recipe.outliers.real

    def make(folder: Path) -> dict[str, Any]:
        with work.progress.stage("data", len(places), unit="set") as stage:
            splits = load_id(data)
            names = ("train", "validation", "calibration", "test")
            sets = {name: getattr(splits, name) for name in names}
            if limit:
                sets["test"] = _some(sets["test"], 2 * limit)
            facts = {name: write_images(folder, name, images) for name, images in sets.items()}
            stage.update(1)
            for done, (key, source) in enumerate(_ood_sources(work.recipe).items(), start=2):
                images = load_ood(source, data.shape, seed=data.split_seed, key=key)
                facts[key] = write_images(folder, key, _some(images, limit) if limit else images)
                stage.update(done)
            return {"sets": facts}

    decides = {
        "data": data.model_dump(exclude={"augment"}),
        "real": places["outliers.real"].model_dump() if "outliers.real" in places else None,
        "states": {name: source_state(source.path) for name, source in places.items()},
    }
    stage = work.stage("data", decides, make)
    for name, facts in stage.facts["sets"].items():
        # A near or far set that holds training images would be scored as if the detector were wrong.
        if name.startswith("data.") and facts["sha256"] == stage.facts["sets"]["train"]["sha256"]:
            raise UserError(f"{name}: holds the same images as data.id; an out-of-distribution set must not")
    return stage


def _ood_sources(recipe: Recipe) -> dict[str, Any]:
    """The out-of-distribution sets by their recipe keys."""
    sources = {f"data.{kind}.{name}": s for kind in ("near", "far") for name, s in getattr(recipe.data, kind).items()}
    if recipe.outliers.real is not None and "real" in recipe.outliers.use:
        sources["outliers.real"] = recipe.outliers.real
    return sources


def _some(images: ImageSet, most: int) -> ImageSet:
    if len(images) <= most:
        return images
    return images.take(np.sort(np.random.default_rng(0).choice(len(images), most, replace=False)))


def check(work: Work) -> None:
    """What only data can reveal is refused before the first training step."""
    recipe, classes = work.recipe, work.data("train").class_names
    if len(classes) < 2:
        raise UserError(f"data.id: has {len(classes)} class; a classifier needs at least 2")
    if "label_mixup" in recipe.outliers.use and recipe.outliers.label_mixup.classes > len(classes):
        raise UserError(
            f"outliers.label_mixup.classes is {recipe.outliers.label_mixup.classes}, but data.id has {len(classes)}"
        )
    if recipe.evaluate.headline == "auto" and len(work.data("validation")) == 0:
        raise UserError("evaluate.headline = 'auto' chooses on validation images; set data.id.validation above 0")
    build_classifier(recipe, len(classes))
    if "label_mixup" in recipe.outliers.use:
        build_network(recipe, len(classes))


def build_network(recipe: Recipe, num_classes: int) -> keras.Model:
    """The denoiser's network."""
    settings = recipe.diffusion
    with training.precision(settings.precision):
        return _built("diffusion.options", registry.obtain("denoisers", settings.denoiser), recipe.data.shape, num_classes,
                      **settings.options)  # fmt: skip


def build_classifier(recipe: Recipe, num_classes: int) -> Classifier:
    """The untrained classifier of a recipe."""
    with training.precision(recipe.train.precision):
        backbone = _built("classifier.options", registry.obtain("backbones", recipe.classifier.backbone),
                          recipe.data.shape, **recipe.classifier.options)  # fmt: skip
    head = _built("head", registry.obtain("heads", recipe.head.name), num_classes, **recipe.head.options())
    exposed = bool(recipe.outliers.use) and recipe.outliers.weight > 0
    model = Classifier(
        backbone,
        head,
        exposure=registry.find("losses", recipe.outliers.exposure, "outliers.exposure").attribute if exposed else None,
        exposure_weight=recipe.outliers.weight,
        name="classifier",
    )
    model.build((None, *recipe.data.shape))
    return model


def _built(key: str, make, *arguments, **options):
    """Calls a network or head; what it refuses is the recipe's fault."""
    try:
        return make(*arguments, **options)
    except (ValueError, TypeError) as error:
        raise UserError(f"{key}: {error}") from error


def train_denoiser(work: Work) -> Stage:
    """Fits the class-conditional diffusion model on the training images."""
    settings, seed = work.recipe.diffusion, work.seed("diffusion")

    def make(folder: Path) -> dict[str, Any]:
        images = work.data("train")
        classes = len(images.class_names)
        epochs, per_epoch = _epochs(settings.steps)
        keras.utils.set_random_seed(seed)
        model = Denoiser(
            build_network(work.recipe, classes),
            schedule=settings.schedule,
            num_steps=settings.num_steps,
            prediction=settings.prediction,
            label_dropout=settings.label_dropout,
            seed=seed,
            name="denoiser",
        )
        model.compile(
            optimizer=training.optimizer(
                settings.steps, learning_rate=settings.learning_rate, clip_norm=settings.clip_norm, ema=settings.ema
            ),
            steps_per_execution=training.steps_per_call(per_epoch),
        )
        with work.progress.stage("diffusion", epochs) as stage:
            model, history = training.fit(
                model,
                lambda first: labelled_batches(
                    images, num_classes=classes, batch_size=settings.batch_size, steps=settings.steps, seed=seed,
                    first_step=first * per_epoch, augment=work.recipe.data.augment,
                ),
                epochs=epochs,
                steps_per_epoch=per_epoch,
                folder=folder,
                callback=report.fit_callback(stage),
            )  # fmt: skip
        model.save(folder / "denoiser.keras")
        return {"history": history, "parameters": model.count_params()}

    decides = {
        "diffusion": settings.model_dump(),
        "augment": work.recipe.data.augment,
        "train": work.digest("train"),
        "seed": seed,
        "backend": keras.backend.backend(),
    }
    return work.stage("diffusion", decides, make)


def _epochs(steps: int) -> tuple[int, int]:
    """Splits a number of training steps into epochs of one length, about twenty of them."""
    epochs = next((e for e in range(min(20, steps), 0, -1) if steps % e == 0), 1)
    return epochs, steps // epochs


def make_outliers(work: Work) -> list[Stage]:
    """Makes the outliers of each source that the recipe uses."""
    makers = {"label_mixup": _label_mixup, "pixel_mixup": _pixel_mixup, "noise": _noise, "real": _real}
    return [makers[name](work) for name in work.recipe.outliers.use]


def _label_mixup(work: Work) -> Stage:
    settings, seed, shape = work.recipe.outliers.label_mixup, work.seed("label_mixup"), work.recipe.data.shape
    sampler = registry.obtain("samplers", settings.sampler)
    how: dict[str, Any] = {
        "sampler": sampler, "num_steps": settings.sampling_steps, "mix": settings.mix, "guidance": settings.guidance,
        "clip": settings.clip or None, "seed": seed,
    }  # fmt: skip

    def make(folder: Path) -> dict[str, Any]:
        names = work.data("train").class_names
        denoiser = keras.saving.load_model(work.stages["diffusion"].folder / "denoiser.keras", compile=False)
        rng = np.random.default_rng(seed)
        mixtures = label_mixup.mixtures(
            settings.count, len(names), classes=settings.classes, weight=settings.weight, alpha=settings.alpha, rng=rng
        )
        conditions = label_mixup.sweep(len(names), rng=rng)
        rows, columns = conditions.shape[:2]
        # One start noise along a row of the contact sheet, so that only the mixture changes.
        noise = np.repeat(rng.standard_normal((rows, *shape)).astype("float32"), columns, axis=0)
        with work.progress.stage("label_mixup", settings.count, unit="image") as stage:
            images = label_mixup.sample(denoiser, mixtures, shape, progress=stage.update, **how)
            swept = label_mixup.sample(
                denoiser, conditions.reshape(rows * columns, -1), shape, noise=noise, batch_size=min(256, settings.count),
                **how,
            )  # fmt: skip
        np.save(folder / "mixtures.npy", mixtures)
        facts = write_images(folder, "outliers", ImageSet(_uint8(images)))
        write_sheet(folder / "sheet.png", _uint8(swept).reshape(rows, columns, *shape), conditions, list(names))
        return facts

    decides = {
        "mixup": settings.model_dump(),
        "diffusion": work.stages["diffusion"].key,
        "seed": seed,
        "backend": keras.backend.backend(),
    }
    return work.stage("label_mixup", decides, make)


def _pixel_mixup(work: Work) -> Stage:
    settings, seed = work.recipe.outliers.pixel_mixup, work.seed("pixel_mixup")

    def make(folder: Path) -> dict[str, Any]:
        train = work.data("train")
        images = pixel_mixup(
            np.asarray(train.images), train.labels, settings.count, weight=settings.weight, alpha=settings.alpha,
            rng=np.random.default_rng(seed),
        )  # fmt: skip
        return write_images(folder, "outliers", ImageSet(images))

    return work.stage("pixel_mixup", {**settings.model_dump(), "train": work.digest("train"), "seed": seed}, make)


def _noise(work: Work) -> Stage:
    settings, seed, shape = work.recipe.outliers.noise, work.seed("noise"), work.recipe.data.shape

    def make(folder: Path) -> dict[str, Any]:
        images = noise_images(
            settings.count, shape, kind=settings.kind, scale=settings.scale, rng=np.random.default_rng(seed)
        )
        return write_images(folder, "outliers", ImageSet(images))

    return work.stage("noise", {**settings.model_dump(), "shape": shape, "seed": seed}, make)


def _real(work: Work) -> Stage:
    def make(folder: Path) -> dict[str, Any]:
        return write_images(folder, "outliers", ImageSet(np.asarray(work.data("outliers.real").images)))

    return work.stage("real", {"images": work.digest("outliers.real")}, make)


def _uint8(images: np.ndarray) -> np.ndarray:
    return np.clip(np.rint((images + 1.0) * 127.5), 0, 255).astype("uint8")


def train_classifier(work: Work, outlier_stages: list[Stage]) -> Stage:
    """Fits the classifier on in-distribution and outlier rows of one batch."""
    recipe, seed = work.recipe, work.seed("classifier")
    settings, per_batch = recipe.train, recipe.outliers.per_batch
    exposed = bool(outlier_stages) and recipe.outliers.weight > 0

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
                ema=settings.ema,
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
                callback=report.fit_callback(stage),
            )
        model.save(folder / "classifier.keras")
        return {"history": history, "parameters": model.count_params()}

    decides = {
        "train": settings.model_dump(),
        "classifier": recipe.classifier.model_dump(),
        "head": recipe.head.model_dump(),
        "augment": recipe.data.augment,
        "exposure": [recipe.outliers.exposure, recipe.outliers.weight, per_batch] if exposed else None,
        "outliers": [stage.facts["sha256"] for stage in outlier_stages] if exposed else [],
        "images": work.digest("train"),
        "seed": seed,
        "backend": keras.backend.backend(),
    }
    return work.stage("classifier", decides, make)


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
        np.savez(folder / "scores.npz", **flat)
        np.savez(folder / "parity.npz", **result.parity)
        if result.state:
            np.savez(folder / "state.npz", **result.state)
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
    return work.stage("evaluate", decides, make)


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
    stage = work.stage("export", decides, make)
    if not (work.run.folder / str(stage.facts["version"]) / "saved_model.pb").exists():
        shutil.rmtree(stage.folder)
        stage = work.stage("export", decides, make)
    return stage


def summarize(work: Work) -> dict[str, Any]:
    """The cell's part of `report.json`."""
    figures, sets = work.stages["evaluate"].facts, work.stages["data"].facts["sets"]
    datasets = {
        name: {"kind": kind, **{key: sets[f"data.{kind}.{name}"][key] for key in ("images", "sha256")}}
        for kind in ("near", "far")
        for name in getattr(work.recipe.data, kind)
    }
    inside = {name: {key: sets[name][key] for key in ("images", "sha256")} for name in ("train", "test")}
    return {
        "recipe": work.recipe.name,
        "cell": {},
        "backend": keras.backend.backend(),
        "kood": kood.__version__,
        "quick": work.recipe.quick,
        "seeds": [work.recipe.seed],
        **figures,
        "datasets": datasets,
        "id_sets": inside,
        "class_names": list(work.data("train").class_names),
        "version": work.stages["export"].facts["version"] if "export" in work.stages else None,
        "stages": {name: {"seconds": s.seconds, "cached": s.cached} for name, s in work.stages.items()},
        "environment": environment(),
    }


def environment() -> dict[str, str]:
    """What the run ran on."""
    import tensorflow as tf

    versions = {"python": platform.python_version(), "keras": keras.__version__, "tensorflow": tf.__version__}
    backend = sys.modules.get(keras.backend.backend())
    if keras.backend.backend() != "tensorflow" and backend is not None:
        versions[keras.backend.backend()] = backend.__version__
    return {**versions, "numpy": np.__version__, "machine": platform.machine(), "cpus": str(os.cpu_count())}


def _write_single(folder: Path, result: dict[str, Any], work: Work) -> None:
    report.write_json(folder / "report.json", result)
    histories = {
        name: work.stages[name].facts["history"] for name in ("diffusion", "classifier") if name in work.stages
    }
    with np.load(work.stages["evaluate"].folder / "scores.npz", allow_pickle=False) as arrays:
        ending = f"/{result['headline_score']}"
        headline = {key.removesuffix(ending): arrays[key] for key in arrays.files if key.endswith(ending)}
    sheet = work.stages["label_mixup"].folder / "sheet.png" if "label_mixup" in work.stages else None
    report.write(folder / "report.html", result, scores=headline, histories=histories, contact_sheet=sheet)


def _say_where(console: Console, folder: Path, result: dict[str, Any]) -> None:
    stages = result.get("stages", {})
    trained = [name for name in ("diffusion", "classifier") if name in stages and not stages[name]["cached"]]
    if stages and not trained:
        console.print("Nothing was trained: the results of an earlier run fit this recipe.", highlight=False)
    console.print(f"Report: {folder / 'report.html'}", highlight=False, soft_wrap=True)
    if result.get("version"):
        console.print(f"SavedModel: {folder / str(result['version'])}", highlight=False, soft_wrap=True)


def read_report(folder: Path) -> dict[str, Any]:
    """The report of a finished run."""
    try:
        return json.loads((folder / "report.json").read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: there is no finished run here ({error})") from error
