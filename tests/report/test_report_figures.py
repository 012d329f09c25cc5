"""Figures: their numbers, their size, and names that want to be something else."""

import re
import subprocess
import sys
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest

from kood.report import aggregate, figures
from tests.report.conftest import words


@pytest.fixture
def drawings(cell, matrix, id_and_ood_scores, histories):
    """Each figure."""
    return {
        "histograms": lambda: figures.score_histograms(id_and_ood_scores, cell),
        "roc": lambda: figures.roc_curves(id_and_ood_scores, cell),
        "training": lambda: figures.training_curves(histories),
        "matrix": lambda: figures.matrix_intervals(aggregate(matrix["cells"]), matrix["cells"]),
    }


@pytest.mark.parametrize("name", ["histograms", "roc", "training", "matrix"])
def test_svg_is_small_well_formed_self_contained_and_repeatable(drawings, name):
    svg = drawings[name]()
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(svg) < 200_000
    outside = {v for e in root.iter() for k, v in e.attrib.items() if k.endswith("href") and not v.startswith("#")}
    assert outside == set()
    assert drawings[name]() == svg


def test_no_global_state_is_touched():
    code = (
        "import sys, kood.report\n"
        "assert not {'matplotlib', 'keras', 'tensorflow', 'PIL', 'jinja2'} & set(sys.modules), 'heavy import'\n"
        "from kood.report import figures\n"
        "figures.training_curves({'s': {'loss': [2.0, 1.0]}})\n"
        "import matplotlib\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert matplotlib.rcParams['font.size'] == matplotlib.rcParamsDefault['font.size']\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def roc_by_definition(id_scores, ood_scores):
    points = [(0.0, 0.0)]
    for threshold in sorted({*id_scores, *ood_scores}, reverse=True):
        points.append((np.mean(id_scores >= threshold), np.mean(ood_scores >= threshold)))
    return np.array(points).T


@pytest.mark.parametrize("case", ["continuous", "ties", "all tied", "infinite", "perfect"])
def test_roc_points(case):
    rng = np.random.default_rng(1)
    id_scores, ood_scores = {
        "continuous": (rng.normal(0, 1, 60), rng.normal(1, 1, 40)),
        "ties": (rng.integers(0, 5, 60).astype(float), rng.integers(2, 7, 40).astype(float)),
        "all tied": (np.ones(5), np.ones(3)),
        "infinite": (np.array([-np.inf, 0.0, 1.0]), np.array([0.0, np.inf, np.inf])),
        "perfect": (np.zeros(4), np.ones(4)),
    }[case]
    np.testing.assert_array_equal(figures._roc(id_scores, ood_scores), roc_by_definition(id_scores, ood_scores))


def test_roc_area_survives_thinning():
    rng = np.random.default_rng(2)
    id_scores, ood_scores = rng.normal(0, 1, 10_000), rng.normal(1.5, 1, 26_000)
    x, y = figures._roc(id_scores, ood_scores)
    thin_x, thin_y = figures.thin_curve(x, y)
    assert len(thin_x) <= 250
    assert (thin_x[0], thin_y[0], thin_x[-1], thin_y[-1]) == (0, 0, 1, 1)
    assert {*zip(thin_x, thin_y, strict=True)} <= {*zip(x, y, strict=True)}
    assert np.trapezoid(thin_y, thin_x) == pytest.approx(np.trapezoid(y, x), abs=2e-4)


def test_short_curves_are_not_thinned():
    x = np.linspace(0, 1, 10)
    assert figures.thin_curve(x, x**2)[0] is x


def test_long_histories_are_means_of_stretches():
    values = np.random.default_rng(0).normal(size=3000)
    position, series = figures._thin_history(values.tolist())
    np.testing.assert_allclose(series, values.reshape(300, 10).mean(axis=1))
    np.testing.assert_allclose(position, np.arange(1, 3001).reshape(300, 10).mean(axis=1))


def test_the_range_shows_the_bulk_and_the_threshold():
    pools = [np.random.default_rng(0).normal(size=1000), np.array([1e9, np.inf, 3.0, *np.full(997, 3.0)])]
    low, high = figures._range(pools, -8.0)
    assert low < -8
    assert 3 < high < 10
    assert figures._range([np.array([]), np.array([np.inf])], None) == (0.0, 1.0)
    low, high = figures._range([np.full(5, 2.0)], None)
    assert low < 2.0 < high


@pytest.mark.parametrize("draw", [figures.score_histograms, figures.roc_curves])
def test_hard_scores(cell, draw):
    scores = {
        "id": np.array([0.0, np.nan, -np.inf]),
        "digits 6-9": np.full(4, 7.0),
        "letters": np.array([]),
        "photo patches": np.full(3, np.nan),
        "uniform": np.array([np.inf, 1e300, -1e300]),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        every, alone = draw(scores, cell), draw({"id": np.array([1.0])}, cell)
    assert all(ElementTree.fromstring(svg).tag.endswith("svg") for svg in (every, alone))
    # A histogram of each set says how many scores of it are numbers; without any there is no curve.
    wanted, of_one = {
        "score_histograms": (["ID test (2)", "digits 6-9, near-OOD (4)", "ID test (2)", "letters, near-OOD (0)",
                              "ID test (2)", "photo patches, far-OOD (0)", "ID test (2)", "uniform, far-OOD (3)"],
                             ["ID test (1)"]),
        "roc_curves": (["digits 6-9 (near) 98.5", "uniform (far) 98.9"], []),
    }[draw.__name__]  # fmt: skip
    names = ("ID test", *cell["datasets"])
    assert [one for one in words(every) if one.startswith(names)] == wanted
    assert [one for one in words(alone) if one.startswith(names)] == of_one


def test_one_high_bar_does_not_hide_the_others(cell, id_and_ood_scores):
    """The ID images' highest bar takes a quarter of a panel or more, where a set's scores are all alike."""
    alike = {name: np.full(50, 30.0) for name in id_and_ood_scores if name != "id"}
    svg = figures.score_histograms({**id_and_ood_scores, **alike}, cell).decode()
    panels = svg.split('<g id="axes_')[1:]
    assert len(panels) == len(alike)
    for panel in panels:
        ground, bars = re.findall(r'<g id="patch_\d+">\s*<path d="([^"]+)"', panel)[:2]
        heights = [np.ptp([float(y) for y in re.findall(r"[ML] \S+ (\S+)", path)]) for path in (ground, bars)]
        assert heights[1] >= 0.249 * heights[0]


def test_hard_histories():
    hard = {
        "a": {"loss": [], "one": [0.5], "nan": [np.nan, np.nan], "gap": [1.0, None, 3.0], "zero": [0.0, 0.0]},
        "b": {"ends": [np.inf, 1.0], "loss": [1e-8, 1e8]},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg, nothing = figures.training_curves(hard), figures.training_curves({})
    assert ElementTree.fromstring(svg).tag.endswith("svg") and words(nothing) == []
    titles = [one for one in words(svg) if one.startswith(("a: ", "b: ", "no finite"))]
    assert titles == ["no finite values", "a: loss", "a: one", "no finite values", "a: nan", "a: gap", "a: zero",
                      "b: ends", "b: loss"]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["$x^", "$\\frac{$", "_hidden", "<script>", "漢字 🙂", "a\x1b[31m", "%s {0}", "\udcff"]
)
def test_any_name_can_be_drawn(new_cell, name):
    cell = new_cell(0, head=name)
    cell["headline_score"] = name
    cell["datasets"] = {name: {"kind": "near", "images": 2}}
    cell["scores"] = {name: {name: {"auroc": 0.5}, "near": {"auroc": 0.5}}}
    cell["threshold"]["score"] = name
    scores = {"id": np.arange(3.0), name: np.arange(2.0)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for svg in (
            figures.score_histograms(scores, cell),
            figures.roc_curves(scores, cell),
            figures.training_curves({name: {name: [1.0, 2.0]}}),
            figures.matrix_intervals(aggregate([cell]), [cell]),
        ):
            root = ElementTree.fromstring(svg)
            assert not [element for element in root.iter() if element.tag.endswith("script")]


def test_the_matrix_figure_takes_rows_without_figures(new_cell):
    cells = [new_cell(0, head="a"), {**new_cell(0, head="b"), "scores": {}}]
    svg = figures.matrix_intervals(aggregate(cells), cells)
    assert ElementTree.fromstring(svg).tag.endswith("svg") and {"head a", "head b"} <= set(words(svg))


def test_the_matrix_figure_shows_every_run(matrix):
    svg = figures.matrix_intervals(aggregate(matrix["cells"]), matrix["cells"]).decode()
    # A stroke for each run of six rows of three seeds, near and far.
    strokes = [block for block in re.findall(r"<g clip-path[^>]*>(.*?)</g>", svg, re.S) if block.count("<use") == 3]
    assert len(strokes) >= 12
