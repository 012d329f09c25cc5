"""The stages that train a classifier: exposed or not, they are the same under other settings."""

import functools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kood import training
from kood.classifier import Classifier as Model
from kood.data import ImageSet
from kood.data.batches import training_batches
from kood.data.deferred import chained, kept
from kood.data.image_set import joined
from kood.files import digest_array
from kood.nets.neck import standardize, whole
from kood.pipeline.build import backbone_weights, build_classifier, class_weights, frozen_backbone, network_of, said_of
from kood.pipeline.diffusion import Pure
from kood.pipeline.features import Features, OutlierFeatures, moments
from kood.pipeline.fitting import augmentations, decided, fitted, remembered, resident_images
from kood.pipeline.held_out import Fewer
from kood.pipeline.outliers import Outliers
from kood.pipeline.prepare import Rows
from kood.pipeline.stage import Stage, Work
from kood.recipe import Recipe
from kood.recipe.sections import Head
from kood.recipe.training_sections import Auxiliary
from kood.training import TimeBudget

__all__ = ["Classifier", "FineTuned", "head_recipe", "judge_recipe", "unexposed"]


def unexposed(recipe: Recipe) -> Recipe:
    """The recipe of the same classifier, trained on real images alone."""
    return recipe.changed(outliers={"use": []}, pure_samples={"use": []})


def judge_recipe(recipe: Recipe) -> Recipe:
    """The recipe of the judge, which is asked what sampled images show: unexposed, under a softmax head.

    It is the cell "softmax, none" of a matrix, to the letter, so that the two are one training.
    """
    return unexposed(recipe).model_copy(update={"head": Head()})


def head_recipe(recipe: Recipe) -> Recipe:
    """The recipe of the first part of one that fine-tunes: of the same head on a frozen backbone."""
    if recipe.classifier.train != "last":
        return recipe
    frozen = {"train": "head", "backbone_rate": 1.0, "frozen_statistics": False}
    return recipe.changed(classifier=frozen, train={"auxiliary": Auxiliary()})


