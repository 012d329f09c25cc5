"""Angular heads that follow the training."""

import math

import keras
from keras import ops

from kood.geometry import label_rows, labelled, lengths, top_class
from kood.heads.angular import AngularHead, Head, fixed_scale
from kood.heads.margins import ArcFace, NormFace
from kood.numbers import above_zero, fraction

__all__ = ["AdaCos", "AdaFace", "CurricularFace"]

#: Stands for minus infinity where infinity minus infinity would give NaN.
NEVER = -1e30


def _followed(head, name, start):
    """A number () that the head moves itself; every replica computes the same."""
    return head.add_weight(
        name=name, shape=(), initializer=keras.initializers.Constant(start), trainable=False, autocast=False,
        aggregation="mean",
    )  # fmt: skip


@keras.saving.register_keras_serializable(package="kood")
class AdaCos(NormFace):
    """Cosines under a scale that follows the training, without a margin and without a hyperparameter.

    The scale starts at sqrt(2) ln(K - 1). A call with labels and `training=True` first moves it to

        s' = ln(B) / cos(min(pi/4, median target angle)),
        B  = mean over rows of the sum over the classes other than the target of exp(s cos),

    and returns logits under s'. Nothing else moves it, and no gradient flows through it. The median of an
    even number is the mean of the two middle angles. The target of a mixed row is its largest label, the
    first of equals; all-zero rows take no part. Where the rule gives no scale, the old one stays: a batch
    without a labelled row, or B <= 1, when every other class points away so strongly that s' would be zero or
    negative.

    Source: Zhang et al. 2019, arXiv:1905.00292.

    Args:
        num_classes: Number of classes K, at least 3.

    Attributes:
        scale: Non-trainable weight ().

    Raises:
        ValueError: Fewer than 3 classes, for which ln(K - 1) = 0 is no scale.
    """

    OPTIONS = Head.OPTIONS

    def __init__(self, num_classes, **kwargs):
        super().__init__(num_classes, **kwargs)
        self.scale = _followed(self, "scale", fixed_scale(self.num_classes))

    def call(self, features, labels=None, training=None):
        """Scaled cosines, as `AngularHead.call`; with labels and `training=True` the scale moves first."""
        features, prototypes, cosine = self._directions(features)
        scale = ops.convert_to_tensor(self.scale)
        if labels is not None:
            labels = label_rows(labels, self.num_classes)
            if training:
                fixed = [ops.stop_gradient(x) for x in (cosine, features, prototypes, labels)]
                scale = self._moved(scale, *fixed)
                self.scale.assign(scale)
        return ops.stop_gradient(scale) * cosine

    def _moved(self, scale, cosine, features, prototypes, labels):
        target = top_class(labels)
        is_target = ops.one_hot(target, self.num_classes, dtype="float32")
        taking_part = labelled(labels)
        rows = ops.sum(ops.cast(taking_part, "int32"))

        others = ops.logical_and(is_target == 0, ops.expand_dims(taking_part, -1))
        summed = ops.logsumexp(ops.where(others, scale * cosine, NEVER))
        log_b = summed - ops.log(ops.cast(ops.maximum(rows, 1), "float32"))

        sine = self._sines(cosine, features, prototypes, target)
        angles = ops.sum(is_target * ops.arctan2(sine, cosine), axis=-1)
        # Rows that take no part sort last, and one entry more lets a batch without a row be indexed.
        angles = ops.sort(ops.concatenate([ops.where(taking_part, angles, math.pi), ops.full((1,), math.pi)]))
        middle = ops.stack([ops.maximum(rows - 1, 0) // 2, rows // 2])
        median = ops.mean(ops.take(angles, middle))

        moved = log_b / ops.cos(ops.minimum(math.pi / 4, median))
        return ops.where(ops.logical_and(rows > 0, moved > 0), moved, scale)


@keras.saving.register_keras_serializable(package="kood")
class CurricularFace(ArcFace):
    """ArcFace that turns from easy to hard negatives as the training goes on.

    With c_y the target's cosine and T its margin cosine, cos(theta + m) continued as in `ArcFace`, another class of
    cosine c is hard where c > T, where it wins against the margin. The logits are scale times

        T for the target,    c (t + c) for a hard class,    c for every other;

    t is a running mean of c_y: early on it lowers hard cosines, later it raises them. It starts at 0. A call with
    labels and `training=True` first moves it to

        t' = momentum t + (1 - momentum) r,    r = mean over rows of c_y,

    and returns logits under t'. Nothing else moves it, and no gradient flows through it. The target of a mixed row is
    its largest label, the first of equals; it alone decides which classes are hard, and a hard class of label l changes
    by the share (sum of the row's labels) - l. All-zero rows take no part; a batch without a labelled row leaves t, and
    so does one whose r is not a number.

    Source: Huang et al. 2020, arXiv:2004.00288. The paper prints r with the weight alpha = 0.99; the authors' code
    gives it 0.01, the share that makes t a slow mean, and so does the default here. In their code a class is hard where
    c > cos(theta_y + m) without the continuation, which differs only past theta_y = pi - m.

    Args:
        num_classes: Number of classes K, at least 2.
        margin: m in radians, in [0, pi).
        scale: A number above 0, or "auto" for sqrt(2) ln(K - 1).
        momentum: Share of the old t, in [0, 1).

    Attributes:
        t: Non-trainable weight ().

    Raises:
        ValueError: A momentum outside [0, 1); see also `ArcFace`.
    """

    OPTIONS = (*ArcFace.OPTIONS, "momentum")

    def __init__(self, num_classes, margin=0.5, scale="auto", momentum=0.99, **kwargs):
        super().__init__(num_classes, margin, scale, **kwargs)
        self.momentum = fraction("momentum", momentum)
        self.t = _followed(self, "t", 0.0)

    def call(self, features, labels=None, training=None):
        """Scaled cosines, as `AngularHead.call`, with the margin on the labelled classes and the hard ones changed.

        With labels and `training=True` t moves first.
        """
        features, prototypes, cosine = self._directions(features)
        if labels is None:
            return self.scale * cosine
        labels = label_rows(labels, self.num_classes)
        target = top_class(labels)
        is_target = ops.one_hot(target, self.num_classes, dtype="float32")
        t = ops.convert_to_tensor(self.t)
        if training:
            t = self._moved(t, ops.stop_gradient(ops.sum(is_target * cosine, axis=-1)), labelled(labels))
            self.t.assign(t)
        with_margin = self.target_cosine(cosine, self._sines(cosine, features, prototypes, target))
        border = ops.sum(is_target * with_margin, axis=-1, keepdims=True)
        hard = ops.logical_and(cosine > border, is_target == 0)
        share = ops.cast(hard, "float32") * (ops.sum(labels, axis=-1, keepdims=True) - labels)
        harder = cosine * (ops.stop_gradient(t) + cosine)
        return self.scale * (cosine + labels * (with_margin - cosine) + share * (harder - cosine))

    def _moved(self, t, cosine, taking_part):
        rows = ops.sum(ops.cast(taking_part, "float32"))
        mean = ops.sum(ops.where(taking_part, cosine, 0.0)) / ops.maximum(rows, 1.0)
        moved = self.momentum * t + (1.0 - self.momentum) * mean
        return ops.where(ops.logical_and(rows > 0, ops.isfinite(moved)), moved, t)


@keras.saving.register_keras_serializable(package="kood")
class AdaFace(AngularHead):
    """A margin that follows each feature's length, which stands for the quality of its image.

    With q = clip((|z| - mean) h / std, -1, 1) of a feature z, the target's angle and cosine get

        target = cos(theta - m q) - m (1 + q),    theta - m q kept within [0, pi]:

    from cos(theta + m) for short features (q = -1, ArcFace, mild on what is hard) over cos(theta) - m (q = 0, CosFace)
    to cos(theta - m) - 2 m for long ones (q = 1, hardest on what is hard). No gradient flows through q. The mean and
    the standard deviation of the lengths are running ones. A call with labels and `training=True` first moves each to

        momentum old + (1 - momentum) that of the batch,

    and returns logits under the moved ones; the first batch sets them. Nothing else moves them. The batch's standard
    deviation has n - 1 below the sum, n being the number of labelled rows: all-zero rows take no part. A batch with
    fewer than two labelled rows leaves both as they were, and so does one whose lengths are not numbers. Before the
    first batch, and as long as every length is the same, q = 0. Lengths count up to 1e15.

    Source: Kim et al. 2022, arXiv:2204.00964. Their code starts from a mean of 20 and a standard deviation of 100, for
    features of 512 dimensions, adds 1e-3 to the standard deviation and takes lengths from 1e-3 to 100; here nothing
    depends on the unit of the features. The momentum is that of the paper.

    Args:
        num_classes: Number of classes K, at least 2.
        margin: m, radians and cosine units in one, in [0, pi).
        scale: A number above 0, or "auto" for sqrt(2) ln(K - 1).
        h: Standard deviations by which lengths must differ for q to differ by 1 are 1 / h; above 0.
        momentum: Share of the old mean and standard deviation, in [0, 1).

    Attributes:
        length_mean: Non-trainable weight ().
        length_std: Non-trainable weight ().

    Raises:
        ValueError: A margin outside [0, pi), h not above 0, a momentum outside [0, 1); see also `AngularHead`.
    """

    OPTIONS = (*AngularHead.OPTIONS, "h", "momentum")

    def __init__(self, num_classes, margin=0.4, scale="auto", h=0.333, momentum=0.99, **kwargs):
        super().__init__(num_classes, margin, scale, **kwargs)
        self._check_radians()
        self.h = above_zero("h", h)
        self.momentum = fraction("momentum", momentum)
        self.length_mean = _followed(self, "length_mean", 0.0)
        self.length_std = _followed(self, "length_std", 0.0)

    def target_cosine(self, cosine, sine, quality=0.0):
        turn = -self.margin * ops.convert_to_tensor(quality, dtype="float32")
        turned = cosine * ops.cos(turn) - sine * ops.sin(turn)
        turned = ops.where(ops.logical_and(turn > 0, cosine < -ops.cos(turn)), -1.0, turned)
        turned = ops.where(ops.logical_and(turn < 0, cosine > ops.cos(turn)), 1.0, turned)
        return turned + turn - self.margin

    def call(self, features, labels=None, training=None):
        """Scaled cosines, as `AngularHead.call`, with the margin of each feature's length on the labelled classes.

        With labels and `training=True` the mean and the standard deviation of the lengths move first.
        """
        length = lengths(ops.stop_gradient(ops.cast(features, "float32")))
        features, prototypes, cosine = self._directions(features)
        if labels is None:
            return self.scale * cosine
        labels = label_rows(labels, self.num_classes)
        mean, std = ops.convert_to_tensor(self.length_mean), ops.convert_to_tensor(self.length_std)
        if training:
            mean, std = self._moved(mean, std, length[:, 0], labelled(labels))
            self.length_mean.assign(mean)
            self.length_std.assign(std)
        quality = ops.clip((length - mean) * self.h / ops.where(std > 0, std, 1.0), -1.0, 1.0)
        quality = ops.stop_gradient(ops.where(std > 0, quality, 0.0))
        sine = self._sines(cosine, features, prototypes, top_class(labels))
        return self.scale * (cosine + labels * (self.target_cosine(cosine, sine, quality) - cosine))

    def _moved(self, mean, std, length, taking_part):
        rows = ops.sum(ops.cast(taking_part, "float32"))
        batch_mean = ops.sum(ops.where(taking_part, length, 0.0)) / ops.maximum(rows, 1.0)
        apart = ops.where(taking_part, length - batch_mean, 0.0)
        batch_std = ops.sqrt(ops.sum(ops.square(apart)) / ops.maximum(rows - 1.0, 1.0))
        old = ops.where(std > 0, self.momentum, 0.0)
        moved = [old * before + (1.0 - old) * now for before, now in ((mean, batch_mean), (std, batch_std))]
        counts = ops.logical_and(rows > 1, ops.isfinite(moved[0] + moved[1]))
        return ops.where(counts, moved[0], mean), ops.where(counts, moved[1], std)
