"""The gradient step of each Keras backend, and how a forward pass is compiled there.

`TrainStep` is a `keras.Model` with the step of the backend in use. A model that inherits from it says its losses once,
in `keras.ops`:

    loss_terms(batch, training) -> {term: scalar tensor}

and lists the terms' names in `terms`; `of_layers` gives the term of what its layers add by themselves. The step
minimises their sum. Everything else about an update is the optimizer's:
clipping (`global_clipnorm`), the moving average of the weights (`use_ema`), loss scaling under float16.

`devices` says how a step and a forward pass spread over several devices, and what that asks of a model's losses;
`resident` how a batch names images that lie on the device.
"""

import keras

match keras.backend.backend():
    case "tensorflow":
        from kood.backends.tensorflow import TrainStep
    case "jax":
        from kood.backends.jax import TrainStep  # type: ignore[assignment]
    case "torch":
        from kood.backends.torch import TrainStep  # type: ignore[assignment]
    case other:
        raise ImportError(f"kood trains on tensorflow, jax or torch; KERAS_BACKEND is {other!r}")

from kood.backends.devices import (
    Devices,
    accelerated,
    agreed,
    compiled,
    everyone,
    exactly,
    feed,
    generators,
    gradient,
    mine,
    obtain,
    set_generators,
    several,
    share,
    total,
    whole,
)
from kood.backends.layers import BatchNormalization, Dropout
from kood.backends.rates import SlowerAdam, SlowerSGD
from kood.backends.resident import resides

__all__ = [
    "BatchNormalization", "Devices", "Dropout", "SlowerAdam", "SlowerSGD", "TrainStep", "accelerated", "agreed",
    "compiled", "everyone", "exactly", "feed", "generators", "gradient", "mine", "obtain", "resides", "set_generators",
    "several", "share", "total", "whole",
]  # fmt: skip
