"""A local page to drop pictures on: what a run's model says of them, and which known images are nearest."""

from kood.demo.known import Known, known_of
from kood.demo.page import Answered, answered, show

__all__ = ["Answered", "Known", "answered", "known_of", "show"]
