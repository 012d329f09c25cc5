"""Results for people and programs: terminal tables, progress, report.json, and report.html with figures."""

from kood.report.aggregate import aggregate
from kood.report.behaviour import Behaviour, Extreme
from kood.report.files import strict, write_json, write_text
from kood.report.html import write, write_figures
from kood.report.paired import DIFFERENCE_NOTE, differences, different_images, intervals, score_arrays
from kood.report.printed import print_cell, print_matrix
from kood.report.progress import StageProgress, fit_callback

__all__ = [
    "DIFFERENCE_NOTE", "Behaviour", "Extreme", "StageProgress", "aggregate", "different_images", "differences",
    "fit_callback", "intervals", "print_cell", "print_matrix", "score_arrays", "strict", "write", "write_figures",
    "write_json", "write_text",
]  # fmt: skip
