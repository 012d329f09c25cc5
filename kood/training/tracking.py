"""What a training writes down as it goes: a line of CSV for every epoch, and TensorBoard's event files."""

import csv
import io
import os
import socket
import time
from pathlib import Path
from typing import Any

import keras

from kood.data.tf_on_cpu import tf
from kood.files import write_atomically

__all__ = ["EpochLog", "EventFile"]


class _Log(keras.callbacks.Callback):
    """Tells of every epoch its seconds, the learning rate at its end, and every loss term.

    Args:
        place: Where it goes.
        first: How many epochs the training has behind it.
    """

    def __init__(self, place: Path, first: int):
        super().__init__()
        self.place = place
        self.first = first

    def on_epoch_begin(self, epoch, logs=None):
        self._since = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        terms = {name: float(value) for name, value in (logs or {}).items()}
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        self.tell(epoch + 1, {"seconds": time.monotonic() - self._since, "learning_rate": rate, **terms})

    def tell(self, epoch: int, figures: dict[str, float]) -> None:
        raise NotImplementedError


class EpochLog(_Log):
    """Writes one line of CSV after every epoch: its number, its seconds, the learning rate at its end, every loss term.

    A resumed training goes on where its checkpoint is: lines of epochs that are made again are taken out first, so that
    each stands once. Its place is a file.
    """

    def on_train_begin(self, logs=None):
        rows: list[list[str]] = []
        if self.place.exists():
            with self.place.open(newline="", encoding="utf-8") as lines:
                rows = list(csv.reader(lines))
        kept = io.StringIO(newline="")
        # A line that was being written when the process died is short of cells, or of its end.
        csv.writer(kept).writerows(row for row in rows[: 1 + self.first] if len(row) == len(rows[0]))
        write_atomically(self.place, kept.getvalue().encode())

    def tell(self, epoch, figures):
        line = {"epoch": epoch, **figures, "seconds": round(figures["seconds"], 3)}
        with self.place.open("a", newline="", encoding="utf-8") as out:
            table = csv.writer(out)
            if out.tell() == 0:
                table.writerow(line)
            table.writerow(line.values())


# Its own, not Keras's TensorBoard callback: without the tensorboard package that one fails
# (TBNotInstalledError), while the record writer of TensorFlow, which kood needs anyway, is there.
class EventFile(_Log):
    """Writes every epoch's losses, seconds and learning rate as an event file for TensorBoard, under any backend.

    A training that is resumed, or made again, begins a file of its own, which takes back what a former one says of the
    epochs from there on. TensorBoard itself is not needed to write one. Its place is a folder, one a training;
    `tensorboard --logdir` on a folder above shows all of them.
    """

    _writer: Any = None

    def on_train_begin(self, logs=None):
        self.place.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._writer = tf.io.TFRecordWriter(str(self.place / name))
        self._write(file_version="brain.Event:2")
        begun = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
        self._write(step=self.first + 1, session_log=begun)

    def tell(self, epoch, figures):
        told = [tf.compat.v1.Summary.Value(tag=tag, simple_value=value) for tag, value in figures.items()]
        self._write(step=epoch, summary=tf.compat.v1.Summary(value=told))

    def on_train_end(self, logs=None):
        self._writer.close()

    def _write(self, **event):
        self._writer.write(tf.compat.v1.Event(wall_time=time.time(), **event).SerializeToString())
        self._writer.flush()
