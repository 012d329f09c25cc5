"""What the training steps of all backends share: the loss terms as metrics."""

import contextlib
from collections.abc import Iterator

import keras
import numpy as np
from keras import ops

from kood.backends.devices import share
from kood.backends.resident import on_device, with_images

__all__ = ["LossTerms"]

#: The term of what layers add by themselves.
LAYERS = "layer_losses"


class LossTerms(keras.Model):
    """A model that keeps a running mean of each loss term and of their sum.

    Attributes:
        terms: Names of the terms that every step has, in order.
    """

    terms: tuple[str, ...] = ()
    _images = None
    _layers_add = False

    def watch(self, *terms: str) -> None:
        """Names the terms; a model calls it once, in its `__init__`."""
        self.terms = terms
        self._means = [keras.metrics.Mean(name=name) for name in ("loss", *terms)]

    def loss_terms(self, batch, training=False):
        """The loss terms of one batch; the step minimises their sum.

        On one of several replicas: its share of them, see `kood.backends.devices`.

        Args:
            batch: What the data set yields, with its images.
            training: Whether layers run in training mode.

        Returns:
            {name: scalar float32 tensor}, the names being `terms`, and what `of_layers` gives.
        """
        raise NotImplementedError

    def of_layers(self):
        """What the layers themselves add to the loss, by Keras's regularizers and `add_loss`, in the calls just made.

        Returns:
            {"layer_losses": their sum, scalar float32}; empty where they add nothing.
        """
        added = self.losses
        if not added:
            return {}
        if len(added) > sum(weight.regularizer is not None for weight in self.trainable_weights):
            self.refuse_mixed()
        return {LAYERS: share(sum(ops.sum(ops.cast(one, "float32")) for one in added))}

    def refuse_mixed(self):
        """Refuses what layers add of their rows where Keras keeps it for several replicas in one place."""

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
        terms = self.loss_terms(with_images(batch), training=True)
        loss = sum(terms[name] for name in self.terms)
        self._layers_add = LAYERS in terms
        if self._layers_add:
            loss = loss + terms[LAYERS]
        return loss, [loss, *(terms[name] for name in self.terms)]

    def show(self, values):
        """Moves the running means and returns them as Keras's logs."""
        for mean, value in zip(self.metrics, values, strict=True):
            mean.update_state(value)
        return self.get_metrics_result()

    def get_metrics_result(self):
        """The running means; what layers add is the rest of the sum, so that no file needs a place for its mean."""
        shown = {mean.name: mean.result() for mean in self.metrics}
        if self._layers_add:
            shown[LAYERS] = shown["loss"] - sum(shown[name] for name in self.terms)
        return shown


def _public_optimizer(config):
    if isinstance(config, dict):
        if "registered_name" in config and hasattr(keras.optimizers, str(config.get("class_name"))):
            config = {**config, "module": "keras.optimizers", "registered_name": None}
        return {key: _public_optimizer(value) for key, value in config.items()}
    return config
