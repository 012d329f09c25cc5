"""A classifier's outputs -> its scores -> a calibrated decision."""

from kood.detector.detector import Answers, Detector
from kood.detector.evaluate import evaluate

__all__ = ["Answers", "Detector", "evaluate"]
