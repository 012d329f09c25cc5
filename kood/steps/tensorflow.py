"""The training step under TensorFlow: a gradient tape."""

import contextlib

import tensorflow as tf

from kood.steps.tensorflow_devices import summed_up
from kood.steps.terms import LossTerms

__all__ = ["TrainStep", "forward", "gradient"]


class TrainStep(LossTerms):
    """Gradient step of a `keras.Model` that has `losses`, for the TensorFlow backend."""

    @contextlib.contextmanager
    def holding(self, images):
        """As on every backend; a step that was traced takes the images it was traced with."""
        with super().holding(images):
            if images is not None:
                self.train_function = None
            yield
        if images is not None:
            self.train_function = None

    def train_step(self, data):
        """One update from one batch."""
        with tf.GradientTape() as tape:
            loss, values = self.total(self.held(data), training=True)
            scaled = self.optimizer.scale_loss(loss)
        weights = self.trainable_weights
        gradients = summed_up(tape.gradient(scaled, weights))
        self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
        return self._logs(values)

    def test_step(self, data):
        """The loss terms of one batch, nothing learned."""
        _, values = self.total(data, training=False)
        return self._logs(values)

    def _logs(self, values):
        logs = self.show(summed_up(values))
        if isinstance(self.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy):
            # Keras takes the mean over rows of what a worker's step returns, so a number has to be a row.
            return {name: value[None] for name, value in logs.items()}
        return logs

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Readies the optimizer for several replicas, before Keras's first step; the model has been built.

        Keras would look at a batch first, which the training then never sees, and fails on one of several workers. And
        it would sum the replicas' gradients after clipping them; here they are sums before.
        """
        if self._distribute_strategy is None:
            return
        for optimizer in (self.optimizer, getattr(self.optimizer, "inner_optimizer", None)):
            if optimizer is not None:
                optimizer._all_reduce_sum_gradients = list
        if self.optimizer is not None and not self.optimizer.built:
            with self._distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)


def forward(model):
    """The model's forward pass in inference mode, and among how many devices it splits its rows.

    The rows must divide among the devices.
    """
    strategy = model.distribute_strategy
    devices = 1 if strategy.num_replicas_in_sync == 1 else len(strategy.extended.worker_devices)
    if devices == 1:
        return tf.function(lambda inputs: model(inputs, training=False)), 1

    @tf.function
    def split(inputs):
        def part():
            place = tf.distribute.get_replica_context().replica_id_in_sync_group

            def mine(values):
                rows = tf.shape(values)[0] // devices
                return values[place * rows : (place + 1) * rows]

            return model(tf.nest.map_structure(mine, inputs), training=False)

        def joined(values):
            return tf.concat(strategy.experimental_local_results(values), axis=0)

        return tf.nest.map_structure(joined, strategy.run(part))

    return split, devices


def gradient(model, of):
    """The gradient of the sum of `of(outputs)` by the model's inputs, in inference mode."""

    @tf.function
    def gradient(inputs):
        inputs = tf.convert_to_tensor(inputs)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            total = tf.reduce_sum(of(model(inputs, training=False)))
        return tape.gradient(total, inputs)

    return gradient
