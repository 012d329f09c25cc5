"""What the training steps of all backends share: the loss terms as metrics."""

import contextlib
from collections.abc import Iterator

import keras
import numpy as np

from kood.backends.resident import on_device, with_images

__all__ = ["LossTerms"]


class LossTerms(keras.Model):
    """A model that keeps a running mean of each loss term and of their sum.

    Attributes:
        terms: Names of the terms that `losses` returns, in order.
    """

    terms: tuple[str, ...] = ()
    _images = None

    def watch(self, *terms: str) -> None:
        """Names the terms; a model calls it once, in its `__init__`."""
        self.terms = terms
        self._means = [keras.metrics.Mean(name=name) for name in ("loss", *terms)]

    def losses(self, batch, training=False):
        """The loss terms of one batch; the step minimises their sum.

        On one of several replicas: its share of them, see `kood.backends.devices`.

        Args:
            batch: What the data set yields, with its images.
            training: Whether layers run in training mode.

        Returns:
            {name: scalar float32 tensor}, the names being `terms`.
        """
        raise NotImplementedError

    @contextlib.contextmanager
    def holding(self, images: np.ndarray | None) -> Iterator[None]:
        """Inside, a batch may name rows of these images in place of having images, see `kood.backends.resident`.

        Args:
            images: uint8 (N, H, W, C), on the device as long as the block; or None, and nothing changes.
        """
        self._images = None if images is None else on_device(images)
        try:
            yield
        finally:
            self._images = None

    def held(self, batch):
        """The batch beside the images that its rows are of."""
        return batch if self._images is None or "pixels" in batch else {**batch, "pixels": self._images}

    def get_compile_config(self):
        """What `compile` was given, in words that every backend understands.

        Under torch Keras writes the optimizer's private class for that backend into the file, which no other can run.
        """
        return _public_optimizer(super().get_compile_config())

    @property
    def metrics(self):
        """Running means of the total and of each term; Keras resets them every epoch."""
        return list(self._means)

    def total(self, batch):
        """The sum that a training step minimises, and every value to show: the sum first, then the terms."""
        terms = self.losses(with_images(batch), training=True)
        loss = sum(terms[name] for name in self.terms)
        return loss, [loss, *(terms[name] for name in self.terms)]

    def show(self, values):
        """Moves the running means and returns them as Keras's logs."""
        for mean, value in zip(self.metrics, values, strict=True):
            mean.update_state(value)
        return {mean.name: mean.result() for mean in self.metrics}


def _public_optimizer(config):
    if isinstance(config, dict):
        if "registered_name" in config and hasattr(keras.optimizers, str(config.get("class_name"))):
            config = {**config, "module": "keras.optimizers", "registered_name": None}
        return {key: _public_optimizer(value) for key, value in config.items()}
    return config
