"""The audit of the outliers in the page, its figures, and the terminal."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from kood.report import audit_figures, print_cell, print_matrix
from kood.report.html import _templates, page
from kood.report.outlier_audit import TITLE, lines, summary
from tests.report.test_report_html import NASTY, Reader, row_of

SHORTCUT = "Shortcut test failed: the detector has learnt to spot generated images"


def section(audit, short=False):
    """The part of a page that tells of the audit."""
    return str(_templates().get_template("audit.html").module.audit(audit, short=short))


def tables_of(audit):
    reader = Reader(section(audit))
    return reader, dict(zip(("summary", "classes", "shares", "diversity", "fidelity"), reader.tables, strict=False))


def per(value):
    return f"{100 * value:.1f}"


def test_the_tables_hold_the_figures(new_audit):
    audit = json.loads(json.dumps(new_audit()))
    _, tables = tables_of(audit)
    content, sets = audit["content"], audit["diversity"]["sets"]
    for name, made, real in zip(
        audit["class_names"], content["pure"]["per_class"], content["held_out"]["per_class"], strict=True
    ):
        expected = [str(made["n"]), per(made["share"]), per(made["confidence"]), per(real["share"])]
        assert row_of(tables["classes"], name)[1:] == expected
    assert row_of(tables["classes"], "all")[1:3] == ["120", per(content["pure"]["share"])]
    for one in content["mixtures"]["by_share"]:
        found = row_of(tables["shares"], f"{one['low']:.2f} to {one['high']:.2f}")
        shares = [per(one[key]) for key in ("first", "second", "all_parents", "top", "on_top")]
        assert found[1:] == [str(one["n"]), *shares, f"{one['entropy']:.2f}", f"{one['log_odds']:.2f}"]
    assert row_of(tables["shares"], "all mixtures")[1] == "100"
    for key, name in audit_figures.SET_NAMES.items():
        if key in sets:
            one = sets[key]
            assert row_of(tables["diversity"], name)[1:] == [
                str(one["n"]), f"{one['to_training']['median']:.4g}", per(one["nearer"]),
                per(one["memorised"]["share"]), str(one["copies"]), f"{one['among']['median']:.4g}",
                per(one["near_duplicates"]["share"]), str(one["duplicates"]),
            ]  # fmt: skip
        if key != "held_out":
            one = audit["fidelity"]["sets"][key]
            kid = f"{one['kid']:.4g} ± {one['kid_standard_error']:.4g}"
            assert row_of(tables["fidelity"], name)[1:] == ["100", f"{one['fid']:.4g}", kid]
    answers = {row[0]: row[1] for row in tables["summary"][1:]}
    assert answers["Do the samples show their classes?"] == "yes"
    assert answers["Does the detector look at content?"] == "yes"


def test_every_sentence_of_the_audit_is_told(new_audit):
    audit = new_audit(score_shift=2.0)
    for short in (True, False):
        text = Reader(section(audit, short)).text
        for part in ("content", "diversity", "fidelity"):
            assert " ".join(audit[part]["sentences"]) in text
        assert audit["shortcut"]["sentence"] in text
    low, high = audit["shortcut"]["interval"]
    text = Reader(section(audit)).text
    assert f"{per(audit['shortcut']['auroc'])}% of cases" in text
    assert f"between {low:.2f} and {high:.2f} (400 samples, 400 real images)" in text
    assert audit["feature_space"] in text


def test_a_failed_shortcut_test_stands_first(cell, matrix, new_audit, capture):
    cell["warnings"] = ["something else"]
    cell["outlier_audit"] = new_audit(score_shift=2.0)
    for text in (Reader(page(cell)).text, " ".join(capture(lambda console: print_cell(console, cell)).split())):
        assert text.index(SHORTCUT) < text.index("something else") < text.index("AUROC")
    for one in matrix["cells"][:4]:
        one["outlier_audit"] = new_audit(score_shift=2.0)
    for one in matrix["cells"][4:]:
        one["outlier_audit"] = new_audit()
    for text in (Reader(page(matrix)).text, " ".join(capture(lambda console: print_matrix(console, matrix)).split())):
        assert f"{SHORTCUT} instead of images between classes; expect it to do worse on real outliers. (4 of 18" in text
    cell["outlier_audit"] = new_audit()
    assert SHORTCUT not in page(cell)


def test_each_cell_of_a_matrix_has_the_short_form(matrix, new_audit):
    plain = page(matrix).count("<img")
    for one in matrix["cells"]:
        one["outlier_audit"] = new_audit()
    text = page(matrix)
    assert Reader(text).text.count(TITLE) == len(matrix["cells"])
    assert text.count("<img") == plain


def test_without_an_audit_nothing_is_said(cell, capture):
    assert not section(None).strip()
    assert TITLE not in page(cell)
    assert TITLE not in capture(lambda console: print_cell(console, cell))


def test_what_was_not_audited_is_left_out(new_audit):
    audit = new_audit(score_shift=None, mixed=False)
    reader, _ = tables_of(audit)
    assert "This detector was not tested." in reader.text
    assert "not tested" in [answer for _, answer, _ in summary(audit)]
    assert not [name for name, _, _ in summary(audit) if "mixtures" in name]
    assert lines(audit)[-1] == "Does the detector look at content? Not tested."
    # Classes, histogram of distances: no table of shares, no figure of parents, no bar.
    assert reader.tags.count("img") == 2


def test_few_images_have_no_error(new_audit):
    audit = new_audit()
    audit["fidelity"]["sets"]["pure"]["kid_standard_error"] = None
    _, tables = tables_of(audit)
    assert "±" not in row_of(tables["fidelity"], "single-class samples")[3]


def test_one_share_makes_no_curve(new_audit):
    audit = new_audit()
    before = section(audit).count("<img")
    audit["content"]["mixtures"]["by_share"] = audit["content"]["mixtures"]["by_share"][:2]
    assert section(audit).count("<img") == before - 1


def test_many_classes_are_told_by_the_worst(new_audit):
    audit = new_audit(classes=25)
    reader, tables = tables_of(audit)
    worst = sorted(one["share"] for one in audit["content"]["pure"]["per_class"])[:10]
    assert [row[2] for row in tables["classes"][1:-1]] == [per(share) for share in worst]
    assert "10 classes that are recognised least" in reader.text
    assert reader.tags.count("img") == 3


def test_a_class_without_samples_is_a_dash(new_audit):
    audit = new_audit()
    audit["content"]["pure"]["per_class"][1] = {"n": 0, "share": None, "confidence": None}
    audit["content"]["pure"]["confusion"][1] = [0.0, 0.0, 0.0]
    _, tables = tables_of(audit)
    assert row_of(tables["classes"], "level 1")[1:4] == ["0", "—", "—"]


@pytest.mark.parametrize(("samples", "real", "words"), [
    (1.2, 1.0, "as near as training images"), (5.0, 2.0, "2.5 times as far as training images"),
    (0.0, 0.0, "as near as training images"), (1.0, 0.0, "farther than training images"),
])  # fmt: skip
def test_how_far_the_samples_are(new_audit, samples, real, words):
    audit = new_audit()
    audit["fidelity"]["sets"]["pure"]["fid"], audit["fidelity"]["sets"]["train"]["fid"] = samples, real
    assert words in [answer for _, answer, _ in summary(audit)]


@pytest.mark.parametrize("verdict", ["passed", "slight", "reversed", "undecided", "failed"])
def test_the_terminal_tells_it_in_a_few_lines(cell, capture, new_audit, verdict):
    audit = cell["outlier_audit"] = new_audit()
    audit["shortcut"].update(verdict=verdict, sentence=f"It {verdict}.")
    text = capture(lambda console: print_cell(console, cell))
    told = text.split(TITLE)[1]
    assert f"It {verdict}." in told
    assert f"AUROC {audit['shortcut']['auroc']:.2f}" in " ".join(told.split())
    assert per(audit["content"]["pure"]["share"]) in told
    assert max(map(len, text.splitlines())) <= 80
    assert len(told.strip().splitlines()) <= 14


def test_no_name_becomes_markup(cell, new_audit, capture):
    def named(word):
        audit = new_audit(class_names=[word, "$x$", "_b"])
        audit.update(feature_space=word, warnings=[word])
        audit["shortcut"].update(score=word, sentence=word)
        audit["diversity"]["unit"] = word
        for part in ("content", "diversity", "fidelity"):
            audit[part]["sentences"] = [word]
        return {**cell, "outlier_audit": audit}

    plain = Reader(page(named("harmless")))
    for name in NASTY:
        hostile = page(named(name))
        hostile.encode("utf-8")
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", hostile)
        reader = Reader(hostile)
        assert reader.tags == plain.tags
        assert [(tag, key) for tag, key, _ in reader.attributes] == [(tag, key) for tag, key, _ in plain.attributes]
        if name.isprintable():
            assert reader.text.count(name) == plain.text.count("harmless")
        printed = capture(lambda console, name=name: print_cell(console, named(name)), width=200)
        assert "\x1b" not in printed
        printed.encode("utf-8")


def drawings(audit):
    mixed = audit["content"]["mixtures"]
    return {
        "distances": lambda: audit_figures.neighbour_distances(audit["diversity"]),
        "parents": lambda: audit_figures.parents_mass(mixed),
        "confusion": lambda: audit_figures.confusion(audit["content"]["pure"]["confusion"], audit["class_names"]),
        "shortcut": lambda: audit_figures.shortcut_bar(audit["shortcut"]),
    }


@pytest.mark.parametrize("name", ["distances", "parents", "confusion", "shortcut"])
def test_figures_are_small_well_formed_self_contained_and_repeatable(new_audit, name):
    names = [f"a class of a very long name, ${number}$" for number in range(20)]
    figure = drawings(new_audit(classes=20, class_names=names))[name]
    svg = figure()
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(svg) < 200_000
    assert [v for e in root.iter() for k, v in e.attrib.items() if k.endswith("href") and not v.startswith("#")] == []
    assert figure() == svg


@pytest.fixture
def painted(monkeypatch):
    """Draws a figure and gives its axes, to be measured."""
    from matplotlib.figure import Figure

    def axes_of(function, *arguments):
        kept = []

        def keep(width, height, paint):
            canvas = Figure(figsize=(width, height))
            paint(canvas)
            kept.append(canvas.axes[0])
            return b""

        monkeypatch.setattr(audit_figures, "draw", keep)
        function(*arguments)
        return kept[0]

    return axes_of


def test_the_shortcut_bar_ends_at_the_auroc(new_audit, painted):
    shortcut = new_audit(score_shift=1.0)["shortcut"]
    axes = painted(audit_figures.shortcut_bar, shortcut)
    bar = axes.containers[0][0]
    assert (bar.get_x(), bar.get_width()) == (0, pytest.approx(shortcut["auroc"]))
    lines = [list(line.get_xdata()) for line in axes.lines]
    assert shortcut["interval"] in lines
    assert [0.5, 0.5] in lines
    assert axes.get_xlim() == (0, 1)


def test_the_histograms_are_shares_of_the_counts(new_audit, painted):
    diversity = new_audit()["diversity"]
    axes = painted(audit_figures.neighbour_distances, diversity)
    drawn = [patch.get_data().values for patch in axes.patches]
    for name in ("held_out", "pure", "mixtures"):
        counts = np.array(diversity["histogram"]["counts"][name])
        assert any(np.allclose(values, counts / counts.sum()) for values in drawn)
    assert list(axes.lines[0].get_xdata()) == [diversity["sets"]["held_out"]["to_training"]["p01"]] * 2


def test_the_curves_are_the_means_of_the_table(new_audit, painted):
    mixtures = new_audit()["content"]["mixtures"]
    rows, axes = mixtures["by_share"], painted(audit_figures.parents_mass, mixtures)
    found = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert found["first parent"] == [row["first"] for row in rows]
    assert found["second parent"] == [row["second"] for row in rows]
    assert found["all parents"] == [row["all_parents"] for row in rows]
    dotted = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert [list(line.get_ydata()) for line in dotted] == [
        [dotted[0].get_xdata()[0], 1],
        [1 - dotted[0].get_xdata()[0], 0],
    ]


def test_the_second_of_three_parents_has_no_share_that_follows_from_the_first(new_audit, painted):
    mixtures = {**new_audit()["content"]["mixtures"], "parents": {"min": 2, "max": 3}}
    assert [line.get_linestyle() for line in painted(audit_figures.parents_mass, mixtures).lines].count(":") == 1


def test_the_confusion_is_in_percent_of_the_row(painted):
    axes = painted(audit_figures.confusion, [[3, 1, 0], [0, 0, 0], [0.5, 0.5, 0]], ["a", "b", "c"])
    np.testing.assert_allclose(axes.collections[0].get_array(), [[75, 25, 0], [0, 0, 0], [50, 50, 0]])
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        ((0.5, 0.5), "75"), ((1.5, 0.5), "25"), ((0.5, 2.5), "50"), ((1.5, 2.5), "50"),
    }  # fmt: skip
    bottom, top = axes.get_ylim()
    assert bottom > top  # The first class stands at the top, as in the table.
