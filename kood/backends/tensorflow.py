"""The training step under TensorFlow: a gradient tape."""

import contextlib
from typing import Any

import keras
import tensorflow as tf

from kood.backends.tensorflow_devices import placed, summed_up
from kood.backends.terms import LossTerms
from kood.errors import UserError

__all__ = ["TrainStep", "forward", "gradient", "inlined"]


class TrainStep(LossTerms):
    """Gradient step of a `keras.Model` that has `loss_terms`, for the TensorFlow backend."""

    def fit(self, dataset, *, epochs, steps_per_epoch, initial_epoch=0, callbacks=(), **settings):
        """As on every backend; on several devices with a loop of its own around Keras's training function.

        Keras first takes the mean over the replicas of a batch, which fails on one of several workers (3.15).
        """
        strategy = self.distribute_strategy
        # A step that makes variables is traced twice.
        with strategy.scope():
            if not self.optimizer.built:
                self.optimizer.build(self.trainable_variables)
        if strategy.num_replicas_in_sync == 1:
            settings |= {"epochs": epochs, "steps_per_epoch": steps_per_epoch, "initial_epoch": initial_epoch}
            return super().fit(dataset, callbacks=list(callbacks), **settings)
        told = keras.callbacks.CallbackList(
            list(callbacks), add_history=True, model=self, epochs=epochs, steps=steps_per_epoch
        )
        batches = iter(strategy.experimental_distribute_dataset(dataset))
        self.stop_training = False
        self.make_train_function()
        train: Any = self.train_function
        told.on_train_begin()
        for epoch in range(initial_epoch, epochs):
            self.reset_metrics()
            told.on_epoch_begin(epoch)
            for step in range(0, steps_per_epoch, self.steps_per_execution):
                told.on_train_batch_begin(step)
                told.on_train_batch_end(step + self.steps_per_execution - 1, train(batches))
                if self.stop_training:
                    break
            told.on_epoch_end(epoch, self.get_metrics_result())
            if self.stop_training:
                break
        self.optimizer.finalize_variable_values(self.trainable_weights)
        told.on_train_end()
        return self.history

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
        with placed(), tf.GradientTape() as tape:
            loss, values = self.total(self.held(data))
            scaled = self.optimizer.scale_loss(loss)
        with placed():
            weights = self.trainable_weights
            gradients = self._shares(tape.gradient(scaled, weights))
            self._apply(gradients, weights)
            return self._logs(values)

    def refuse_mixed(self):
        """As on every backend; the replicas of a process take turns within a step, and each forgets the others'."""
        strategy = self.distribute_strategy
        if strategy.num_replicas_in_sync > 1 and len(strategy.extended.worker_devices) > 1:
            raise UserError(
                "a layer adds a loss of its own (add_loss, activity_regularizer), which Keras mixes up on several "
                "devices of a process under TensorFlow; set train.devices = 1, or run under JAX or torch"
            )

    def _apply(self, gradients, weights):
        """The optimizer's update; with one replica as if its gradients had been summed up.

        TensorFlow keeps the gradient of every such sum that a graph was traced with for as long as the process lives,
        and with it the graph of the whole step. A loss scale does not take that.
        """
        pairs = list(zip(gradients, weights, strict=True))
        scales = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        if scales or tf.distribute.get_strategy().num_replicas_in_sync > 1:
            self.optimizer.apply_gradients(pairs)
        else:
            tf.distribute.get_replica_context().merge_call(lambda _: self.optimizer.apply_gradients(pairs))

    def _shares(self, gradients):
        """What the optimizer takes of each replica: it clips a replica's gradients, and then adds the replicas' up.

        So where it clips, or asks whether all is finite, the replicas' gradients are added up and clipped here first,
        and each replica hands on an equal part, which is below the bound.
        """
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        inner: Any = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        if replicas == 1 or (inner is self.optimizer and not inner.global_clipnorm):
            return gradients
        gradients = summed_up(gradients)
        if inner.global_clipnorm:
            gradients, _ = tf.clip_by_global_norm(gradients, self.optimizer.scale_loss(inner.global_clipnorm))
        return [None if gradient is None else gradient / replicas for gradient in gradients]

    def _logs(self, values):
        logs = self.show(summed_up(values))
        if isinstance(self.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy):
            # Keras takes the mean over rows of what a worker's step returns, so a number has to be a row.
            return {name: value[None] for name, value in logs.items()}
        return logs


@contextlib.contextmanager
def inlined():
    """A context in which functions that a graph calls become part of it, those too that XLA is to compile: Keras's
    grouped convolutions are such, and no converter takes them."""
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


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