class Classifier(Stage):
    """A classifier, fitted to in-distribution and outlier rows of one batch.

    Pure samples under "id_rows" are further in-distribution rows of every batch. Under "augment" they join the training
    images: each batch is as large as without them and drawn from both together, and there are as many batches, so that
    the classifiers of a table have been trained equally long and differ in what they saw alone.

    Args:
        data: Where its images are; or, under a frozen backbone, what that gives for them.
        outliers: What it is exposed to, likewise.
        pure: Samples of one class each to train on, where the recipe does.
    """

    kind, version, on = "classifier", 4, "fitting"
    #: The stages before it that train parts of it.
    begun: "tuple[Classifier, ...]" = ()
    _ema_key = "train.ema"

    def __init__(
        self,
        recipe: Recipe,
        data: Rows,
        outliers: Sequence[Outliers | OutlierFeatures | Fewer] = (),
        pure: Pure | None = None,
        role: str = "",
    ):
        super().__init__(recipe, role)
        self.data, self.outliers, self.pure = data, outliers, pure

    @property
    def _augment(self) -> list[str]:
        if self.data.frozen is not None:  # Augmented were the views.
            return []
        own = self.recipe.train.augment
        return self.recipe.data.augment if own is None else own

    @property
    def _pure_per_batch(self) -> int:
        if self.pure is None or "id_rows" not in self.recipe.pure_samples.use:
            return 0
        return self.recipe.pure_samples.per_batch or self.recipe.outliers.per_batch

    @property
    def _joins_pure(self) -> bool:
        return self.pure is not None and "augment" in self.recipe.pure_samples.use

    def decides(self) -> dict[str, Any]:
        settings, outliers, seed = self.recipe.train, self.recipe.outliers, self.seed("classifier")
        exposure = {
            "images": [one.facts["sha256"] for one in self.outliers],
            "virtual": None,
            **{name: source.model_dump() for name, source in outliers.layers.items()},
            **outliers.model_dump(include={"exposure", "weight", "begin", "reach", "per_batch"}),
        }
        if outliers.target != "uniform":
            # Sources may draw the same pixels under other shares.
            shares = (one if one is None else digest_array(one) for one in self._shares())
            exposure["target"] = [outliers.target, *shares]
        if outliers.amplitude != "own":
            exposure["amplitude"] = [outliers.amplitude, seed]
        if outliers.mix != "none":
            exposure["mix"] = [outliers.mix, outliers.mix_alpha]
        decides = {
            "train": settings.model_dump(exclude={"augment", "auxiliary", "devices", "resident", "class_weight"}),
            "classifier": network_of(self.recipe),
            "head": self.recipe.head.model_dump(),
            "augment": decided(self.recipe, self.data, self._augment),
            "exposure": exposure if outliers.exposes else None,
            "pure": [self.pure.facts["sha256"], self._joins_pure, self._pure_per_batch] if self.pure else None,
            "images": self.data.digest("train"),
            "seed": seed,
            "backend": keras.backend.backend(),
        }
        if isinstance(self.data.frozen, Features):
            # Not its key, which moves with every set that is measured.
            views = self.data.digest("views") if self.recipe.classifier.views else []
            decides["features"] = [self.data.frozen.passing, *views]
        if settings.auxiliary.name != "none":
            decides["auxiliary"] = settings.auxiliary.model_dump()
        if settings.class_weight is not None:
            train = self.data.images("train")
            decides["class_weight"] = class_weights(settings.class_weight, train.known_labels, train.class_names)
        return decides

    def uses(self) -> list[tuple[str, str]]:
        outliers = self.recipe.outliers
        named = [("backbones", self.recipe.classifier.backbone), ("heads", self.recipe.head.name)]
        named += [("augmentations", name) for name in self._augment]
        if outliers.exposes:
            named += [
                ("losses", outliers.exposure),
                *(("outliers", outliers.named(table)) for table in outliers.layers),
            ]
        return named

    def make(self, folder: Path, work: Work) -> dict[str, Any]:
        began, recipe, seed = time.monotonic(), self.recipe, self.seed("classifier")
        settings, seconds = recipe.train, work.budget.of(self.kind, recipe)
        images, steps = self.data.seen(), None
        classes = len(images.class_names)
        outliers, targets = self._exposed_to(classes)
        per_batch = recipe.outliers.per_batch if outliers is not None else 0
        labelled = self.pure.images() if self.pure is not None else None
        if labelled is not None and self._joins_pure:
            steps, images, labelled = len(images) // settings.batch_size, joined([images, labelled]), None
        augment = augmentations(recipe, self.data, self._augment)
        held = resident_images(recipe, augment, images, outliers, labelled)

        @functools.cache  # The data set from the first epoch on is asked for twice.
        def batches(first: int):
            return training_batches(
                images, outliers, batch_size=settings.batch_size, outliers_per_batch=per_batch,
                epochs=settings.epochs, seed=seed, first_epoch=first, augment=augment, labelled=labelled,
                labelled_per_batch=self._pure_per_batch, outlier_targets=targets, steps=steps,
                mix=recipe.outliers.mix, mix_alpha=recipe.outliers.mix_alpha, resident=held is not None,
            )  # fmt: skip

        _, per_epoch = batches(0)
        if self.data.frozen is not None:
            frozen_backbone(recipe)  # Which draws what it needs, but only where this process does not have it yet.
        keras.utils.set_random_seed(seed)
        weights = class_weights(settings.class_weight, images.known_labels, images.class_names)
        total = settings.epochs * per_epoch
        counts = np.bincount(images.known_labels, minlength=classes).tolist()
        model = build_classifier(
            recipe, classes, steps=total, seed=self.seed("virtual"), class_weight=weights, counts=counts
        )
        if self.data.frozen is not None:
            standardize(model.backbone, *moments(np.asarray(self.data.images("train").images)))
        notes = [*said_of(model.backbone), *self._shortened(counts)]
        for stage in self.begun:
            _give(model, stage.model())
        at_once = 250 if self.data.frozen is not None else 25
        model.compile(
            optimizer=training.optimizer(
                None if seconds else total, name=settings.optimizer, learning_rate=settings.learning_rate,
                warmup=settings.warmup, weight_decay=settings.weight_decay, clip_norm=settings.clip_norm,
                ema=settings.ema, precision=settings.precision, share=recipe.classifier.backbone_rate,
                slower=0 if recipe.classifier.is_frozen else backbone_weights(model, recipe),
            ),
            steps_per_execution=training.steps_per_call(per_epoch, settings.steps_per_execution, at_once),
        )  # fmt: skip
        limit = None
        if seconds:
            limit = TimeBudget(seconds, settings.learning_rate, steps=total, warmup=settings.warmup, since=began)
        facts: dict[str, Any] = {"history": {}}
        trained = 0
        if settings.epochs:
            model, facts, trained = fitted(
                self, work, folder, model, lambda first: batches(first)[0], epochs=settings.epochs,
                steps_per_epoch=per_epoch, rows=settings.batch_size + self._pure_per_batch + per_batch, limit=limit,
                images=held,
            )  # fmt: skip
            if settings.ema is not None:
                facts["averaged"] = trained
            if model.exposed is not None:
                facts["exposed"] = int(keras.ops.convert_to_numpy(model.exposed))
        plain = _plain(model, recipe, classes)
        plain.save(folder / self._file)
        training.remove_checkpoint(folder)
        before = frozen_backbone(recipe).count_params() if self.data.frozen is not None else 0
        length = {"epochs": round(trained / per_epoch, 2)} if limit else {}
        return {**facts, "parameters": before + plain.count_params(), "notes": notes, **length}

    def _shortened(self, counts: Sequence[int]) -> list[str]:
        """Says so where classes have fewer images than a queue of virtual outliers is to hold."""
        outliers = self.recipe.outliers
        queue = outliers.virtual.queue if outliers.exposes and "virtual" in outliers.layers else 0
        fewer = [count for count in counts if count < queue]
        if not fewer:
            return []
        return [f"outliers.virtual.queue = {queue}: {len(fewer)} of {len(counts)} classes are learnt from fewer rows, "
                f"{min(fewer)} at least, and have queues of as many places"]  # fmt: skip

    @property
    def warnings(self) -> list[str]:
        told, epochs = [], self.facts.get("epochs", 1.0)
        if epochs < 1:
            told.append(f"{self.role}: the time was enough for {epochs:g} of {self.recipe.train.epochs} epochs, so it "
                        "has not seen every image once; give the run more minutes")  # fmt: skip
        return [*told, *self._averaged(), *self._unexposed()]

    def _averaged(self) -> list[str]:
        """Says so where the average of the weights is still much what it began as; once, not for those beside it too.

        The lengths of a smoke run are not the user's.
        """
        if self.recipe.quick or self.role not in (Classifier.kind, f"{Classifier.kind}_head"):
            return []
        return remembered(self._ema_key, self.recipe.train.ema, self.facts.get("averaged", 0))

    def _unexposed(self) -> list[str]:
        """Says so where no step of the training was exposed to some outliers, and why."""
        outliers, exposed = self.recipe.outliers, self.facts.get("exposed", 2)
        if exposed == 2:
            return []
        never = f"{self.role}: was never exposed to {{}}outliers" + (" in fine-tuning" if self.begun else "")
        longer = f"raise {'fine_tuning' if self.begun else 'train'}.epochs"
        if self.facts.get("epochs", math.inf) < self.recipe.train.epochs:  # The time ended it.
            longer = "give the run more minutes"
        if exposed == 0:
            return [f"{never.format('')}, since it ended before outliers.begin = {outliers.begin:g} of its time; lower "
                    f"outliers.begin, or {longer}"]  # fmt: skip
        name = next(iter(outliers.layers))
        lower = ", or lower outliers.virtual.queue" if name == "virtual" else ""
        return [f"{never.format(f'{name} ')}, since not every class had filled its queue when the training ended; "
                f"{longer}{lower}"]  # fmt: skip

    @property
    def _file(self) -> str:
        """What it keeps: of a frozen backbone's classifier what stands after that, which all of them share."""
        return "classifier.keras" if self.data.frozen is None else "after_features.keras"

    def _shares(self) -> list[np.ndarray | None]:
        return [one.shares() for one in self.outliers]

    def _exposed_to(self, classes: int) -> tuple[ImageSet | None, np.ndarray | None]:
        """The outlier images and, where it is taught them, the shares (N, K) of the classes that each is made of."""
        if not self.recipe.outliers.exposes or not self.outliers:
            return None, None
        images = [kept(one.exposed(self.seed(f"amplitude {one.kind}")).images) for one in self.outliers]
        targets = None
        if self.recipe.outliers.target == "parents":
            nothing = [np.zeros((len(drawn), classes), "float32") for drawn in images]
            targets = np.concatenate([n if s is None else s for s, n in zip(self._shares(), nothing, strict=True)])
        return ImageSet(chained(images)), targets

    @property
    def card(self) -> dict[str, Any]:
        """What the model card tells of the classifier."""
        return {"head": self.recipe.head.name, "backbone": self.recipe.classifier.backbone}

    function = None  #: What makes its pixels is kood's own.

    def labelled(self, images: ImageSet) -> ImageSet:
        """Images of the data, their labels counted as the model's outputs are: as they are."""
        return images

    def model(self) -> Model:
        """The trained classifier, of images."""
        kept = self._kept()
        if self.data.frozen is None:
            return kept
        made = Model(whole(frozen_backbone(self.recipe), kept.backbone), kept.head, name="classifier")
        made.build((None, *self.recipe.data.shape))
        return made

    def file(self, beside: Path) -> Path:
        """The `.keras` file of the trained classifier, of images.

        Args:
            beside: A folder to write it into, where it keeps none.
        """
        if self.data.frozen is None:
            return self.folder / self._file
        self.model().save(beside / "classifier.keras")
        return beside / "classifier.keras"

    def measured(self) -> tuple[Rows, Model]:
        """What the trained classifier is measured on and the part of it that takes this: images and all of it; or what
        a frozen backbone gave for them, and what stands after that."""
        return self.data, self._kept()

    def _kept(self) -> Model:
        return keras.saving.load_model(self.folder / self._file, compile=False)


