"""Figures of how a classifier behaves, and their place in the page."""

import base64
import io
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import precision_recall_curve

from kood.report import Behaviour, Extreme, aggregate, behaviour, figures, html, sweeps, write
from kood.report.leaderboard import entries
from tests.report.conftest import words
from tests.report.test_report_html import Reader


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def told(cell):
    """A classifier's behaviour on the sets of a made-up result."""
    names = ["id", *cell["datasets"]]
    image = rng().integers(0, 256, (8, 8, 1), dtype=np.uint8)
    return Behaviour(
        confidence=rng().uniform(0.2, 1.0, 300),
        correct=rng(1).random(300) < 0.8,
        planes={name: rng(i).normal(size=(40, 2)).astype("float32") for i, name in enumerate(names)},
        classes=np.arange(40) % 3,
        class_names=("zero", "<b>one</b>", "$two$"),
        extremes={name: [Extreme(image, 0.5, "zero", "$two$" if name == "id" else "")] for name in names},
    )


@pytest.fixture
def scores(cell):
    return {name: rng(i).normal(i, size=60) for i, name in enumerate(["id", *cell["datasets"]])}


def well_formed(svg):
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg") and b"http://www.w3.org/1999/xlink" in svg
    return root


def lines_of(monkeypatch, draw):
    """The curves that a figure draws, by label."""
    from matplotlib.axes import Axes

    drawn, plain = {}, Axes.plot

    def plot(self, *arguments, **options):
        if options.get("label"):
            drawn[options["label"]] = [np.asarray(one, float) for one in arguments if not isinstance(one, str)]
        return plain(self, *arguments, **options)

    monkeypatch.setattr(Axes, "plot", plot)
    draw()
    return drawn


def test_the_reliability_diagram_shows_the_bins(told, monkeypatch):
    svg = []
    drawn = lines_of(monkeypatch, lambda: svg.append(behaviour.reliability(told.confidence, told.correct)))
    well_formed(svg[0])
    ((label, (mean, accuracy)),) = drawn.items()
    inside = [(told.confidence > b / 15) & (told.confidence <= (b + 1) / 15) for b in range(15)]
    there = [one for one in inside if one.any()]
    np.testing.assert_allclose(mean, [told.confidence[one].mean() for one in there])
    np.testing.assert_allclose(accuracy, [told.correct[one].mean() for one in there])
    gap = sum(one.sum() * abs(told.correct[one].mean() - told.confidence[one].mean()) for one in there) / 300
    assert label == f"ECE {100 * gap:.1f}%"


@pytest.mark.parametrize(("confidence", "error"), [([1.0], "0.0"), ([0.0], "100.0"), ([0.5] * 5, "50.0")])
def test_hard_confidences(confidence, error):
    svg = behaviour.reliability(np.array(confidence), np.ones(len(confidence), bool))
    well_formed(svg)
    assert f"ECE {error}%" in words(svg)


def test_precision_and_recall_are_scikit_learns(cell, scores, monkeypatch):
    scores["letters"] = np.rint(scores["letters"])
    scores["uniform"] = np.full(60, 9.0)
    drawn = lines_of(monkeypatch, lambda: figures.pr_curves(scores, cell))
    assert len(drawn) == len(cell["datasets"])
    for label, (recall, precision) in drawn.items():
        name = next(one for one in cell["datasets"] if label.startswith(one))
        is_ood = np.repeat([False, True], [60, 60])
        expected = precision_recall_curve(is_ood, np.r_[scores["id"], scores[name]])[:2]
        points = {(round(float(r), 9), round(float(p), 9)) for p, r in zip(*expected, strict=True)}
        assert {(round(float(r), 9), round(float(p), 9)) for r, p in zip(recall, precision, strict=True)} <= points
        assert recall[0] == 0 and precision[0] == 1 and recall[-1] == 1


