"""The leaderboard: sorted as it says, the same in every medium, and a page that runs nothing but its own script."""

import base64
import csv
import hashlib
import io
import re
import shutil
import subprocess

import numpy as np
import pytest

from kood.intervals import auroc_interval
from kood.report import aggregate, leaderboard_entries, print_matrix, write
from kood.report.aggregate import statistic
from kood.report.comparable import unlike
from kood.report.formats import as_csv
from kood.report.html import page
from kood.report.leaderboard import table
from tests.report.conftest import SCORES

NONE = lambda *_: None  # noqa: E731


@pytest.fixture
def board(new_cell):
    """Two trainings of three seeds and one of one, with what they cost."""
    arms = [("plain", 0), ("plain", 1), ("plain", 2), ("turned", 0), ("turned", 1), ("turned", 2), ("alone", 0)]
    cells = [new_cell(seed, arm=arm) for arm, seed in arms]
    for number, one in enumerate(cells):
        costs = {score: 0.1 * (place + 1) for place, score in enumerate(SCORES)}
        one["cost"] = {"training_seconds": 60.0 * (number + 1), "milliseconds": costs}
    return {"recipe": "board", "backend": "tensorflow", "cells": cells, "failed": []}


def near(cells, arm, score, kind="near", metric="auroc"):
    return np.array([one["scores"][score][kind][metric] for one in cells if one["cell"]["arm"] == arm])


def test_every_training_by_every_score_sorted_by_near_auroc(board):
    cells = board["cells"]
    cells[0]["headline_score"] = cells[1]["headline_score"] = "energy"
    found = leaderboard_entries(cells, NONE)
    named = [(one["cell"]["arm"], one["score"]) for one in found]
    assert set(named) == {(arm, score) for arm in ("plain", "turned", "alone") for score in SCORES}
    means = [near(cells, *name).mean() for name in named]
    assert len(named) == 12 and means == sorted(means, reverse=True)
    assert {name for name, one in zip(named, found, strict=True) if one["chosen"]} == {
        ("turned", "msp"),
        ("alone", "msp"),
    }
    one = found[named.index(("plain", "energy"))]
    values = near(cells, "plain", "energy")
    np.testing.assert_allclose([one["near"]["auroc"][k] for k in ("mean", "std")], [values.mean(), values.std(ddof=1)])
    # Student's quantile of two degrees of freedom.
    half = 4.302652729911275 * values.std(ddof=1) / np.sqrt(3)
    bounds = [max(0, values.mean() - half), min(1, values.mean() + half)]
    np.testing.assert_allclose([one["near"]["auroc"][k] for k in ("low", "high")], bounds, rtol=1e-9)
    rates = near(cells, "plain", "energy", "far", "fpr_at_ood_tpr")
    assert one["far"]["fpr_at_ood_tpr"]["mean"] == pytest.approx(rates.mean())
    assert one["minutes"] == {"mean": 2.0, "std": 1.0, "n": 3} and one["seeds"] == [0, 1, 2]
    assert one["milliseconds"]["mean"] == pytest.approx(0.2)


def test_of_one_seed_the_interval_is_delongs_over_the_images(board, id_and_ood_scores):
    asked = []

    def scores_of(cell, score):
        asked.append((cell["cell"]["arm"], score))
        return id_and_ood_scores

    found = leaderboard_entries(board["cells"], scores_of)
    assert set(asked) == {("alone", score) for score in SCORES}
    expected = auroc_interval(id_and_ood_scores["id"], [id_and_ood_scores[name] for name in ("digits 6-9", "letters")])
    (one,) = [one for one in found if one["cell"]["arm"] == "alone" and one["score"] == "msp"]
    np.testing.assert_allclose([one["near"]["auroc"][k] for k in ("low", "high")], expected)
    assert "95% interval over seeds (Student), of one seed over test images (DeLong)." in table(found).noted()
    alone = [one for one in found if one["cell"]["arm"] == "alone"]
    assert "95% interval over test images (DeLong)." in table(alone).noted()
    assert "95% interval over seeds (Student)." in table([one for one in found if one not in alone]).noted()


def test_ties_go_by_far_and_what_has_no_near_figure_stands_last(board):
    for cell, far in zip(board["cells"], (0.5, 0.5, 0.5, 0.9, 0.9, 0.9, 0.99), strict=True):
        cell["scores"] = {"msp": {"near": {"auroc": 0.75}, "far": {"auroc": far}}}
    del board["cells"][6]["scores"]["msp"]["near"]
    found = leaderboard_entries(board["cells"], NONE)
    assert [one["cell"]["arm"] for one in found] == ["turned", "plain", "alone"]
    assert found[2]["near"]["auroc"] == {"mean": None, "std": None, "n": 0, "low": None, "high": None}
    assert "nan" not in as_csv(table(found)).lower() and "None" not in page({**board, "leaderboard": found})


