"""Drift: the law of the flags against its definition, simulated streams, and what is printed of real ones."""

import base64
import io
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from scipy.special import betaln, gammaln
from scipy.stats import ks_2samp

from kood.conformal import Calibration, Shift, p_values, rank, shift
from kood.data.images import fit_images
from kood.data.rules import Framing
from kood.errors import UserError
from kood.monitor import monitor
from kood.monitor.drift import Ties, drift
from kood.monitor.judge import judge
from kood.monitor.stream import Met, Seen
from kood.report.drawing import VERMILION
from kood.serving.calibrate import calibrate
from kood.serving.extras import read_facts
from tests.serving.models import pixels, published

pytestmark = pytest.mark.usefixtures("loaded_once", "as_written")


def of_flags(flags, calibration, accept, ties=None, shift=None, **how):
    """What the tests say of flags alone where it is not told which scores tie and what the p-values are."""
    no_ties = Ties(rank(calibration, accept) - 1, 1, np.zeros(len(flags), bool))
    return drift(flags, calibration, accept, ties or no_ties, shift or Shift(1.0, 1.0, 1.0), **how)


def beta_binomial(count, a, b):
    k = np.arange(count + 1)
    choose = gammaln(count + 1) - gammaln(k + 1) - gammaln(count - k + 1)
    return np.exp(choose + betaln(k + a, count - k + b) - betaln(a, b))


@pytest.mark.parametrize(("count", "flagged", "calibration", "accept"), [
    (100, 5, 99, 0.95), (100, 30, 99, 0.95), (7, 0, 19, 0.95), (7, 7, 19, 0.95), (1, 1, 39, 0.9), (500, 0, 2500, 0.95),
])  # fmt: skip
def test_the_rate_is_tested_by_the_beta_binomial_law(count, flagged, calibration, accept):
    flags = np.arange(count) < flagged
    found = of_flags(flags, calibration, accept)
    beyond = calibration + 1 - math.ceil(round((calibration + 1) * accept, 9))
    law = beta_binomial(count, beyond, calibration + 1 - beyond)
    expected = min(1.0, 2 * min(law[: flagged + 1].sum(), law[flagged:].sum()))
    assert found.rate_p_value == pytest.approx(expected, rel=1e-8)
    assert found.expected == beyond / (calibration + 1) and found.rate == flagged / count


def test_the_clearest_change_is_where_the_likelihood_says():
    flags = np.zeros(60, bool)
    flags[[3, 20, 41, 43, 44, 47, 50, 52, 55, 58]] = True
    found = of_flags(flags, 399, 0.9)
    gains = []
    for start in range(60):
        rest = flags[start:]
        rate, q = rest.mean(), found.expected
        terms = [n * math.log(n / len(rest) / p) for n, p in ((rest.sum(), q), ((~rest).sum(), 1 - q)) if n]
        gains.append(sum(terms))
        del rate
    assert found.since == int(np.argmax(gains)) == 41
    assert found.rate_since == pytest.approx(flags[41:].mean())


@pytest.mark.slow
def test_false_alarms_are_as_rare_as_said():
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(300):
        calibration, stream = rng.normal(size=99), rng.normal(size=400)
        alarms += of_flags(stream > np.sort(calibration)[94], 99, 0.95).drifts(0.1)
    # Binomial(300, 0.1) exceeds 45 about once in four hundred times; Bonferroni makes it rarer.
    assert alarms <= 45


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rounded", "saturated", "one value"])
def test_false_alarms_are_as_rare_where_scores_tie(kind):
    shaped = {
        "rounded": np.round, "saturated": lambda x: np.minimum(x, 1.0), "one value": lambda x: x * 0.0,
    }[kind]  # fmt: skip
    rng, alarms = np.random.default_rng(0), 0
    for seed in range(200):
        calibration, stream = shaped(rng.normal(size=99)), shaped(rng.normal(size=200))
        decision = Calibration(calibration, np.zeros(99, int), 1, 0.95)
        group, flags = decision.groups[0], decision.flagged(stream, np.zeros(200, int))
        found = of_flags(flags, 99, 0.95, ties=Ties(group.below, group.tied, stream == group.threshold), seed=seed)
        alarms += found.drifts(0.1)
        assert found.flagged == flags.sum() and found.tied > 0
    # Binomial(200, 0.1) exceeds 33 about once in four hundred times.
    assert alarms <= 33


