"""Trainings that end as a killed one does."""

import keras


class Killed(BaseException):
    """Nothing catches it on the way."""


class KillAfter(keras.callbacks.Callback):
    """Stops as a kill would: nothing that follows an epoch's checkpoint runs.

    Args:
        epoch: Number of the last one, from 0 on.
    """

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            raise Killed
