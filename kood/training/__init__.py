"""Fits a model with checkpoints, under a clock, and writes down how it goes."""

from kood.training.loop import fit, optimizer, precision, remove_checkpoint, steps_per_call
from kood.training.timing import Pace, TimeBudget, shared_clock

__all__ = [
    "Pace", "TimeBudget", "fit", "optimizer", "precision", "remove_checkpoint", "shared_clock", "steps_per_call",
]  # fmt: skip