@pytest.mark.slow
def test_one_calibration_score_may_stand_where_many_of_the_stream_do():
    rng, found = np.random.default_rng(0), []
    while len(found) < 60:
        calibration = np.minimum(rng.random(20), 0.9)
        group = Calibration(calibration, np.zeros(20, int), 1, 0.95).groups[0]
        if group.tied == 1 and group.threshold == 0.9:
            stream = np.minimum(rng.random(5000), 0.9)
            ties = Ties(group.below, 1, stream == 0.9)
            found.append(of_flags(stream > 0.9, 20, 0.95, ties=ties, seed=len(found)).flagged == 0)
            assert found[-1] and of_flags(stream > 0.9, 20, 0.95, ties=ties, seed=0).tied == ties.at.sum() > 300


def test_ties_do_not_hide_a_change():
    rng = np.random.default_rng(2)
    scores = np.minimum(np.concatenate([rng.normal(size=800), rng.normal(2.5, 1, 200)]), 1.2)
    calibration = np.minimum(rng.normal(size=999), 1.2)
    group = Calibration(calibration, np.zeros(999, int), 1, 0.95).groups[0]
    found = of_flags(scores > group.threshold, 999, 0.95, ties=Ties(group.below, group.tied, scores == group.threshold))
    assert group.threshold == 1.2 and found.flagged == 0  # Not one is above the saturated value,
    assert found.drifts(0.01) and abs(found.since - 800) <= 20  # but far more than before reach it.


def test_a_change_is_found_and_dated():
    rng = np.random.default_rng(1)
    flags = np.concatenate([rng.random(3000) < 0.05, rng.random(600) < 0.3])
    found = of_flags(flags, 2500, 0.95)
    assert found.drifts(0.01) and abs(found.since - 3000) <= 60 and found.change_p_value == 1 / 2000
    early = of_flags(rng.random(200) < 0.4, 2500, 0.95)
    assert early.drifts(0.01) and early.since <= 10
    fewer = of_flags(np.zeros(4000, bool), 2500, 0.95)
    assert fewer.drifts(0.01) and fewer.rate_since == 0


def of_thresholds(streams):
    """A version of so many thresholds and what it said, with p-values as common on each side of a threshold."""
    groups = [
        {"classes": [k], "threshold": float(k), "images": 200, "below": 190, "tied": 1} for k in range(len(streams))
    ]
    facts = {"accept": 0.95, "class_names": [f"{k}" for k in range(len(streams))], "groups": groups}
    seen = []
    for k, flags in enumerate(streams):
        places = np.where(flags, 1 + np.cumsum(flags) % 10, 11 + np.cumsum(~flags) % 191)
        seen += [
            Seen("a.png", "", f"{k}", k + (10.5 - place) / 201, place / 201, bool(flag), threshold=float(k))
            for place, flag in zip(places, flags, strict=True)
        ]
    return Met(seen, []), facts


@pytest.mark.parametrize(("thresholds", "level"), [(10, 0.01), (1, 0.001)])
def test_a_late_change_is_an_alarm_under_many_thresholds_and_at_a_small_level(thresholds, level):
    flags = np.zeros((thresholds, 2000), bool)
    flags[:, ::20] = flags[-1, -60:] = True
    met, facts = of_thresholds(flags)
    watched = judge(met, Path("1"), facts, level)
    one = watched.clearest
    assert watched.drifts(level) and one.classes == ((f"{thresholds - 1}",) if thresholds > 1 else ())
    assert abs(one.drift.since - 1940) <= 10 and one.drift.change_p_value < level / (3 * thresholds) < min(
        one.drift.rate_p_value, one.drift.shift.p_value
    )
    assert len(watched.findings) == thresholds and not watched.left_out
    assert not any(other.drift.drifts(level / thresholds) for other in watched.findings[:-1])