def test_it_is_the_same_in_every_medium(board, tmp_path, capture):
    board["leaderboard"] = leaderboard_entries(board["cells"], NONE)
    write(tmp_path / "report.html", board)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "leaderboard.csv").read_text())))
    for place, (row, one) in enumerate(zip(rows, board["leaderboard"], strict=True), start=1):
        assert (row["arm"], row["score"], row["place"]) == (one["cell"]["arm"], one["score"], str(place))
        assert float(row["near_auroc_mean"]) == one["near"]["auroc"]["mean"]
        assert row["near_auroc_low"] == (
            "" if one["near"]["auroc"]["low"] is None else str(one["near"]["auroc"]["low"])
        )
        assert float(row["training_minutes_mean"]) == one["minutes"]["mean"]
        assert float(row["milliseconds_an_image_mean"]) == one["milliseconds"]["mean"]
    assert (tmp_path / "leaderboard.tex").read_text().count(r"\\") == 13
    printed = capture(lambda console: print_matrix(console, board), width=200)
    first = board["leaderboard"][0]
    assert re.search(
        rf"{first['cell']['arm']} +{first['score']}.* 1 .*{100 * first['near']['auroc']['mean']:.1f}", printed
    )
    html = (tmp_path / "report.html").read_text()
    assert f'data-value="{first["near"]["auroc"]["mean"]}"' in html and html.index("Leaderboard") < html.index(
        "over seeds"
    )


def test_trainings_measured_on_other_images_are_told_of_and_have_no_best(board, tmp_path, capture):
    for one in board["cells"]:
        one["datasets"]["letters"]["sha256"] = one["cell"]["arm"]
    whole = {**board, "leaderboard": leaderboard_entries(board["cells"], NONE)}
    told = "those of letters under 'arm turned', 'arm alone' are others than under 'arm plain'"
    write(tmp_path / "report.html", whole)
    assert (tmp_path / "report.html").read_text().count(told.replace("'", "&#39;")) == 2
    assert told in (tmp_path / "leaderboard.tex").read_text()
    printed = " ".join(capture(lambda console: print_matrix(console, whole), 200).split())
    assert told in printed.split("Leaderboard")[1]
    shown = table(whole["leaderboard"], apart=unlike(board["cells"]))
    marks = [any(column) for column in zip(*shown.best, strict=True)]
    marked = {column.name for column, best in zip(shown.columns, marks, strict=True) if best}
    assert {"far_auroc", "id_accuracy"} <= marked and not marked & {"near_auroc", "near_fpr_at_ood_tpr"}
    columns = {column.name: column.more_is_better for column in shown.columns if column.parts == ("mean", "std", "n")}
    assert columns["near_auroc"] and columns["near_fpr_at_ood_tpr"] is False  # By which the page sorts.


def test_the_first_are_printed_and_the_rest_counted(board, capture):
    entries = leaderboard_entries(board["cells"], NONE) * 3
    printed = capture(lambda console: print_matrix(console, {**board, "leaderboard": entries}), width=200)
    assert "The first 20 of 36; all stand in report.html and leaderboard.csv." in " ".join(printed.split())
    assert "The first" not in table(entries).noted()


def test_only_its_own_script_runs_and_only_where_there_is_one(board):
    assert "<script" not in page(board) and "script-src" not in page(board)
    text = page({**board, "leaderboard": leaderboard_entries(board["cells"], NONE)})
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert not re.search(r"\b(fetch|XMLHttpRequest|import|eval|innerHTML)\b", script) and "http" not in script


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onmouseover='x"])
def test_no_name_becomes_markup(new_cell, name):
    def shown(word):
        cell = new_cell(0, **{word: word})
        cell["scores"] = {word: cell["scores"]["msp"]}
        cell["cost"] = {"training_seconds": 1.0, "milliseconds": {word: 1.0}}
        report = {"recipe": word, "backend": word, "cells": [cell], "failed": []}
        return page({**report, "leaderboard": leaderboard_entries([cell], NONE)})

    tags = [re.findall(r"<[a-z/][^>\s]*", shown(word)) for word in (name, "harmless")]
    assert tags[0] == tags[1]


HAND = """<script>
const field = document.querySelector(".board input"), told = [];
const rows = () => [...document.querySelectorAll(".board tbody tr")].filter(row => !row.hidden)
  .map(row => row.cells[0].textContent + "/" + row.cells[1].textContent.split(" ")[0]);
const write = text => { field.value = text; field.dispatchEvent(new Event("input")); };
const press = number => document.querySelectorAll(".board thead button")[number].click();
told.push(rows()); write("TURNED energy"); told.push(rows()); write("no such"); told.push(rows()); write("");
press(4); told.push(rows()); press(4); told.push(rows()); press(1); told.push(rows());
document.body.textContent = JSON.stringify(told);
</script></body>"""


