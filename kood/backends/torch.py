"""The training step under torch: a backward pass."""

import torch
from keras.ops import convert_to_tensor

from kood.backends.terms import LossTerms
from kood.backends.torch_devices import exactly, summed_up

__all__ = ["TrainStep", "forward", "gradient"]


class TrainStep(LossTerms):
    """Gradient step of a `keras.Model` that has `loss_terms`, for the torch backend."""

    @exactly()
    def train_step(self, data):
        """One update from one batch."""
        self.zero_grad()
        loss, values = self.total(self.held(data))
        self.optimizer.scale_loss(loss).backward()
        weights = self.trainable_weights
        with torch.no_grad():
            sums = summed_up([*(weight.value.grad for weight in weights), *(value.detach() for value in values)])
            self.optimizer.apply(sums[: len(weights)], weights)
            return self.show(sums[len(weights) :])


def forward(model):
    """The model's forward pass in inference mode, without gradients, and among how many devices it splits: one."""
    return exactly()(torch.no_grad()(lambda inputs: model(inputs, training=False))), 1


def gradient(model, of):
    """The gradient of the sum of `of(outputs)` by the model's inputs, in inference mode."""

    def gradient(inputs):
        with exactly(), torch.inference_mode(False), torch.enable_grad():
            inputs = convert_to_tensor(inputs).detach().clone().requires_grad_()  # One of inference mode stays such.
            return torch.autograd.grad(of(model(inputs, training=False)).sum(), inputs)[0]

    return gradient