class FineTuned(Classifier):
    """A classifier whose head has been trained on a frozen backbone, trained on as a whole, on pixels.

    Args:
        recipe: What it is trained by; `fine_tuning` before `train`.
    """

    kind, version = "fine_tuned", 2

    def __init__(
        self, recipe: Recipe, data: Rows, outliers: Sequence[Outliers | Fewer], begun: Classifier, role: str = ""
    ):
        if recipe.fine_tuning.ema is not None:
            self._ema_key = "fine_tuning.ema"
        given = {key: value for key, value in recipe.fine_tuning.model_dump().items() if value is not None}
        super().__init__(recipe.changed(train=given), data, outliers, role=role or Classifier.kind)
        self.begun, begun.only_for = (begun,), (self,)

    def decides(self) -> dict[str, Any]:
        return {**super().decides(), "begun": [stage.key for stage in self.begun]}


def _plain(model: Model, recipe: Recipe, classes: int) -> Model:
    """The classifier as it is measured and served: in float32, and without what only training needs."""
    plain = build_classifier(recipe, classes, precision="float32", exposed=False)
    _give(plain, model)
    return plain


def _give(model: Model, other: Model) -> None:
    """Gives a classifier the weights of another one's backbone and heads."""
    for mine, its in ((model.backbone, other.backbone), (model.head, other.head)):
        mine.set_weights(its.get_weights())
    if model.rotation and other.rotation:
        model.rotation_head.set_weights(other.rotation_head.get_weights())
