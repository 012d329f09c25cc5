"""The classifier: a backbone, a head, and the loss terms of outlier exposure."""

import inspect
from typing import Any

import keras
from keras import ops

from kood import losses as loss_functions
from kood import registry
from kood.backends import TrainStep, everyone, mine, total, whole
from kood.heads import AngularHead
from kood.rotation import ROTATIONS, rotated, surprise

__all__ = ["Classifier"]


@keras.saving.register_keras_serializable(package="kood")
class Classifier(TrainStep):
    """Backbone and head, trained on in-distribution rows and, where there are any, outlier rows of one batch.

    The loss of a batch with in-distribution rows I and outlier rows O is

        mean over I of cross_entropy(margin logits, label)  +  weight * mean over O of exposure(logits or cosines),

    each mean over its own kind's rows. With the KL exposure this is Hendrycks et al. 2019 (arXiv 1812.04606); where
    outlier rows are mixtures and their labels say of which class in what share, Zhang et al. 2023 (arXiv 2106.03917).
    Only an exposure that takes `labels` sees those: to the head a mixture is an outlier, without a margin. Virtual
    outliers, features rather than images, count among O once every class has filled its queue.

    With class weights w the cross-entropy of an in-distribution row with the label p counts sum over classes of p_k w_k
    times, the expected weight of its class. The mean stays one over the number of rows I: weights whose mean over the
    training images is 1 leave the loss at its size, and a batch weighs the same on one device and on several. A head
    that has a `dispersion(features, labels)` adds it to the loss. What layers of backbone and head add by regularizers
    and `add_loss` is part of it too, as in Keras.

    With `rotation` a dense layer on the features, of four outputs, learns by how many quarters of a turn an image was
    rotated (Hendrycks et al. 2019, arXiv 1906.12340):

        rotation * mean over I and the four rotations r of -ln p(r | x rotated by r)

    is added to the loss. The rotated images pass in one batch with the others, so batch normalization averages over
    them too; cross-entropy and exposure are of the images as they stand. Outlier rows are not rotated.

    Args:
        backbone: Model, images (B, H, W, C) in [-1, 1] -> features (B, D).
        head: Layer of `kood.heads`, features -> logits (B, K).
        exposure: Recipe name of a loss of outliers (`kood list losses`, those that end in `_exposure`), or None.
        exposure_weight: Its weight.
        exposure_begin: Training steps before exposure starts; until then its weight is 0. A `kood.training.TimeBudget`
            moves the count, `step`, on with the time.
        reach: Whether the gradient of the exposure moves the whole network ("all") or the head alone ("head"). Under
            "head" outlier rows still pass through the backbone with the others, so batch normalisation averages over
            them, and by these averages the cross-entropy's gradient depends on them.
        virtual: Layer `kood.virtual.VirtualOutliers`, or None.
        class_weight: How much each class counts in the cross-entropy, K numbers of at least 0; None for all alike.
        frozen_statistics: Whether the backbone is trained as it is used: batch normalization by the statistics that it
            has, which stay, while its weights learn, and without dropout.
        rotation: Weight of the rotations' cross-entropy; 0 for no such task.
        outlier_rows: How many rows of every training batch are outliers, so that these need not pass rotated; of a
            batch with fewer, as many other rows do not either. They count for nothing in any case. The other rows of a
            batch divide among the devices.

    Attributes:
        exposed: Weight, how far exposure has come in any training step: 0 not begun, 1 begun, but not to virtual
            outliers, whose queues were not full, 2 to all that there is; None without exposure.
    """

    def __init__(
        self,
        backbone,
        head,
        exposure=None,
        exposure_weight=0.5,
        exposure_begin=0,
        reach="all",
        virtual=None,
        class_weight=None,
        frozen_statistics=False,
        rotation=0.0,
        outlier_rows=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.backbone = backbone
        self.head = head
        self.exposure = exposure
        self.exposure_weight = exposure_weight
        self.exposure_begin = exposure_begin
        self.reach = reach
        self.virtual = virtual
        self.class_weight = None if class_weight is None else tuple(map(float, class_weight))
        self.frozen_statistics = frozen_statistics
        self.rotation = float(rotation)
        self.outlier_rows = outlier_rows
        self.rotation_head: Any = None
        if rotation:
            self.rotation_head = keras.layers.Dense(ROTATIONS, dtype="float32", name="rotation_head")
        self.step: Any = None
        self.exposed: Any = None
        self._disperses = hasattr(head, "dispersion")
        more = {"dispersion": self._disperses, "rotation": rotation, "exposure": exposure}
        self.watch("cross_entropy", *(name for name, there in more.items() if there))
        if exposure:
            self._exposure_of = registry.obtain("losses", exposure)
            parameters = list(inspect.signature(self._exposure_of).parameters)
            self._exposure_input, self._exposure_takes_labels = parameters[0], "labels" in parameters

    @property
    def is_angular(self) -> bool:
        """Whether the head has cosines."""
        return isinstance(self.head, AngularHead)

    def call(self, images, training=False):
        """Features, logits without margin and, for an angular head, cosines, all float32.

        Args:
            images: (B, H, W, C) in [-1, 1].
            training: Whether layers run in training mode.

        Returns:
            {"features": (B, D), "logits": (B, K), "cosines": (B, K) where the head has them, "rotation_logits": (B, 4)
            where rotations are told apart}. The last are of the rotation in which the image stands.
        """
        features = ops.cast(self.backbone(images, training=training), "float32")
        outputs = {"features": features, "logits": self.head(features)}
        if self.is_angular:
            outputs["cosines"] = self.head.cosines(features)
        if self.rotation:
            outputs["rotation_logits"] = self.rotation_head(features)
        return outputs

    def loss_terms(self, batch, training=False):
        """The terms of one batch.

        Args:
            batch: {"image": (B, H, W, C), "label": (B, K), "is_outlier": (B,)}. The label of an outlier is all-zero, or
                of a mixture its class times its share.
            training: Whether layers run in training mode.

        Returns:
            {"cross_entropy": scalar; "dispersion": scalar, where the head has one; "exposure" and "rotation": scalars,
            where there are such; "layer_losses": scalar, where layers add some}, all but the first already weighted.
        """
        given, outlier = ops.cast(batch["label"], "float32"), ops.cast(batch["is_outlier"], "float32")
        label = ops.where(outlier[:, None] > 0, 0.0, given)
        moving = training and not self.frozen_statistics
        images, inside = batch["image"], 1.0 - outlier
        rotation = {}
        if self.rotation:
            turned, counted = self._turned(images, inside)
            passed = ops.cast(self.backbone(ops.concatenate([images, *turned]), training=moving), "float32")
            features = passed[: ops.shape(inside)[0]]
            rotation = {"rotation": self.rotation * self._surprise(passed, inside, counted)}
        else:
            features = ops.cast(self.backbone(images, training=moving), "float32")
        if self.exposure and self.reach == "head":
            features = ops.where(outlier[:, None] > 0, ops.stop_gradient(features), features)
        # Before the head keeps what it made of these rows.
        dispersion = {"dispersion": self.head.dispersion(features, label)} if self._disperses else {}
        logits = self._logits(features, label, training)
        added = self.of_layers()  # Before the head is asked of virtual outliers, which are no rows of the batch.
        rows = loss_functions.cross_entropy(logits, label)
        if self.class_weight is not None:
            rows = rows * ops.sum(label * ops.convert_to_tensor(self.class_weight, "float32"), axis=-1)
        terms = {"cross_entropy": _mean(rows, inside), **dispersion, **rotation}
        if self.exposure:
            if self.virtual is not None and training:
                self.virtual.keep(everyone(ops.stop_gradient(features)), everyone(label), everyone(outlier))
            begun, ready = self._begun(training), 1.0 if self.virtual is None else self.virtual.ready()
            if training:
                self.exposed.assign(ops.maximum(self.exposed, begun * (1.0 + ready)))
            exposure = self._exposure(features, logits, given, outlier, ready)
            terms["exposure"] = self.exposure_weight * begun * exposure
        return {**terms, **added}

    def _turned(self, images, inside):
        """The in-distribution images in their three other rotations, and how much each row of one of these counts."""
        if self.outlier_rows:
            # A count that every backend knows when it compiles; each replica has an equal run of these rows.
            rows = whole(ops.shape(inside)[0]) - self.outlier_rows
            chosen = mine(ops.argsort(-everyone(inside))[:rows])
            images, inside = (ops.take(everyone(one), chosen, axis=0) for one in (images, inside))
        return [rotated(images, quarters) for quarters in range(1, ROTATIONS)], inside

    def _surprise(self, features, inside, counted):
        """Mean over rows and rotations of -ln p of the right one; `features` are of the images as they stand and of the
        others, one rotation after another."""
        logits, start, step = self.rotation_head(features), ops.shape(inside)[0], ops.shape(counted)[0]
        rows = [surprise(logits[:start], 0)]
        for quarters in range(1, ROTATIONS):
            rows.append(surprise(logits[start : start + step], quarters))
            start = start + step
        return _mean(ops.concatenate(rows), ops.concatenate([inside, *[counted] * (ROTATIONS - 1)]))

    def _exposure(self, features, logits, label, outlier, ready):
        """Mean of the exposure over the outlier rows and, where their queues are full, the virtual outliers."""
        on_logits = self._exposure_input == "logits"
        mixed = {"labels": label} if self._exposure_takes_labels else {}
        rows = self._exposure_of(logits if on_logits else self.head.cosines(features), **mixed)
        if self.virtual is not None:
            drawn = mine(self.virtual.draw())
            if mixed:  # They are mixtures of nothing.
                mixed = {"labels": ops.zeros((ops.shape(drawn)[0], ops.shape(label)[-1]))}
            more = self._exposure_of(self.head(drawn) if on_logits else self.head.cosines(drawn), **mixed)
            rows = ops.concatenate([rows, more])
            outlier = ops.concatenate([outlier, ready * ops.ones_like(more)])
        return _mean(rows, outlier)

    def _begun(self, training):
        """1.0 where exposure has begun in this step, which a training step counts; before, 0.0."""
        if self.step is None:
            return 1.0
        begun = ops.cast(self.step >= self.exposure_begin, "float32")
        if training:
            self.step.assign(self.step + 1)
        return begun

    def _logits(self, features, label, training):
        if training and whole(1) > 1 and self.head.non_trainable_variables:
            # What such a head keeps comes from the statistics of a batch: those of the whole one.
            self.head(everyone(ops.stop_gradient(features)), everyone(label), training=True)
            training = False
        return self.head(features, label, training=training)

    def build(self, input_shape):
        """Builds the heads, and the queues of virtual outliers, on the backbone's features."""
        shape = tuple(self.backbone.input_shape[1:])
        if self.rotation and (len(shape) != 3 or shape[0] != shape[1]):
            raise ValueError(f"rotation needs square images (S, S, C), not {shape}")
        for layer in (self.head, self.virtual, self.rotation_head):
            if layer is not None and not layer.built:
                layer.build(self.backbone.output_shape)
        if self.exposure and self.exposed is None:
            self.step = self._count("step", "int32") if self.exposure_begin else None
            self.exposed = self._count("exposed", "float32")
        self.built = True

    def _count(self, name, dtype):
        """A weight of the model, so that a training resumed from a checkpoint goes on counting."""
        return self.add_weight(
            name=name, shape=(), dtype=dtype, initializer="zeros", trainable=False, aggregation="only_first_replica"
        )

    def get_config(self):
        """The arguments, so that `from_config` makes the same classifier."""
        weights = {} if self.class_weight is None else {"class_weight": list(self.class_weight)}
        frozen = {"frozen_statistics": True} if self.frozen_statistics else {}
        return {
            **super().get_config(),
            **weights,
            **frozen,
            **({"rotation": self.rotation, "outlier_rows": self.outlier_rows} if self.rotation else {}),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "head": keras.saving.serialize_keras_object(self.head),
            "exposure": self.exposure,
            "exposure_weight": self.exposure_weight,
            "exposure_begin": self.exposure_begin,
            "reach": self.reach,
            "virtual": keras.saving.serialize_keras_object(self.virtual) if self.virtual is not None else None,
        }

    @classmethod
    def from_config(cls, config):
        """The classifier that `get_config` describes."""
        config = dict(config)
        for part in ("backbone", "head", "virtual"):
            if config.get(part) is not None:  # Not every file has virtual outliers.
                config[part] = keras.saving.deserialize_keras_object(config[part])
        return cls(**config)


def _mean(rows, weight):
    """Mean of the rows that count, of the whole batch; zero where none does."""
    return ops.sum(rows * weight) / ops.maximum(total(ops.sum(weight)), 1.0)