def test_a_level_that_no_simulation_reaches_is_told():
    usual = np.arange(200) % 20 == 0
    met, facts = of_thresholds(usual[None])
    assert not judge(met, Path("1"), facts, 4e-6).left_out
    (told,) = judge(met, Path("1"), facts, 1e-6).left_out
    assert "for --level 1e-06 of 3 tests 3,000,000 streams" in told


@pytest.mark.slow
def test_streams_that_end_early_leave_false_alarms_as_rare():
    rng, found = np.random.default_rng(0), []
    for seed in range(400):
        chance = rng.beta(5, 95)
        found.append(of_flags(rng.random(200) < chance, 99, 0.95, streams=12_000, seed=seed).change_p_value)
    found = np.array(found)
    # Binomial(400, a) exceeds these about once in a thousand times.
    for level, most in ((0.2, 106), (0.05, 35), (0.01, 11)):
        assert np.sum(found <= level) <= most


SHAPES = {
    "of a continuum": lambda x: x, "rounded": np.round, "saturated": lambda x: np.minimum(x, 0.5),
    "saturated below": lambda x: np.maximum(x, 0.0), "one value": lambda x: x * 0.0,
    "some without a number": lambda x: np.where(np.abs(np.sin(1e3 * x)) < 0.06, np.nan, x),
}  # fmt: skip


def judged(scores, calibration, accept):
    """Flags, p-values and ties of a stream under a threshold, as a graph answers them."""
    labels = np.where(np.isfinite(scores), 0, -1)
    decision = Calibration(calibration, np.where(np.isfinite(calibration), 0, -1), 1, accept)
    group, flags = decision.groups[0], decision.flagged(scores, labels)
    return flags, np.where(labels < 0, 0.0, p_values(scores, calibration)), Ties(
        group.below, group.tied, scores == group.threshold
    )  # fmt: skip


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize(("calibration", "count"), [(19, 200), (99, 40), (999, 400)])
def test_false_alarms_of_p_values_are_as_rare_as_said(kind, calibration, count):
    rng, found = np.random.default_rng(0), []
    for _ in range(200):
        known, stream = (SHAPES[kind](rng.normal(size=n)) for n in (calibration, count))
        found.append(shift(stream, judged(stream, known, 0.8)[1], calibration, 0.8).p_value)
    # Binomial(200, 0.1) exceeds 33 about once in four hundred times, Binomial(200, 0.01) 7 about once in a thousand.
    assert np.sum(np.array(found) <= 0.1) <= 33 and np.sum(np.array(found) <= 0.01) <= 7


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["of a continuum", "saturated"])
def test_false_alarms_of_all_tests_together_are_as_rare_as_said(kind):
    rng, alarms = np.random.default_rng(0), 0
    for seed in range(200):
        known, stream = (SHAPES[kind](rng.normal(size=n)) for n in (99, 150))
        flags, its, ties = judged(stream, known, 0.8)
        alarms += of_flags(flags, 99, 0.8, ties=ties, shift=shift(stream, its, 99, 0.8), seed=seed).drifts(0.1)
    assert alarms <= 33


