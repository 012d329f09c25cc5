"""The training step under torch: a backward pass."""

import torch

from kood.steps.terms import LossTerms

__all__ = ["TrainStep", "compiled"]


class TrainStep(LossTerms):
    """Gradient step of a `keras.Model` that has `losses`, for the torch backend."""

    def train_step(self, data):
        """One update from one batch."""
        self.zero_grad()
        loss, values = self.total(data, training=True)
        self.optimizer.scale_loss(loss).backward()
        weights = self.trainable_weights
        with torch.no_grad():
            self.optimizer.apply([weight.value.grad for weight in weights], weights)
            return self.show([value.detach() for value in values])

    def test_step(self, data):
        """The loss terms of one batch, nothing learned."""
        with torch.no_grad():
            _, values = self.total(data, training=False)
            return self.show(values)


def compiled(model):
    """The model's forward pass in inference mode, without gradients.

    Args:
        model: A built `keras.Model`.

    Returns:
        A function of the model's inputs; NumPy arrays or tensors in, tensors out.
    """

    def forward(inputs):
        with torch.no_grad():
            return model(inputs, training=False)

    return forward