def test_in_a_browser_it_filters_and_sorts(board, tmp_path):
    browser = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
    )
    if not browser:
        pytest.skip("there is no Chromium")
    import json

    del board["cells"][6]["scores"]["energy"]["near"]
    entries = leaderboard_entries(board["cells"], NONE)
    text = page({**board, "leaderboard": entries})
    # The page's policy keeps out the hand that types and clicks.
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text).replace("</body>", HAND)
    (tmp_path / "page.html").write_text(text)
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    shown = subprocess.run(
        [*command, "--dump-dom", (tmp_path / "page.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    first, filtered, none, descending, ascending, by_score = json.loads(
        re.search(r"<body>(.*?)</body>", shown, re.DOTALL)[1]
    )
    named = [f"{one['cell']['arm']}/{one['score']}" for one in entries]
    assert first == descending == named and none == []
    assert sorted(filtered) == ["turned/energy"]
    assert ascending == [*named[:-1][::-1], named[-1]] and named[-1] == "alone/energy"  # What is missing stays last.
    assert [name.split("/")[1] for name in by_score] == sorted(name.split("/")[1] for name in named)


def test_a_score_whose_options_each_seed_chose_is_one_method(board):
    cells = [one for one in board["cells"] if one["cell"]["arm"] != "alone"]
    for number, one in enumerate(cells):
        spec = f"knn:k={(10, 20)[number % 2]}"
        one["scores"][spec] = one["scores"].pop("mahalanobis")
        one["cost"]["milliseconds"][spec] = one["cost"]["milliseconds"].pop("mahalanobis")
        one["tuned"] = {"knn": {"chosen": spec, "tried": {spec: 0.9}}}
        one["headline_score"] = spec
    # Of this seed alone it is one of those that were asked for, too.
    cells[1]["scores"]["knn:k=10"] = cells[0]["scores"]["knn:k=10"]
    cells[1]["cost"]["milliseconds"]["knn:k=10"] = 1.0
    found = {(one["cell"]["arm"], one["score"]): one for one in leaderboard_entries(cells, NONE)}
    one = found["plain", "knn"]
    values = [run["scores"][run["headline_score"]]["near"]["auroc"] for run in cells[:3]]
    assert one["near"]["auroc"]["mean"] == pytest.approx(np.mean(values)) and one["near"]["auroc"]["n"] == 3
    assert one["chosen"] and one["specs"] == ["knn:k=10", "knn:k=20"] and one["milliseconds"]["n"] == 3
    by_spec = found["plain", "knn:k=10"]
    assert by_spec["near"]["auroc"]["n"] == 3 and not by_spec["chosen"]
    text = as_csv(table(list(found.values())))
    lines = {(of["arm"], of["score"]): of for of in csv.DictReader(io.StringIO(text))}
    assert [lines["plain", "knn"][f"score_{of}"] for of in ("specs", "chosen")] == ["knn:k=10, knn:k=20", "True"]
    assert lines["plain", "knn:k=10"]["score_chosen"] == "False"
    assert any(of.cells[1].text == "knn:k=10, knn:k=20 ◂" for of in table([one]).rows)
    rows = {row["cell"]["arm"]: row["scores"] for row in aggregate(cells)}
    assert rows["plain"]["knn"]["near"]["auroc"] == statistic(values) and "knn:k=20" not in rows["plain"]
    # Where all seeds chose alike it is called by what they chose.
    alike = [one for number, one in enumerate(cells) if number % 2 == 0 and one["cell"]["arm"] == "plain"]
    assert "knn:k=10" in aggregate(alike)[0]["scores"] and "knn" not in aggregate(alike)[0]["scores"]


def test_a_mean_over_fewer_seeds_than_others_is_not_the_best(board):
    cells = [one for one in board["cells"] if one["cell"]["arm"] == "plain"]
    for one in cells[1:]:
        del one["scores"]["energy"]
    cells[0]["scores"]["energy"]["near"]["auroc"] = 1.0
    found = leaderboard_entries(cells, NONE)
    told = table(found)
    column = [one.heading for one in told.columns].index("near\nAUROC")
    assert found[0]["score"] == "energy" and told.rows[0].cells[column].text == "100.0 (n=1)"
    assert [marks[column] for marks in told.best] == [False, True, False, False]
    assert "best of its column, of the figures over the most runs." in told.noted()


def test_the_first_rows_carry_the_marks_of_the_whole_table(board):
    found = leaderboard_entries(board["cells"], NONE)
    cheapest = max(place for place, one in enumerate(found) if len(one["seeds"]) == 3)
    found[cheapest]["milliseconds"]["mean"] = 0.001
    whole, first = table(found), table(found, 5)
    assert len(first.rows) == 5 and first.best == whole.best[:5]
    for narrow in (first.without(1), first.merged()):
        assert len(narrow.rows) == 5 and sum(map(sum, narrow.best)) <= sum(map(sum, first.best))
    column = [one.name for one in whole.columns].index("milliseconds_an_image")
    assert whole.best[cheapest][column] and cheapest >= 5 and not any(marks[column] for marks in first.best)


def test_every_column_of_the_page_has_what_it_is_sorted_by(board):
    found = leaderboard_entries(board["cells"], NONE)
    html = page({**board, "leaderboard": found})
    body = html[html.index('class="board"') :].split("<tbody>")[1].split("</tbody>")[0]
    column = [one.title for one in table(found).columns].index("n")
    for line, one in zip(body.split("<tr")[1:], found, strict=True):
        values = re.findall(r'data-value="([^"]*)"', line)
        assert values[column] == str(len(one["seeds"]))
