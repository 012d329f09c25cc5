"""Number formats and sentences."""

import math

import pytest

from kood.report.wording import (
    all_warnings,
    duration,
    mean_std,
    override,
    percent,
    setting,
    short_keys,
    validation_note,
)
from kood.text import clean, printable


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.97549, "97.5"),
        (1.0, "100.0"),
        (0.0, "0.0"),
        (None, "—"),
        (math.nan, "—"),
        (math.inf, "—"),
        (0.99951, "100.0"),
    ],
)
def test_percent(value, expected):
    assert percent(value) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 0 s"),
        (125.4, "2 min 5 s"),
        (3599.7, "1 h 0 min"),
        (7325, "2 h 2 min"),
        (None, "—"),
        (math.nan, "—"),
    ],
)
def test_duration(seconds, expected):
    assert duration(seconds) == expected


def test_mean_std():
    assert mean_std({"mean": 0.975, "std": 0.0042, "n": 3}, 3) == "97.5 ± 0.4"
    assert mean_std({"mean": 0.975, "std": 0.0042, "n": 2}, 3) == "97.5 ± 0.4 (n=2)"
    assert mean_std({"mean": 0.975, "std": None, "n": 1}, 1) == "97.5"
    assert mean_std({"mean": None, "std": None, "n": 0}, 3) == "—"
    assert mean_std(None, 1) == "—"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["label_mixup", "noise"], "label_mixup + noise"),
        ([], "none"),
        (None, "none"),
        (False, "false"),
        (0.5, "0.5"),
        ({"name": "arcface", "margin": 0.5}, "name=arcface, margin=0.5"),
    ],
)
def test_override(value, expected):
    assert override(value) == expected


def test_short_keys_stay_distinct():
    assert short_keys(["head.name", "head.margin", "outliers.kind"]) == {
        "head.name": "head",
        "head.margin": "margin",
        "outliers.kind": "outliers",
    }
    assert short_keys(["a.rate", "b.rate", "seed"]) == {"a.rate": "a.rate", "b.rate": "b.rate", "seed": "seed"}


def test_setting():
    assert setting({"head.name": "arcface", "seed": 1}) == "head arcface, seed 1"
    assert setting({}) == "as the recipe says"


def test_clean_leaves_words_and_shows_controls():
    assert clean("naïve 漢字 \t x") == "naïve 漢字 x"
    assert clean("a\x1b]0;t\x07\u202eb\x00") == r"a\x1b]0;t\x07\u202eb\x00"
    assert printable("a  b\n  \x1b[31mc\udce4") == "a  b\n  \\x1b[31mc\\udce4"


def test_warnings_of_a_matrix_come_once_with_their_number():
    cells = [{"warnings": ["a", "a"]}, {"warnings": ["a", "b"]}, {}]
    assert all_warnings({"warnings": ["own"], "cells": cells}) == ["own", "a (2 of 3 cells)", "b (1 of 3 cells)"]


def test_warnings_that_differ_in_their_figures_alone_are_one():
    def cell(*texts):
        return {"warnings": texts}

    cells = [
        cell("knn on cifar10 (AUROC 0.402)", "59.8% in place of 70.1%"),
        cell("knn on cifar100 (AUROC 0.410)", "61.2% in place of 70.1%"),
        cell("knn on cifar10 (AUROC 0.517)", "9.5% in place of 70.1%"),
        cell("knn on cifar10 (AUROC 0.500)"),
    ]
    assert all_warnings({"cells": cells}) == [
        "knn on cifar10 (AUROC 0.402 to 0.517) (3 of 4 cells)",
        "9.5 to 61.2% in place of 70.1% (3 of 4 cells)",
        "knn on cifar100 (AUROC 0.410) (1 of 4 cells)",
    ]