def test_p_values_are_compared_by_kolmogorov_and_smirnov():
    rng = np.random.default_rng(3)
    known, stream = rng.normal(size=400), rng.normal(0.2, 1, size=300)
    found = shift(stream, p_values(stream, known), 400, 0.95)
    # The same two samples of scores; their order alone counts. The smaller p-values are the larger scores.
    one = ks_2samp(stream, known, alternative="less", method="asymp")
    assert found.p_value == pytest.approx(2 * one.pvalue, rel=1e-9)
    above = np.mean(p_values(stream, known) <= found.at)
    assert found.share == pytest.approx(above) and found.share - found.at == pytest.approx(one.statistic, abs=0.01)


@pytest.mark.parametrize(("step", "by"), [(1e-9, 0.6), (1e-9, -0.6), (0.25, 0.8)])
def test_a_shift_that_moves_no_image_past_the_threshold_is_found(step, by):
    rng = np.random.default_rng(4)
    known, stream = (step * np.round(x / step) for x in (rng.normal(size=999), rng.normal(by, 1, 360).clip(max=2)))
    flags, its, ties = judged(stream, known, 0.99)
    flags[:3] = True  # As many as are expected.
    assert not of_flags(flags, 999, 0.99, ties=ties).drifts(0.1)
    found = of_flags(flags, 999, 0.99, ties=ties, shift=shift(stream, its, 999, 0.99))
    assert found.drifts(0.001) and found.flags_p_value > 0.1
    assert (found.shift.share > found.shift.at) == (by > 0) and abs(found.shift.share - found.shift.at) > 0.15


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "run <b>"
    published(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    for place, image in enumerate(pixels(40, 3)):
        # Names in the other order than the times.
        file = folder / f"<i>{99 - place}.png"
        Image.fromarray(image).save(file)
        os.utime(file, (1.7e9 + place, 1.7e9 + place))
    (folder / "bad.png").write_bytes(b"nothing")
    return folder


def test_a_folder_is_taken_in_the_order_of_time(run, folder, tmp_path):
    console = Console(file=io.StringIO(), width=150)
    found, unread = monitor(run, folder, most=3, to=tmp_path / "out", console=console)
    text, told = console.file.getvalue(), json.loads((tmp_path / "out" / "monitor.json").read_text())
    assert found.images == 40 and unread == 1 and "bad.png cannot be read" in text
    assert told["verdict"] in " ".join(text.split()) and len(told["most_surprising"]) == 3
    page = (tmp_path / "out" / "monitor.html").read_text()
    assert "<i>" not in page and "run &lt;b&gt;" in page and page.count("data:image/png") == 3
    assert "Content-Security-Policy" in page and "http" not in page.replace("http-equiv", "").replace(
        "http://www.w3", ""
    )
    console = Console(file=io.StringIO(), width=150)
    monitor(run, folder, as_json=True, console=console)
    assert json.loads(console.file.getvalue())["images"] == 40


def row(**changed):
    return {
        "image": "a.png",
        "class_name": "x",
        "ood_score": 1.0,
        "p_value": 0.5,
        "is_ood": False,
        "label": 0,
    } | changed


def test_a_log_is_taken_line_by_line(run, tmp_path):
    file = tmp_path / "log.jsonl"
    rows = [row(time=f"day {n}", p_value=0.4 + n % 13 / 20, ood_score=-(n % 13)) for n in range(60)]
    rows += [{"image": "b", "error": "no"}]
    rows += [row(is_ood=True, p_value=0.05, image="\x1b[31mnew", time=f"day {n}") for n in range(60, 140)]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    console = Console(file=io.StringIO(), width=150)
    found, unread = monitor(run, file, console=console)
    text = " ".join(console.file.getvalue().split())
    assert (found.images, found.flagged, unread) == (140, 80, 1)
    assert (
        "Drift: 57.1% were flagged" in text
        and "since image 61" in text
        and "day 60" in text
        and "\x1b[31mnew" not in text
    )


@pytest.mark.slow
def test_a_change_is_drawn_where_it_is_significant(run, tmp_path):
    flags = np.arange(140) >= 60
    rows = [row(is_ood=bool(flag), p_value=0.05 if flag else 0.4 + n % 13 / 20) for n, flag in enumerate(flags)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for level, found in ((0.01, True), (1e-9, False)):
        monitor(run, tmp_path / "log.jsonl", console=Console(file=io.StringIO()), to=tmp_path / "out", level=level)
        told = json.loads((tmp_path / "out" / "monitor.json").read_text())
        page = (tmp_path / "out" / "monitor.html").read_text()
        (drawn,) = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)
        assert bool(told["since"]) == (VERMILION in base64.b64decode(drawn).decode()) == found


def test_a_shift_below_the_threshold_is_one_verdict_everywhere(run, tmp_path):
    # Of nineteen calibration images, in the order of their scores; all of the stream is in the higher half.
    rows = [row(p_value=(8 + n % 3) / 20, ood_score=-(n % 3), time=f"day {n}") for n in range(100)]
    rows[:35] = [row(p_value=(1 + n % 7) / 20, ood_score=20 - n % 7, is_ood=True) for n in range(35)]
    rows = [rows[place] for place in np.random.default_rng(0).permutation(100)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    console = Console(file=io.StringIO(), width=150)
    found, _ = monitor(run, tmp_path / "log.jsonl", console=console, to=tmp_path / "out", level=0.3, most=0)
    told = json.loads((tmp_path / "out" / "monitor.json").read_text())
    assert found.drifts(0.3) and found.clearest.drift.shift.p_value < 0.01 and told["drift"]
    assert told["shift_p_value"] == found.clearest.drift.shift.p_value and told["shift_at"] == 0.5
    assert told["shift_share"] == 1.0 and told["rate"] == 0.35 == told["expected"]
    assert told["since"]["place"] == 0 and told["rate_since"] == told["rate"]


def test_what_is_transparent_is_shown_as_the_model_sees_it(tmp_path):
    published(tmp_path / "run")
    facts, image = tmp_path / "run" / "1" / "assets.extra" / "kood.json", pixels(1, channels=4)
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "ground": [9, 200, 77]}))
    Image.fromarray(image[0]).save(tmp_path / "four.png")
    (tmp_path / "log.jsonl").write_text(json.dumps(row(image=str(tmp_path / "four.png"))))
    monitor(tmp_path / "run", tmp_path / "log.jsonl", console=Console(file=io.StringIO()), to=tmp_path / "out")
    (png,) = re.findall(r"data:image/png;base64,([^\"]+)", (tmp_path / "out" / "monitor.html").read_text())
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))
    assert np.array_equal(shown[::8, ::8], fit_images(image, (8, 8, 3), Framing((9, 200, 77)))[0])


