"""Optimizers under which a backbone learns at a lower rate than what stands after it."""

import keras
from keras import ops

from kood.backends.devices import pieces

__all__ = ["SlowerAdam", "SlowerSGD"]


class _Slower(keras.optimizers.Optimizer):
    """What the optimizers below have in common: their first weights follow `share` times the rate of the others.

    So do the steps of a group of parameters elsewhere, that of the weight decay with them.

    Args:
        slower: How many weights, the first of those that the optimizer is built on.
        share: Of the rate, at least 0.
        decay: Decoupled weight decay (arXiv 1711.05101); Keras's own, which this replaces, knows one rate.
    """

    def __init__(self, *arguments, slower=0, share=1.0, decay=0.0, **settings):
        super().__init__(*arguments, **settings)
        self.slower, self.share, self.decay = slower, share, decay
        self.slowed: frozenset[int] = frozenset()

    def build(self, variables):
        super().build(variables)
        self.slowed = frozenset(id(piece) for one in variables[: self.slower] for piece in pieces(one))

    def update_step(self, gradient, variable, learning_rate):
        rate = ops.cast(learning_rate, variable.dtype) * (self.share if id(variable) in self.slowed else 1.0)
        if self.decay:
            self.assign_sub(variable, variable * (self.decay * rate))
        super().update_step(gradient, variable, rate)

    def get_config(self):
        return {**super().get_config(), "slower": self.slower, "share": self.share, "decay": self.decay}


@keras.saving.register_keras_serializable(package="kood")
class SlowerAdam(_Slower, keras.optimizers.Adam):
    """Adam (arXiv 1412.6980), or with `decay` AdamW, of two rates."""


@keras.saving.register_keras_serializable(package="kood")
class SlowerSGD(_Slower, keras.optimizers.SGD):
    """SGD of two rates."""
