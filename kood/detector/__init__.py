"""A classifier's outputs -> its scores -> a calibrated decision."""

from kood.detector.detector import Answers, Detector

__all__ = ["Answers", "Detector"]
