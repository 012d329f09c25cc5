"""Angular heads with a margin that stays as it is."""

import math

import keras
from keras import ops

from kood.geometry import sines, top_value
from kood.heads.angular import AngularHead, Head
from kood.numbers import whole

__all__ = ["ArcFace", "CosFace", "NormFace", "SphereFace", "SubCenterArcFace"]


@keras.saving.register_keras_serializable(package="kood")
class NormFace(AngularHead):
    """Scaled cosines without a margin: logits = scale * cos(theta).

    Source: Wang et al. 2017, arXiv:1704.06369, with a scale that stays fixed (the paper also learns it).

    Args:
        num_classes: Number of classes K, at least 2.
        scale: A number above 0, or "auto" for sqrt(2) ln(K - 1).

    Raises:
        ValueError: See `AngularHead`.
    """

    OPTIONS = (*Head.OPTIONS, "scale")

    def __init__(self, num_classes, scale="auto", **kwargs):
        super().__init__(num_classes, 0.0, scale, **kwargs)

    def target_cosine(self, cosine, sine):
        return cosine


@keras.saving.register_keras_serializable(package="kood")
class SphereFace(AngularHead):
    """Multiplicative angular margin: the target's angle counts `margin` times.

    target = psi(theta) = (-1)^k cos(m theta) - 2k for theta in [k pi/m, (k+1) pi/m], which continues cos(m
    theta) to a function that falls on the whole of [0, pi]. m need not be whole: the last piece is then cut
    off at pi.

    Source: Liu et al. 2017, arXiv:1704.08063, with prototypes of unit length. The paper multiplies by the
    feature's length; here `scale` takes its place, so that every angular head has the same logits without
    labels. (pytorch-metric-learning multiplies by length and scale, and rounds the margin down to a whole
    number.)

    Args:
        num_classes: Number of classes K, at least 2.
        margin: The multiplier m, at least 1 (1: no margin).
        scale: A number above 0, or "auto" for sqrt(2) ln(K - 1).

    Raises:
        ValueError: A margin below 1; see also `AngularHead`.
    """

    def __init__(self, num_classes, margin=4.0, scale="auto", **kwargs):
        super().__init__(num_classes, margin, scale, **kwargs)
        if not (math.isfinite(self.margin) and self.margin >= 1):
            raise ValueError(f"SphereFace's margin multiplies the angle; it must be at least 1, not {margin!r}.")

    def target_cosine(self, cosine, sine):
        angle = self.margin * ops.arctan2(sine, cosine)
        # psi is continuous between pieces, so rounding that picks the neighbouring piece does no harm.
        piece = ops.stop_gradient(ops.floor(angle / math.pi))
        sign = 1.0 - 2.0 * (piece - 2.0 * ops.floor(piece / 2.0))
        return sign * ops.cos(angle) - 2.0 * piece


@keras.saving.register_keras_serializable(package="kood")
class CosFace(AngularHead):
    """Additive cosine margin: target = cos(theta) - m.

    Source: Wang et al. 2018, arXiv:1801.09414.

    Args:
        num_classes: Number of classes K, at least 2.
        margin: m in cosine units, at least 0.
        scale: A number above 0, or "auto" for sqrt(2) ln(K - 1).

    Raises:
        ValueError: A negative margin; see also `AngularHead`.
    """

    def __init__(self, num_classes, margin=0.35, scale="auto", **kwargs):
        super().__init__(num_classes, margin, scale, **kwargs)
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise ValueError(f"CosFace's margin is taken off a cosine; it must be at least 0, not {margin!r}.")

    def target_cosine(self, cosine, sine):
        return cosine - self.margin


@keras.saving.register_keras_serializable(package="kood")
class ArcFace(AngularHead):
    """Additive angular margin: target = cos(theta + m).

    Past theta = pi - m, where cos(theta + m) would rise again, target = cos(theta) - m sin(m). This is the
    continuation of insightface without `easy_margin`, and of pytorch-metric-learning (whose margin is in
    degrees: 28.6 for 0.5); it falls on the whole of [0, pi], with a step down at pi - m, as long as cos(m) + m sin(m)
    is at least 1: up to m = 2.33. Beyond, the step at pi - m is upwards.

    Source: Deng et al. 2019, arXiv:1801.07698.

    Args:
        num_classes: Number of classes K, at least 2.
        margin: m in radians, in [0, pi).
        scale: A number above 0, or "auto" for sqrt(2) ln(K - 1).

    Raises:
        ValueError: A margin outside [0, pi), as one in degrees would be; see also `AngularHead`.
    """

    def __init__(self, num_classes, margin=0.5, scale="auto", **kwargs):
        super().__init__(num_classes, margin, scale, **kwargs)
        self._check_radians()

    def target_cosine(self, cosine, sine):
        added = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
        continued = cosine - self.margin * math.sin(self.margin)
        return ops.where(cosine >= math.cos(math.pi - self.margin), added, continued)


@keras.saving.register_keras_serializable(package="kood")
class SubCenterArcFace(ArcFace):
    """ArcFace with several prototypes a class, of which the nearest counts.

    The cosine of a class is the largest of the cosines with its sub-centres; then target = cos(theta + m), continued as
    in `ArcFace`. Images of a class that look unlike the rest may gather at a sub-centre of their own.

    Source: Deng et al. 2020, "Sub-center ArcFace", ECCV (K = 3 there, K being the number of sub-centres).

    Args:
        num_classes: Number of classes K, at least 2.
        margin: m in radians, in [0, pi).
        scale: A number above 0, or "auto" for sqrt(2) ln(K - 1).
        sub_centers: Prototypes a class, C, at least 1 (1: ArcFace).

    Attributes:
        prototypes: Weight (D, K C); columns k C to k C + C - 1 are those of class k.

    Raises:
        ValueError: A number of sub-centres below 1; see also `ArcFace`.
    """

    OPTIONS = (*ArcFace.OPTIONS, "sub_centers")

    def __init__(self, num_classes, margin=0.5, scale="auto", sub_centers=3, **kwargs):
        super().__init__(num_classes, margin, scale, **kwargs)
        self.sub_centers = whole("sub_centers", sub_centers, 1)

    def _directions(self, features):
        features, prototypes, cosine = super()._directions(features)
        cosine = top_value(ops.reshape(cosine, (-1, self.num_classes, self.sub_centers)))
        return features, prototypes, cosine

    def _sines(self, cosine, features, prototypes, target):
        by_class = ops.reshape(ops.transpose(prototypes), (self.num_classes, self.sub_centers, -1))
        own = ops.take(by_class, target, axis=0)
        nearest = ops.argmax(ops.sum(own * ops.expand_dims(features, 1), axis=-1), axis=-1)
        chosen = ops.take_along_axis(own, ops.reshape(nearest, (-1, 1, 1)), axis=1)
        return sines(cosine, features, ops.squeeze(chosen, 1), target)
