"""Mean and sample standard deviation over seeds, against the formula written out."""

import math
import statistics

import pytest

from kood.report.aggregate import aggregate, group, statistic


def by_hand(values):
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def test_statistic():
    values = [0.91, 0.93, 0.98]
    found = statistic(values)
    mean, std = by_hand(values)
    assert found["mean"] == pytest.approx(mean, rel=1e-15)
    assert found["std"] == pytest.approx(std, rel=1e-12)
    assert found["std"] == pytest.approx(statistics.stdev(values), rel=1e-12)
    assert found["n"] == 3


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], {"mean": None, "std": None, "n": 0}),
        ([None, math.nan, math.inf], {"mean": None, "std": None, "n": 0}),
        ([0.5], {"mean": 0.5, "std": None, "n": 1}),
        ([0.5, math.nan], {"mean": 0.5, "std": None, "n": 1}),
        ([0.5, 0.5], {"mean": 0.5, "std": 0.0, "n": 2}),
    ],
)
def test_statistic_of_few_values(values, expected):
    assert statistic(values) == expected


def test_every_figure_of_every_row(matrix):
    rows = aggregate(matrix["cells"])
    assert len(rows) == 6
    for row in rows:
        cells = [cell for cell in matrix["cells"] if {**cell["cell"], "seed": None} == {**row["cell"], "seed": None}]
        assert row["seeds"] == [0, 1, 2]
        assert "seed" not in row["cell"]
        mean, std = by_hand([cell["id"]["accuracy"] for cell in cells])
        assert row["id"]["accuracy"] == pytest.approx({"mean": mean, "std": std, "n": 3})
        for score, datasets in row["scores"].items():
            assert set(datasets) == set(cells[0]["scores"][score])
            for dataset, metrics in datasets.items():
                for metric, found in metrics.items():
                    mean, std = by_hand([cell["scores"][score][dataset][metric] for cell in cells])
                    assert found == pytest.approx({"mean": mean, "std": std, "n": 3})
        assert row["near"] == row["scores"]["msp"]["near"]
        assert row["far"] == row["scores"]["msp"]["far"]


def test_near_and_far_are_those_of_each_cells_own_headline_score(new_cell):
    cells = [new_cell(seed, head="x") for seed in (0, 1)]
    cells[1]["headline_score"] = "energy"
    (row,) = aggregate(cells)
    assert row["headline_score"] == ["msp", "energy"]
    values = [cells[0]["scores"]["msp"]["near"]["auroc"], cells[1]["scores"]["energy"]["near"]["auroc"]]
    assert row["near"]["auroc"]["mean"] == pytest.approx(sum(values) / 2)


def test_a_missing_dataset_or_score_shows_in_n(new_cell):
    cells = [new_cell(seed, head="x") for seed in (0, 1, 2)]
    del cells[0]["scores"]["energy"]
    for score in cells[1]["scores"].values():
        del score["letters"]
    cells[2]["scores"]["msp"]["letters"]["auroc"] = math.nan
    (row,) = aggregate(cells)
    assert row["scores"]["energy"]["near"]["auroc"]["n"] == 2
    assert row["scores"]["energy"]["letters"]["auroc"]["n"] == 1
    assert row["scores"]["energy"]["letters"]["auroc"]["std"] is None
    letters = row["scores"]["msp"]["letters"]
    assert letters["auroc"] == {"mean": cells[0]["scores"]["msp"]["letters"]["auroc"], "std": None, "n": 1}
    assert letters["aupr_in"]["n"] == 2


def test_one_seed_no_cells_and_no_scores(new_cell):
    assert aggregate([]) == []
    (row,) = aggregate([new_cell()])
    assert row["cell"] == {}
    assert row["near"]["auroc"] == {"mean": new_cell()["scores"]["msp"]["near"]["auroc"], "std": None, "n": 1}
    (bare,) = aggregate([{**new_cell(), "scores": {}}])
    assert (bare["near"], bare["far"], bare["scores"]) == ({}, {}, {})


def test_only_the_seed_is_averaged_over(new_cell):
    cells = [new_cell(0, margin=1), new_cell(0, margin=1.0), new_cell(0, margin="1"), new_cell(0, margin=True)]
    assert len(group(cells)) == 4
    turned = {**new_cell(1), "cell": {"b": 2, "a": 1, "seed": 1}}
    assert len(group([{**new_cell(0), "cell": {"a": 1, "b": 2, "seed": 0}}, turned])) == 1


def test_a_repeated_cell_is_no_second_measurement(new_cell):
    (row,) = aggregate([new_cell(0, head="x"), new_cell(0, head="x"), new_cell(1, head="x")])
    assert row["seeds"] == [0, 1]
    assert row["id"]["accuracy"]["n"] == 2
