"""Figures by class: in their order, or the worst of many; the same in the terminal and on the page."""

import re

import pytest

from kood.report import print_cell
from kood.report.html import page
from kood.report.results import is_below
from kood.report.wording import threshold_meaning
from tests.report.test_report_html import Reader


def classes(count):
    """Class n of N has the accuracy .5 + n / 2N and accepts 1 - n / 2N."""
    return [
        {
            "name": f"class {n}",
            "images": 40 + n,
            "accuracy": 0.5 + n / (2 * count),
            "accuracy_interval": [0.4 + n / (2 * count), min(1.0, 0.6 + n / (2 * count))],
            "accepted": 1 - n / (2 * count),
            "accepted_interval": [0.9 - n / (2 * count), 1.02 - n / (2 * count)],
            "auroc": {"near": 0.8, "far": 0.9 + n / 1000},
        }
        for n in range(count)
    ]


def by_class(threshold):
    threshold.update(
        by_class=True,
        thresholds=[
            {"classes": ["class 0"], "value": 0.5, "calibration_images": 60},
            {"classes": [f"class {n}" for n in range(1, 8)], "value": 0.25, "calibration_images": 49},
        ],
    )


def tables_by_class(cell):
    """Rows of the page's tables of classes."""
    return [table[1:] for table in Reader(page(cell)).tables if table[0][0] == "class"]


def line_of(text, name):
    return next(line for line in text.splitlines() if re.match(rf"\s*{name}\b", line))


def test_a_few_classes_all_stand_in_their_order(cell, capture):
    cell["classes"] = classes(8)
    text = capture(lambda console: print_cell(console, cell)).split("By class")[1]
    names = re.findall(r"^class \d", text, re.MULTILINE)
    assert names == [f"class {n}" for n in range(8)]
    assert line_of(text, "class 3").split() == [
        "class", "3", "43", "68.8", "[58.8,", "78.8]", "81.2", "[71.2,", "83.2]", "↓", "80.0", "90.3",
    ]  # fmt: skip
    assert "↓" not in line_of(text, "class 2") and "fewer than 95%, and than chance explains (5 classes)" in " ".join(
        text.split()
    )
    (shown,) = tables_by_class(cell)
    assert [row[0] for row in shown] == names and shown[3][2:4] == ["68.8 [58.8, 78.8]", "81.2 [71.2, 83.2] ↓"]
    assert sum("↓" in row[3] for row in shown) == 5


def test_no_class_of_images_in_groups_is_marked_as_below(cell, capture):
    cell["classes"] = classes(4)
    cell["classes"][3] |= {"accepted": 0.1, "accepted_interval": [0.05, 0.2]}
    assert "↓" in capture(lambda console: print_cell(console, cell)) and "stand in groups" not in page(cell)
    cell["groups"] = {"validation": {"images": 60, "groups": 6}}
    assert "↓" in page(cell) and "stand in groups" not in page(cell)
    cell["groups"] = {"test": {"images": 60, "groups": 6}}
    text = capture(lambda console: print_cell(console, cell), width=200)
    assert "↓" not in text and "↓" not in page(cell)
    for told in (text, page(cell)):
        assert told.count("stand in groups and are counted as independent") == 2  # Beside both tables with intervals.


def test_of_many_classes_the_worst_are_shown_and_all_folded(cell, capture):
    cell["classes"] = classes(40)
    accepted, accurate, every = ([row[0] for row in table] for table in tables_by_class(cell))
    assert accepted == [f"class {n}" for n in range(39, 29, -1)]
    assert accurate == [f"class {n}" for n in range(10)]
    assert every == [f"class {n}" for n in range(40)] and "All 40 classes" in Reader(page(cell)).text
    text = capture(lambda console: print_cell(console, cell)).split("By class")[1]
    assert re.findall(r"^class \d+", text, re.MULTILINE) == accepted + accurate
    assert "the 10 of 40 classes with the smallest share accepted" in text and "the lowest accuracy" in text
    assert "All classes stand in report.html" in text