def test_hard_scores_have_curves(cell, scores):
    for values in (np.zeros(60), np.r_[np.full(30, np.inf), np.full(30, -np.inf)], np.zeros(1), np.zeros(0)):
        svg = figures.pr_curves({**scores, "letters": values, "id": scores["id"]}, cell)
        well_formed(svg)
        drawn = [name for name in cell["datasets"] if any(one.startswith(name) for one in words(svg))]
        assert drawn == [name for name in cell["datasets"] if name != "letters" or len(values)]


def test_the_map_shows_every_point_by_class_and_set(told, cell, monkeypatch):
    drawn = lines_of(monkeypatch, lambda: behaviour.embedding(told, ["letters"]))
    assert len(drawn) == 3 + len(cell["datasets"])
    for label, name in enumerate(("zero", "<b>one</b>", r"\$two\$")):
        np.testing.assert_allclose(np.stack(drawn[name], axis=1), told.planes["id"][told.classes == label])
    np.testing.assert_allclose(np.stack(drawn["letters (near)"], axis=1), told.planes["letters"])


def test_features_of_one_dimension_and_many_classes_are_drawn(told):
    flat = {name: plane[:, :1] for name, plane in told.planes.items()}
    many = Behaviour(told.confidence, told.correct, flat, np.arange(40), tuple(map(str, range(40))))
    svg, nothing = behaviour.embedding(many, []), behaviour.embedding(Behaviour(told.confidence, told.correct), [])
    for one in (svg, nothing):
        well_formed(one)
    axes = ["first principal component", "second"]
    # Of forty classes the first ten have a colour of their own.
    assert words(nothing) == axes and [one for one in words(svg) if one not in axes][:10] == list("0123456789")


@pytest.mark.parametrize(("shape", "size"), [((8, 8, 1), 64), ((28, 20, 3), 84), ((300, 200, 3), 300), ((1, 1, 3), 64)])
def test_thumbnails_are_enlarged_by_whole_factors(shape, size):
    image = rng().integers(0, 256, shape, dtype=np.uint8)
    with Image.open(io.BytesIO(behaviour.thumbnail(image))) as shown:
        pixels = np.asarray(shown)
    factor = size // max(shape[:2])
    assert pixels.shape[0] == shape[0] * factor
    np.testing.assert_array_equal(pixels[::factor, ::factor].reshape(shape), image)


def test_the_page_has_them_and_names_are_harmless(cell, scores, told):
    reader = Reader(html.page(cell, drawn=html.figures_of(cell, scores, told), behaviour=told))
    for heading in ("Reliability", "Features", "Most wrong about", "Precision and recall"):
        assert heading in reader.text
    assert "b" not in reader.tags and "score 0.5, called zero, is $two$" in reader.text
    images = [(name, value) for tag, name, value in reader.attributes if tag == "img"]
    pictures = [value for name, value in images if name == "src" and value.startswith("data:image/png")]
    assert len(pictures) == 1 + len(cell["datasets"])
    assert all(value for name, value in images if name == "alt") and reader.tags.count("img") == len(pictures) + 5
    assert "Reliability" not in Reader(html.page(cell, drawn=html.figures_of(cell, scores))).text


def test_figures_are_files_too_and_drawn_once(tmp_path, cell, scores, told, monkeypatch):
    drawn, plain = [], figures.roc_curves
    monkeypatch.setattr(figures, "roc_curves", lambda *given: drawn.append(given) or plain(*given))
    write(tmp_path / "whole" / "report.html", cell, scores=scores, behaviour=told)
    assert len(drawn) == 1
    files = list((tmp_path / "whole" / "figures").iterdir())
    names = {file.name for file in files}
    assert names >= {"scores.svg", "roc.svg", "pr.svg", "reliability.svg", "features.svg", "id-1.png", "letters-1.png"}
    for file in files:
        content = file.read_bytes()
        assert content.startswith(b"\x89PNG") if file.suffix == ".png" else well_formed(content) is not None
    page = (tmp_path / "whole" / "report.html").read_text("utf-8")
    for file in files:
        assert base64.b64encode(file.read_bytes()).decode() in page
    write(tmp_path / "few" / "report.html", cell, scores=scores)
    assert {f.name for f in (tmp_path / "few" / "figures").iterdir()} == {"scores.svg", "roc.svg", "pr.svg"}