def test_warnings_that_differ_in_their_classes_alone_are_one():
    cells = [
        {"warnings": ["47.8% are right, but fewer of 'bird' (24% of 1000), 'red deer' (29% of 990); add images"]},
        {"warnings": ["48.4% are right, but fewer of 'cat' (20% of 1000); add images"]},
        {"warnings": ["47.2% are right, but fewer of 'red deer' (33% of 990), \"cat's\" (35% of 9); add images"]},
        {"warnings": ["'bird' (24% of 1000)"]},
    ]
    assert all_warnings({"cells": cells}) == [
        "47.2 to 48.4% are right, but fewer of 'cat' (20% of 1000), 'bird' (24% of 1000), 'red deer' (29 to 33% of "
        '990), "cat\'s" (35% of 9); add images (3 of 4 cells)',
        "'bird' (24% of 1000) (1 of 4 cells)",
    ]
    cells = [
        {"warnings": ["'blobs' (AUROC 48.1 [40.2, 56.0]): gen does not tell them"]},
        {"warnings": ["'blobs' (AUROC 50.0 [44.0, 55.0]), 'things' (AUROC 3.1): gen does not tell them"]},
    ]
    assert all_warnings({"cells": cells}) == [
        "'things' (AUROC 3.1), 'blobs' (AUROC 48.1 to 50.0 [40.2 to 44.0, 55.0 to 56.0]): gen does not tell "
        "them (2 of 2 cells)"
    ]
    assert all_warnings({"cells": [{"warnings": ["'a' (x 1)"]}, {"warnings": ["'a' (y)"]}]}) == [
        "'a' (y) (2 of 2 cells)"
    ]
    many = ", ".join(f"'{name}' ({10 + number}% of 9)" for number, name in enumerate("abcde"))
    cells = [{"warnings": [f"fewer of {many} and 7 more"]}, {"warnings": ["fewer of 'z' (9% of 9)"]}]
    assert all_warnings({"cells": cells}) == [
        "fewer of 'z' (9% of 9), 'a' (10% of 9), 'b' (11% of 9), 'c' (12% of 9), 'd' (13% of 9) and 7 more "
        "(2 of 2 cells)"
    ]
    cells = [{"warnings": [f"fewer of {many} and {more} more; add images"]} for more in (15, 3)]
    assert all_warnings({"cells": cells}) == [f"fewer of {many} and 15 more; add images (2 of 2 cells)"]


def test_figures_of_thousands_are_one_figure():
    cells = [{"warnings": [f"{n} of 22,000 images are copies, 1, 2 and {m}.5%"]} for n, m in (("2,001", 3), ("934", 4))]
    assert all_warnings({"cells": cells}) == [
        "934 to 2,001 of 22,000 images are copies, 1, 2 and 3.5 to 4.5% (2 of 2 cells)"
    ]


def test_a_cell_that_gives_a_warning_twice_counts_once():
    assert all_warnings({"cells": [{"warnings": ["a 1", "a 2"]}, {}]}) == ["a 1 to 2 (1 of 2 cells)"]


def test_classes_that_are_called_by_numbers_are_no_figures():
    def cell(*folds, why="the 5 minutes were up"):
        return {"hold_out": {"left_out": [{"classes": classes, "why": why} for classes in folds]}}

    told = "data.hold_out: the fold without {} was left out: the {} minutes were up ({} of 3 cells)"
    cells = [cell(["0", "1"], ["2", "3"]), cell(["2", "3"], why="the 6 minutes were up"), cell(["class 4"])]
    assert all_warnings({"cells": cells}) == [
        told.format("'0', '1'", 5, 1), told.format("'2', '3'", "5 to 6", 2), told.format("'class 4'", 5, 1),
    ]  # fmt: skip


def test_only_the_stand_ins_are_called_proxies():
    def told(*sets):
        return validation_note({"validation": {"msp": 0.9}, "headline_score": "msp", "validation_sets": sets})

    assert told("pixel_mixup", "pictures") == "Headline score msp: 90.0 AUROC on the validation proxies, the best."
    assert told("flowers", "pictures") == "Headline score msp: 90.0 AUROC on flowers, pictures, the best."


def test_all_that_one_cell_warns_of_is_in_the_range():
    cells = [{"warnings": ["AUROC 0.4 on a set", "AUROC 0.6 on a set"]}, {"warnings": ["AUROC 0.5 on a set"]}]
    assert all_warnings({"cells": cells}) == ["AUROC 0.4 to 0.6 on a set (2 of 2 cells)"]
    # An apostrophe quotes nothing.
    cells = [{"warnings": [f"the network's {n} classes are the others' too"]} for n in (2, 3)]
    assert all_warnings({"cells": cells}) == ["the network's 2 to 3 classes are the others' too (2 of 2 cells)"]
