"""Results for people and programs: terminal tables, progress, report.json, and report.html with figures."""

from kood.report.aggregate import aggregate
from kood.report.files import write_json
from kood.report.html import write
from kood.report.progress import StageProgress, fit_callback
from kood.report.table import print_cell, print_matrix

__all__ = ["StageProgress", "aggregate", "fit_callback", "print_cell", "print_matrix", "write", "write_json"]