def test_a_report_leaves_nothing_of_an_earlier_one_beside_it(tmp_path, cell, new_cell, scores, told):
    def left():
        return {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()}

    board = [new_cell(seed, head=head) for head in ("arcface", "softmax") for seed in (0, 1)]
    matrix = {"recipe": "digits", "cells": board, "leaderboard": entries(board, lambda *_: None)}
    tables = {"table.csv", "table.tex", "leaderboard.csv", "leaderboard.tex"}
    of_the_user = {"figures/scores-edited.svg", "table.xlsx"}
    for name in of_the_user:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("by hand")
    write(tmp_path / "report.html", cell, scores=scores, behaviour=told)
    written = left() - of_the_user
    assert len(written) == 1 + 5 + len(told.extremes)
    write(tmp_path / "report.html", matrix)
    assert left() == {"report.html", *tables, *of_the_user}
    write(tmp_path / "report.html", cell, scores=scores, behaviour=told)
    assert left() == {*written, *of_the_user}
    del told.extremes["letters"]
    write(tmp_path / "report.html", cell, scores=scores, behaviour=told)
    assert left() == {*written, *of_the_user} - {"figures/letters-1.png"}


def test_the_caption_speaks_of_a_threshold_only_where_one_is_drawn(cell, scores):
    def text():
        return Reader(html.page(cell, drawn=html.figures_of(cell, scores))).text

    assert "Everything right of the dashed threshold" in text()
    cell["threshold"]["value"] = None  # As of several.
    assert "dashed threshold" not in text() and "The outermost bins hold all that lies beyond them." in text()


# A metric against a number -------------------------------------------------------------------------------------------


def rows_of(new_cell, weights, heads=("softmax",), seeds=(0, 1)):
    cells = [new_cell(seed, outliers__weight=str(w), head=head) for w in weights for head in heads for seed in seeds]
    return aggregate(cells)


def test_keys_of_numbers_are_found(new_cell):
    assert sweeps.swept(rows_of(new_cell, [0.1, 0.5], ("softmax", "arcface"))) == ["outliers.weight"]
    assert sweeps.swept(rows_of(new_cell, [0.1])) == [] == sweeps.swept(rows_of(new_cell, ["none", 0.5]))
    assert sweeps.swept([]) == []


def test_a_sweep_has_a_line_for_each_other_setting_in_the_order_of_its_values(new_cell, monkeypatch):
    from matplotlib.axes import Axes

    drawn, plain = [], Axes.errorbar

    def errorbar(self, x, y, yerr, **options):
        drawn.append((options["label"], list(x), list(y), list(yerr)))
        return plain(self, x, y, yerr=yerr, **options)

    monkeypatch.setattr(Axes, "errorbar", errorbar)
    rows = rows_of(new_cell, [0.5, 0.1, 2.0], ("softmax", "$arcface$"))
    well_formed(sweeps.sweep_figure(rows, "outliers.weight"))
    assert len(drawn) == 2 * len(sweeps.METRICS)
    label, x, y, spread = drawn[0]
    own = {row["cell"]["outliers.weight"]: row for row in rows if row["cell"]["head"] == "softmax"}
    assert x == [0.1, 0.5, 2.0] and label == "head softmax"
    np.testing.assert_allclose(y, [100 * own[str(w)]["near"]["auroc"]["mean"] for w in x])
    np.testing.assert_allclose(spread, [100 * own[str(w)]["near"]["auroc"]["std"] for w in x])


def test_the_matrix_page_shows_sweeps_where_there_are_any(new_cell):
    for weights, times in (([0.1, 0.5], 1), (["none", "noise"], 0)):
        cells = [new_cell(seed, outliers__weight=str(w)) for w in weights for seed in (0, 1)]
        page = html.page({"recipe": "x", "cells": cells, "kood": "0", "backend": "jax"})
        assert page.count("ID accuracy against outliers.weight") == times
