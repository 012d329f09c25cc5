"""Results for people and programs: terminal tables, progress, report.json, and report.html with figures."""

from kood.report.aggregate import aggregate, specs_of
from kood.report.behaviour import Behaviour, Extreme
from kood.report.comparable import different_images
from kood.report.files import strict, write_json, write_text
from kood.report.folds import HELD_OUT
from kood.report.folds import by_score as folds_by_score
from kood.report.folds import figures as fold_figures
from kood.report.folds import means as fold_means
from kood.report.html import write
from kood.report.leaderboard import entries as leaderboard_entries
from kood.report.paired import differences, intervals, score_arrays
from kood.report.printed import print_cell, print_matrix
from kood.report.progress import StageProgress, fit_callback

__all__ = [
    "HELD_OUT", "Behaviour", "Extreme", "StageProgress", "aggregate", "different_images", "differences", "fit_callback",
    "fold_figures", "fold_means", "folds_by_score", "intervals", "leaderboard_entries", "print_cell", "print_matrix",
    "score_arrays", "specs_of", "strict", "write", "write_json", "write_text",
]  # fmt: skip
