"""A run that ends in a leaderboard, and the stage that times its decisions."""

import json

import numpy as np
import pytest

from kood import pipeline
from kood.errors import UserError
from kood.pipeline import evaluation
from kood.recipe import load
from tests.conftest import TINY, Cell

pytestmark = pytest.mark.usefixtures("as_written")

MATRIX = """
[report]
leaderboard = true
[matrix]
seed = [0, 1]
[[matrix.arm]]
name = "plain"
evaluate.scores = ["msp", "knn"]
[[matrix.arm]]
name = "turned"
evaluate.scores = ["msp", "rotation"]
train.auxiliary = { name = "rotation", weight = 0.25 }
outliers.use = ["patch_shuffle"]
"""
SMALL = (
    "outliers.use=[]",
    "outliers.patch_shuffle.count=40",
    "evaluate.baseline=false",
    "pure_samples.use=[]",
    "serve.export=false",
    "train.epochs=1",
)


@pytest.mark.slow
def test_a_run_ends_in_its_leaderboard(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("kood.pipeline.classify.training.fit", lambda model, *_, **__: (model, {}))
    tiny.write_text(TINY + MATRIX)
    told = pipeline.run(tiny, SMALL, saved=tmp_path)
    run = tmp_path / "tiny"
    report = json.loads((run / "report.json").read_text())
    assert not told["failed"] and len(report["cells"]) == 4
    names = [(one["cell"]["arm"], one["score"]) for one in report["leaderboard"]]
    scores = {one["cell"]["arm"]: set(one["scores"]) for one in report["cells"]}
    assert scores == {"plain": {"msp", "knn"}, "turned": {"msp", "rotation"}}
    assert sorted(names) == sorted((arm, score) for arm, found in scores.items() for score in found)
    means = [one["near"]["auroc"]["mean"] for one in report["leaderboard"]]
    assert means == sorted(means, reverse=True)
    for one in report["leaderboard"]:
        assert one["seeds"] == [0, 1] and one["milliseconds"]["n"] == 2 and one["milliseconds"]["mean"] > 0
        expected = [
            sum(cell["stages"].get(stage, {"seconds": 0})["seconds"] for stage in ("classifier", "patch_shuffle")) / 60
            for cell in report["cells"]
            if cell["cell"]["arm"] == one["cell"]["arm"]
        ]
        assert one["minutes"]["mean"] == pytest.approx(np.mean(expected)) and one["minutes"]["mean"] > 0
    assert (run / "leaderboard.csv").is_file() and (run / "leaderboard.tex").is_file()
    # How it is laid out makes nothing again.
    again = pipeline.run(tiny, [*SMALL, "report.leaderboard=false"], saved=tmp_path)
    assert all(stage["cached"] for cell in again["cells"] for stage in cell["stages"].values())
    assert "leaderboard" not in again and "cost" not in again["cells"][0]


def test_after_a_frozen_backbone_the_whole_network_is_timed(tiny, tmp_path, monkeypatch):
    passed = []
    timed = evaluation._timed
    monkeypatch.setattr(evaluation, "_timed", lambda call, given: passed.append(given) or timed(call, given))
    settings = [
        *SMALL,
        "classifier.train=head",
        "report.leaderboard=true",
        "matrix={seed=[3]}",
        'evaluate.scores=["msp","knn"]',
    ]
    cell = Cell(load(tiny, settings), tmp_path / "saved")
    cell.make("features", "classifier", "evaluate")
    facts = cell.make("decision_cost").facts
    assert set(facts["milliseconds"]) == {"msp", "knn"} and min(facts["milliseconds"].values()) > 0
    pixels, *outputs = passed  # One pass serves both scores.
    assert pixels.shape == (facts["images"], 8, 8, 1) and -1 <= pixels.min() < pixels.max() <= 1
    assert [set(one) for one in outputs] == [{"features", "logits", "cosines"}] * 2


def test_of_one_run_there_is_none(tiny):
    with pytest.raises(UserError, match=r"report.leaderboard lays the rows of a matrix.*add \[matrix\]") as caught:
        load(tiny, ["report.leaderboard=true"])
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