def test_of_many_classes_of_a_few_images_none_is_the_worst(cell, capture):
    cell["classes"] = classes(40)
    for one in cell["classes"][:39]:
        one["images"] = 2
    accepted, accurate, every = ([row[0] for row in table] for table in tables_by_class(cell))
    assert accepted == accurate == ["class 39"] and len(every) == 40
    cell["classes"][39]["images"] = 2
    text = capture(lambda console: print_cell(console, cell))
    assert len(tables_by_class(cell)) == 1 and "class 39" not in text and "All classes stand in report.html" in text


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_figure_is_cut(cell, capture, width):
    cell["classes"] = classes(12)
    cell["classes"][3]["name"] = "a name that is long, and [red]different[/red] at its " + "very " * 12 + "end"
    by_class(cell["threshold"])
    text = capture(lambda console: print_cell(console, cell), width=width)
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    for one in cell["classes"]:
        assert f"{100 * one['accuracy']:.1f}" in text and f"{100 * one['accepted']:.1f}" in text
    assert all(word in text for word in ("long,", "[red]", "end"))  # The name folds, and every part of it is there.


def test_figures_that_are_not_there_are_dashes(cell, capture):
    cell["classes"] = [
        {"name": "none", "images": 0, "accuracy": None, "accepted": None, "auroc": {}},
        {"name": "some", "images": 9, "accuracy": 1.0, "accepted": 1.0, "accepted_interval": [0.7, 1.0]},
    ]
    text = capture(lambda console: print_cell(console, cell)).split("By class")[1]
    assert line_of(text, "none").split() == ["none", "0", "—", "—"] and "near" not in text.split("Percent")[0]
    assert not re.search(r"\b(nan|None)\b", page(cell))
    del cell["classes"]  # A report from before there were any.
    assert "By class" not in page(cell) and "By class" not in capture(lambda console: print_cell(console, cell))


def test_a_matrix_has_them_inside_each_cell(matrix):
    for one in matrix["cells"]:
        one["classes"] = classes(4)
    reader = Reader(page(matrix))
    assert reader.text.count("By class") == len(matrix["cells"]) == reader.text.split("Every cell")[1].count("By class")


def test_thresholds_by_class_are_told(cell, capture):
    cell["classes"] = classes(8)
    by_class(cell["threshold"])
    told = threshold_meaning(cell)
    assert "above the threshold of the class that it is taken for (0.25 to 0.5)" in told
    assert "each the value that accepts 95% of the calibration images that are taken for its class, of 109" in told
    assert "class 1, class 2, class 3, class 4, class 5 and 2 more share one, set on 49 images." in told
    text = capture(lambda console: print_cell(console, cell), width=120).split("By class")[1]
    assert line_of(text, "class 0").split()[-1] == "0.5" and line_of(text, "class 7").split()[-1] == "0.25"
    assert [row[-1] for row in tables_by_class(cell)[0]] == ["0.5", *["0.25"] * 7]


def test_below_is_what_neither_test_nor_calibration_images_explain():
    def marked(accepted, classes=1, **changes):
        threshold = {"accept": 0.95, "calibration_images": 39, **changes}
        return is_below({"name": "a", "images": 100, "accepted": accepted}, threshold, classes)

    # Under a threshold that 39 images set, of 100 like them 13 or more are flagged in .055 of times, 14 in .04.
    assert marked(0.86) and not marked(0.87) and not marked(0.86, classes=2)
    assert marked(0.9, calibration_images=10**6) and not marked(0.86, calibration_images=19)
    own = {"thresholds": [{"classes": ["b"], "calibration_images": 39}, {"classes": ["a"], "calibration_images": 19}]}
    assert not marked(0.86, **own)
    assert not is_below({"name": "a"}, {"accept": 0.95, "calibration_images": 39}, 1)
    assert not marked(0.1, accept=None) and not marked(0.1, calibration_images=None)