@pytest.mark.usefixtures("same_graph")
def test_answers_are_judged_by_the_version_they_were_given_under(tmp_path):
    run = tmp_path / "run"
    published(run)  # 65% are accepted.
    images = tmp_path / "images"
    images.mkdir()
    for place, image in enumerate(pixels(400, 9)):
        Image.fromarray(image).save(images / f"{place}.png")
    calibrate(run, [images], accept=0.9, check=0.0)
    edges = {version: read_facts(run / f"{version}")["threshold"] for version in (1, 2)}
    rng, rows = np.random.default_rng(0), []
    for place in range(800):
        version = 1 + place % 2
        p_value, count, share = float(rng.random()), (19, 400)[version - 1], (0.35, 0.1)[version - 1]
        p_value = (1 + int(p_value * (count + 1))) / (count + 1)
        told = {"p_value": p_value, "ood_score": -p_value, "is_ood": p_value <= share, "image": f"{place}.png"}
        rows.append(row(version=version, threshold=edges[version], **told))
    file = tmp_path / "log.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    watched, _ = monitor(run, file, console=Console(file=io.StringIO()), to=tmp_path / "out")
    assert [one.version for one in watched.findings] == ["1", "2"] and not watched.drifts(0.01)
    assert [round(one.drift.expected, 2) for one in watched.findings] == [0.35, 0.10]
    told = json.loads((tmp_path / "out" / "monitor.json").read_text())
    assert [one["version"] for one in told["streams"]] == ["1", "2"] and told["images"] == 800
    assert all(one["since"] is None for one in told["streams"])
    assert "version 2" in (tmp_path / "out" / "monitor.html").read_text()
    only, _ = monitor(run / "1", file, console=Console(file=io.StringIO()))
    assert only.images == 400 and "400 answers of version 2" in only.left_out[0]
    # A third that is not there, a model of the same number with another threshold, answers that do not say.
    rows[0]["version"], rows[1]["threshold"] = 3, edges[2] + 1.0
    file.write_text("\n".join(map(json.dumps, rows)))
    watched, _ = monitor(run, file, console=Console(file=io.StringIO()))
    assert watched.images == 798 and [text[:9] for text in watched.left_out] == ["1 answers", "1 answers"]
    file.write_text(json.dumps(row()))
    with pytest.raises(UserError, match=r"1 answers do not say which version gave them, and .* has 1, 2; name"):
        monitor(run, file)
    assert monitor(run / "1", file, console=Console(file=io.StringIO()))[0].images == 1


