"""The training step under JAX: a pure function of the model's state, differentiated."""

import itertools
from collections.abc import Callable, Iterator

import jax
import keras
from jax.sharding import NamedSharding, PartitionSpec

from kood.backends.devices import accelerated
from kood.backends.terms import LossTerms

__all__ = ["TrainStep", "forward", "gradient"]


class TrainStep(LossTerms):
    """Gradient step of a `keras.Model` that has `loss_terms`, for the JAX backend."""

    train_function: Callable | None

    def fit(self, *arguments, **settings):
        """As on every backend; a model may be fitted again.

        Keras ends with a weight and its moving average in one buffer, which JAX refuses to donate twice.
        """
        for variable in getattr(self.optimizer, "variables", ()):
            variable.assign(jax.numpy.copy(variable.value))
        try:
            return super().fit(*arguments, **settings)
        except Exception as error:
            # Interrupted in its first step, Keras fails over weights that it has handed on, and hides the interrupt.
            hidden = error.__context__
            while isinstance(hidden, Exception):
                hidden = hidden.__context__
            raise (hidden or error) from None

    def make_train_function(self, force=False):
        """As on every backend; what Keras calls for `steps_per_execution` steps.

        Keras calls the compiled step as often. Here an accelerator gets the steps of a call as one program, a loop, so
        that it waits for no host between them; and the images that `holding` holds are an argument of that program.
        """
        if self.train_function is not None and not force:
            return
        if self.run_eagerly or not self.jit_compile or keras.distribution.distribution() is not None:
            super().make_train_function(force)
            return

        def one(state, batch, images):
            return self.train_step(state, batch if images is None else {**batch, "pixels": images})

        def several(state, batches, images):
            stacked = jax.tree.map(lambda *values: jax.numpy.stack(values), *batches)
            state, logs = jax.lax.scan(lambda state, batch: one(state, batch, images)[::-1], state, stacked)
            return {name: values[-1] for name, values in logs.items()}, state

        one_step, loop = (jax.jit(function, donate_argnums=0) for function in (one, several))

        def call(state, iterator):
            coming: Iterator = itertools.islice(iterator, self.steps_per_execution)
            if loops():
                batches = list(coming)
                if len(batches) > 1:
                    return loop(state, batches, self._images)
                coming = iter(batches)
            logs = None
            for batch in coming:
                logs, state = one_step(state, batch, self._images)
            if logs is None:
                raise StopIteration
            return logs, state

        self.train_function = call

    def train_step(self, state, data):
        """One update from one batch; `state` is Keras's (trainable, non-trainable, optimizer, metrics) values."""
        trainable, fixed, optimizer, metrics = state
        data = self.held(data)

        def loss_of(values):
            (loss, shown), moved = self._stateless(values, fixed, data)
            return self.optimizer.scale_loss(loss), (shown, moved)

        with keras.StatelessScope(state_mapping=list(zip(self.optimizer.variables, optimizer, strict=True))):
            (_, (shown, fixed)), gradients = jax.value_and_grad(loss_of, has_aux=True)(trainable)
        trainable, optimizer = self.optimizer.stateless_apply(optimizer, gradients, trainable)
        logs, metrics = self._stateless_show(shown, metrics)
        return logs, (trainable, fixed, optimizer, metrics)

    def _stateless(self, trainable, fixed, data):
        variables = [
            *zip(self.trainable_variables, trainable, strict=True),
            *zip(self.non_trainable_variables, fixed, strict=True),
        ]
        with keras.StatelessScope(state_mapping=variables, collect_losses=True) as scope:
            result = self.total(data)
        return result, [_current(scope, variable) for variable in self.non_trainable_variables]

    def _stateless_show(self, shown, metrics):
        with keras.StatelessScope(state_mapping=list(zip(self.metrics_variables, metrics, strict=True))) as scope:
            logs = self.show(shown)
        return logs, [_current(scope, variable) for variable in self.metrics_variables]


def loops():
    """Whether several steps are one program; on a CPU a convolution in XLA's loop takes over twenty times as long."""
    return accelerated()


def _current(scope, variable):
    value = scope.get_current_value(variable)
    return variable.value if value is None else value


def _weights(model):
    """Its values as they are now: Keras's own passes over a model give them to others, and they may have been set."""
    return ([v.value for v in variables] for variables in (model.trainable_variables, model.non_trainable_variables))


def forward(model):
    """The model's forward pass in inference mode, and among how many devices it splits its rows.

    The rows must divide among the devices.
    """
    passed = jax.jit(lambda t, f, inputs: model.stateless_call(t, f, inputs, training=False)[0])
    distribution = keras.distribution.distribution()
    if distribution is None:
        return lambda inputs: passed(*_weights(model), inputs), 1
    mesh = distribution.device_mesh.backend_mesh
    by_rows, whole = (NamedSharding(mesh, PartitionSpec(*axis)) for axis in ([distribution.batch_dim_name], []))
    return lambda inputs: passed(
        *jax.device_put((*_weights(model),), whole), jax.device_put(inputs, by_rows)
    ), mesh.size


def gradient(model, of):
    """The gradient of the sum of `of(outputs)` by the model's inputs, in inference mode."""

    def total(inputs, trainable, fixed):
        return of(model.stateless_call(trainable, fixed, inputs, training=False)[0]).sum()

    by_inputs = jax.jit(jax.grad(total))
    return lambda inputs: by_inputs(jax.numpy.asarray(inputs), *_weights(model))
