"""Classifier backbones: images (B, H, W, C) in [-1, 1] to features (B, D), without a head.

Every backbone is a functional `keras.Model`, so it saves to `.keras` and loads without this package; one of
`pretrained` with layers of KerasCV's own loads where KerasCV is imported.
"""

from kood.nets.backbones import pretrained as _pretrained
from kood.nets.backbones import residual, small, wide
from kood.nets.backbones.pretrained import *  # noqa: F403
from kood.nets.backbones.residual import *  # noqa: F403
from kood.nets.backbones.small import *  # noqa: F403
from kood.nets.backbones.wide import *  # noqa: F403

__all__ = _pretrained.__all__ + residual.__all__ + small.__all__ + wide.__all__