@pytest.mark.parametrize("inside", [False, True])
def test_a_version_that_is_named_by_no_number_is_judged_by_its_own_answers(tmp_path, monkeypatch, inside):
    """Its answers say version 0, or the number that it was copied from."""
    published(tmp_path / "run")
    version = (tmp_path / "run" / "1").rename(tmp_path / "run" / "prod")
    edge = read_facts(version)["threshold"]
    rows = [row(version=place % 2, threshold=edge + (place == 5), class_name="a") for place in range(10)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(version)
    watched, _ = monitor(Path() if inside else version, tmp_path / "log.jsonl", console=Console(file=io.StringIO()))
    assert [(one.version, one.drift.images) for one in watched.findings] == [("prod", 9)]
    assert watched.left_out[0].startswith("1 answers")  # Of another threshold.


def test_images_that_the_model_was_calibrated_on_are_left_out(tmp_path):
    run, images = tmp_path / "run", tmp_path / "images"
    published(run)
    images.mkdir()
    for place, image in enumerate(pixels(60, 9)):
        Image.fromarray(image).save(images / f"{place}.png")
    calibrate(run, [images], accept=0.9, check=0.5)
    watched, _ = monitor(run, images, console=Console(file=io.StringIO()))
    assert (watched.images, watched.known) == (30, 30)


def test_the_verdict_says_that_calibration_images_stand_in_groups(tmp_path, folder):
    run, images = tmp_path / "run", tmp_path / "images"
    published(run)
    file = run / "1" / "assets.extra" / "kood.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "calibration_groups": 7}))

    def verdict():
        console = Console(file=io.StringIO(), width=150)
        monitor(run, folder, as_json=True, console=console)
        return json.loads(console.file.getvalue())["verdict"]

    told = "The calibration images of version 1 stand in 7 groups and are counted as independent, so drift is called "
    assert told in verdict()
    images.mkdir()
    for place, image in enumerate(pixels(60, 9)):
        Image.fromarray(image).save(images / f"{place}.png")
    calibrate(run, [images], accept=0.9, check=0.5)  # Of these nobody knows it.
    assert "groups" not in verdict()


@pytest.mark.usefixtures("same_graph")
def test_answers_by_class_are_judged_by_their_own_threshold(tmp_path):
    run, images = tmp_path / "run", tmp_path / "images"
    published(run)
    images.mkdir()
    for place, image in enumerate(pixels(200, 9)):
        Image.fromarray(image).save(images / f"{place}.png")
    facts = read_facts(calibrate(run, [images], accept=0.6, by_class=True, check=0.0).version)
    (first, one), (second, other) = [(group["classes"][0], group["threshold"]) for group in facts["groups"][:2]]
    names, given = facts["class_names"], {"version": 2}
    said = [
        {"class_name": names[first], "threshold": one},
        {"class_name": names[second], "threshold": other},
        {"class_name": names[second]},
        {"class_name": names[first], "threshold": other},
        {"class_name": "nothing"},
        {"class_name": "", "is_ood": True, "ood_score": None},
    ]
    rows = [row(**told, **given) for told in said]
    file = tmp_path / "log.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    watched, _ = monitor(run, file, console=Console(file=io.StringIO()))
    assert [finding.drift.images for finding in watched.findings] == [2, 2]
    assert watched.left_out[0].startswith("2 answers that say version 2 have a class or a threshold")


@pytest.mark.parametrize("strange", ["NaN", "null", "Infinity", "-Infinity"])
def test_an_answer_without_a_number_counts_as_flagged(run, tmp_path, strange):
    line = json.dumps(row()).replace('"ood_score": 1.0', f'"ood_score": {strange}')
    (tmp_path / "log.jsonl").write_text(line)
    console = Console(file=io.StringIO())
    watched, _ = monitor(run, tmp_path / "log.jsonl", console=console, to=tmp_path / "out")
    assert watched.flagged == 1 and not json.loads(line)["is_ood"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1: this is no answer"),
        (json.dumps(row()) + "\n[]", "line 2: this is no answer"),
        (json.dumps({"image": "x"}), "is_ood is missing"),
        (json.dumps(row(is_ood=1)), "is_ood must be true or false"),
        (json.dumps(row(p_value=2)), "p_value must lie in 0..1"),
        (json.dumps(row(version=1.7)), "line 1: .*version must be a whole number, not 1.7"),
        (json.dumps(row(version=True)), "version must be a whole number"),
        (json.dumps(row(version=math.inf)), "version must be a whole number"),
        (json.dumps(row(ood_score=10**400)), "line 1: this is no answer"),
        (json.dumps(row(ood_score="high")), "line 1"),
        ("", "no image in it that could be read"),
        ('{"image": "x", "error": "y"}', "no image in it that could be read"),
    ],
)
def test_what_is_no_log_is_refused(run, tmp_path, content, message):
    (tmp_path / "log.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        monitor(run, tmp_path / "log.jsonl")


def test_a_file_is_no_place_for_what_is_found(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"^--to .*file: .*file is a file; name a folder"):
        monitor(tmp_path / "none", tmp_path / "none", to=tmp_path / "file")  # Before anything is looked at.


def test_a_table_of_images_is_watched_and_one_of_answers_is_named(run, folder, tmp_path):
    files = sorted(folder.glob("<i>*.png"))
    (tmp_path / "images.csv").write_text("\n".join(f"{file},a" for file in files))
    found, unread = monitor(run, tmp_path / "images.csv", console=Console(file=io.StringIO()))
    assert found.images == 40 and unread == 0
    (tmp_path / "images.csv").write_text("\n".join(["id,image,x", "1,gone.png,", *(f"1,{one}," for one in files)]))
    found, unread = monitor(run, tmp_path / "images.csv", console=Console(file=io.StringIO()))
    assert found.images == 40 and unread == 1
    (tmp_path / "answers.csv").write_text("image,label,class_name,probability,ood_score,p_value\n1.png,0,a,1,0,1")
    with pytest.raises(UserError, match="answers.csv: these are answers as `kood predict --csv` prints them; give"):
        monitor(run, tmp_path / "answers.csv")


def test_nothing_there(run, tmp_path):
    with pytest.raises(UserError, match=r"^--data https://host/a: URLs are not fetched"):
        monitor(run, Path("https://host/a"))
    with pytest.raises(UserError, match="there is nothing there"):
        monitor(run, tmp_path / "none")
    with pytest.raises(UserError, match="no images in this folder"):
        monitor(run, tmp_path)
