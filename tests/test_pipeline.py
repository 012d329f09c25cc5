"""The whole job, small: from a recipe file to the report and the SavedModel, by the command line."""

import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import LEAN, TINY, figures_of, kood, work_alone

ROOT = Path(__file__).parents[1]


def report_of(folder, name="tiny"):
    return json.loads((folder / "saved" / name / "report.json").read_bytes())


@pytest.mark.keras
def test_the_run_leaves_everything_it_promises(finished):
    folder, result = finished
    saved = folder / "saved" / "tiny"
    assert sorted(p.name for p in saved.iterdir() if not p.name.startswith(".")) == [
        "1", "belongs_to.json", "figures", "logs", "recipe.toml", "report.html", "report.json", "stages",
    ]  # fmt: skip
    report = report_of(folder)
    assert set(report) >= {
        "recipe", "backend", "kood", "seeds", "id", "scores", "headline_score", "threshold", "stages", "datasets",
    }  # fmt: skip
    assert report["seeds"] == [3] and not report["quick"]
    assert set(report["stages"]) == {
        "data", "diffusion", "label_mixup", "noise", "pure_audit", "classifier", "evaluate", "export",
        "baseline_classifier", "validation", "baseline", "judge", "audit", "shortcut",
    }  # fmt: skip
    baseline = report["baseline"]
    assert baseline["worse"] == ("outliers.use=[]" in " ".join(report["warnings"][:1]))
    assert baseline["sets"] == ["patch_shuffle", "pictures"] and baseline["exposed_score"] == report["headline_score"]
    assert 0 <= baseline["validation_auroc"] <= 1 and 0 <= baseline["exposed_validation_accuracy"] <= 1
    assert report["validation_sets"] == ["pixel_mixup", "patch_shuffle", "pictures"]
    assert "baseline: on validation images AUROC" in result.stdout
    headline = report["scores"][report["headline_score"]]
    assert set(headline) == {"other_digits", "uniform", "near", "far"}
    assert headline["near"] == headline["other_digits"]
    assert set(headline["near"]) >= {"auroc", "aupr_in", "aupr_out", "fpr_at_ood_tpr", "fpr_at_id_tpr"}
    assert "SavedModel: saved/tiny/1" in result.stdout and "AUROC" in result.stdout
    assert result.stderr == ""
    paced = {name for name, stage in report["stages"].items() if stage.get("images_per_second", 0) > 0}
    assert paced == {"diffusion", "judge", "classifier", "baseline_classifier", "label_mixup", "pure_audit"}
    sampled = {name: stage for name, stage in report["stages"].items() if "drawn" in stage}
    assert set(sampled) == {"label_mixup", "pure_audit"} and sampled["label_mixup"]["drawn"] == 40
    mixtures = np.load(next(saved.glob("stages/label_mixup-*")) / "mixtures.npy")
    np.testing.assert_allclose(np.sort(mixtures, 1)[:, -2:], 0.5)
    html = (saved / "report.html").read_text()
    assert "dpm_solver, 4 steps, guidance 1, conditions mixed; 40 images at" in html
    assert "data:image/" in html and not re.search(r"(src|href)\s*=\s*.http|url\(.?http|<script", html)


@pytest.mark.keras
def test_the_contact_sheet_shows_the_way_between_classes(finished):
    from PIL import Image

    folder, _ = finished
    with Image.open(next((folder / "saved" / "tiny" / "stages").glob("label_mixup-*")) / "sheet.png") as sheet:
        assert sheet.width > 600 and sheet.height > 400
        assert len(np.unique(np.asarray(sheet))) > 50


@pytest.mark.keras
def test_a_second_run_does_no_training_and_says_so(invoke, finished):
    folder, _ = finished
    before = figures_of(report_of(folder))
    result = invoke("run", "tiny.toml", cwd=folder)
    assert result.returncode == 0
    assert "Nothing was trained" in result.stdout and "epoch" not in result.stdout
    assert "later version" not in result.stdout
    report = report_of(folder)
    assert figures_of(report) == before and all(stage["cached"] for stage in report["stages"].values())
    assert not (folder / "saved" / "tiny" / "2").exists()


@pytest.mark.keras
def test_a_run_that_went_back_names_the_version_that_is_served(invoke, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    shutil.copytree(tmp_path / "saved" / "tiny" / "1", tmp_path / "saved" / "tiny" / "2")
    said = invoke("run", "tiny.toml", cwd=tmp_path).stdout
    assert "SavedModel: saved/tiny/1\nsaved/tiny/2 is a later version, and the one that is served" in said


@pytest.mark.keras
@pytest.mark.parametrize(
    ("settings", "quick"), [(["data.id.per_class=5"], False), (["data.id.count=60"], False), ([], True)]
)
def test_known_images_that_are_not_learned_from_are_no_unknown_ones(tmp_path, settings, quick):
    from kood.errors import UserError
    from kood.pipeline.prepare import PARTS, Data
    from kood.recipe import load

    pixels = np.random.default_rng(0).integers(0, 256, (1200, 4, 4, 1), np.uint8)
    np.savez(tmp_path / "known.npz", images=pixels, labels=np.arange(1200) % 3)
    known = "name = 'some'\ndata.image_shape = [4, 4, 1]\ndata.id.source = 'npz'\n"

    def made(text, *more):
        (tmp_path / "some.toml").write_text(text)
        recipe = load(tmp_path / "some.toml", [*more, *settings], quick=quick)
        data = Data(recipe)
        data.ensure(work_alone(recipe, tmp_path / "saved"))
        return data

    data = made(known, f"data.id.path={tmp_path / 'known.npz'}", "data.id.classes=[0, 1]")
    used = {image.tobytes() for part in PARTS for image in data.images(part).images}
    of_class = {label: [one for one in pixels[label::3] if one.tobytes() not in used] for label in range(3)}
    assert of_class[0] and len(of_class[2]) == 400
    for label, is_known in ((0, True), (2, False)):
        np.savez(tmp_path / f"{label}.npz", images=np.stack(of_class[label][:7]))
        places = [f"data.id.path={tmp_path / 'known.npz'}", f"data.near.some.path={tmp_path / f'{label}.npz'}"]
        arguments = (known + "data.near.some.source = 'npz'\n", *places, "data.id.classes=[0, 1]")
        if is_known:
            with pytest.raises(UserError, match="data.near.some: 7 of its 7 different images are in data.id as well"):
                made(*arguments)
        else:
            assert len(made(*arguments).images("data.near.some")) == 7


@pytest.mark.keras
@pytest.mark.parametrize("trained", ["", "diffusion", "judge", "classifier", "baseline_classifier", "folds"])
def test_nothing_is_said_to_be_trained_only_where_nothing_was(tmp_path, trained):
    import io

    from rich.console import Console

    from kood.pipeline import _say_where

    def told(attached=None, **stages):
        said = Console(file=io.StringIO())
        ran = {name: {"cached": cached} for name, cached in stages.items()}
        _say_where(said, tmp_path, {"stages": ran, "attached": attached})
        return said.file.getvalue()

    text = told(evaluate=False, **{trained or "data": bool(not trained)})
    assert ("Nothing was trained: what an earlier run trained fits" in text) == (not trained)
    assert "the results of an earlier run fit" not in text
    assert "Nothing was trained: the results of an earlier run fit" in told(evaluate=True, classifier=True)
    # Of a classifier that exists nothing is trained; what was measured or written anew was made again.
    assert "Nothing was made again" in told({"model": "m"}, classifier=True, evaluate=True, export=True)
    assert "Nothing was" not in told({"model": "m"}, classifier=True, evaluate=False, export=False)


@pytest.mark.keras
def test_warnings_of_folds_are_in_the_report(tiny, tmp_path, monkeypatch):
    from kood import pipeline

    monkeypatch.setattr("kood.pipeline.classify.training.fit", lambda model, *_, **__: (model, {}))
    tiny.write_text(TINY + '[data.hold_out]\nfolds = [["0"]]\n')
    settings = ["evaluate.scores=['msp']", "evaluate.headline=msp", "evaluate.baseline=false", "serve.export=false"]
    told = pipeline.run(tiny, [*settings, "outliers.use=['virtual']", "pure_samples.use=[]"], saved=str(tmp_path))
    kept = json.loads((tmp_path / "tiny" / "report.json").read_bytes())["warnings"]
    never = [text.partition("was never exposed")[0] for text in kept if "was never exposed" in text]
    assert never == ["classifier: ", "data.hold_out: without '0': classifier: "] and told["warnings"] == kept
    page = html.unescape((tmp_path / "tiny" / "report.html").read_text())
    assert "data.hold_out: without '0': classifier: was never exposed" in page


@pytest.mark.keras
def test_what_other_versions_made_is_said_in_the_report(tiny, tmp_path, monkeypatch):
    from kood import pipeline

    monkeypatch.setattr("kood.pipeline.classify.training.fit", lambda model, *_, **__: (model, {}))
    tiny.write_text(TINY + '[data.hold_out]\nfolds = [["0"]]\n')
    settings = [
        "pure_samples.use=[]",
        "outliers.use=[]",
        "serve.export=false",
        'evaluate.scores=["msp"]',
        "evaluate.headline=msp",
    ]

    def notes(*more, **versions):
        monkeypatch.setattr(pipeline, "versions", lambda: versions)
        told = pipeline.run(tiny, [*settings, *more], saved=str(tmp_path))
        assert report_of_folder(tmp_path) == told["notes"]
        return [note for note in told["notes"] if "made by" in note]

    def report_of_folder(folder):
        return json.loads((folder / "tiny" / "report.json").read_bytes())["notes"]

    assert notes(kood="1", keras="3.1", jax="0.5") == []
    assert notes(kood="1", keras="3.1", jax="0.5") == []
    told = "made by kood 1, Keras 3.1, jax 0.5"
    assert notes(kood="2", keras="3.1", torch="2.9") == [f"data, classifier, evaluate: {told}", f"folds: {told}"]
    assert told in (tmp_path / "tiny" / "report.html").read_text()
    assert notes("serve.accept=0.9", kood="2", keras="3.1", torch="2.9") == [
        f"data, classifier: {told}",
        f"folds: {told}",
    ]
    for file in tmp_path.glob("tiny/stages/*/stage.json"):
        record = json.loads(file.read_bytes())
        del record["made_by"]  # As an older kood left it.
        file.write_text(json.dumps(record))
    assert notes("serve.accept=0.9", kood="3", keras="3.1", torch="2.9") == []


@pytest.mark.keras
@pytest.mark.slow
def test_the_same_recipe_elsewhere_gives_the_same_figures_and_a_changed_setting_runs_what_depends_on_it(
    invoke, finished, tmp_path
):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "tiny.toml").write_text(TINY)
    # Nor does what a user has set Keras to change them.
    strange = {"floatx": "float16", "epsilon": 0.01, "image_data_format": "channels_first", "backend": "torch"}
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "keras.json").write_text(json.dumps(strange))
    home = {"KERAS_HOME": str(tmp_path / "home"), "KERAS_MAX_EPOCHS": "1"}
    few = ("--set", 'evaluate.scores=["msp","energy","knn"]')
    unserved = ("run", "tiny.toml", *LEAN, *few, "--set", "serve.accept=0.9", "--set", "serve.export=false")
    assert kood(*unserved, cwd=tmp_path / "elsewhere", **home).returncode == 0
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    served = [part for part in unserved if part != "serve.export=false"][:-1]
    for command, stages in (
        (served, {"evaluate", "export"}),
        (unserved, set()),
        ((*unserved, "--set", "train.precision=mixed_bfloat16"), {"classifier", "evaluate"}),
    ):
        assert invoke(*command, cwd=tmp_path).returncode == 0
        report = report_of(tmp_path)
        assert {name for name, stage in report["stages"].items() if not stage["cached"]} == stages
        if not stages:
            assert figures_of(report) == figures_of(report_of(tmp_path / "elsewhere"))
    assert (tmp_path / "saved" / "tiny" / "2" / "saved_model.pb").exists()


@pytest.mark.keras
@pytest.mark.usefixtures("loaded_once")
def test_predict(invoke, finished):
    from PIL import Image

    folder, _ = finished
    Image.fromarray(np.full((20, 20), 128, "uint8")).save(folder / "grey.png")
    result = invoke("predict", "saved/tiny", "grey.png", cwd=folder)
    assert result.returncode == 0 and "grey.png" in result.stdout
    result = invoke("predict", "saved/tiny", "grey.png", "none.png", cwd=folder)
    assert result.returncode == 1 and "none.png" in result.stdout and "grey.png" in result.stdout
    assert invoke("predict", "saved/none", "grey.png", cwd=folder).returncode == 2
    assert invoke("predict", "saved/tiny", "grey.png", "--json", "--csv", cwd=folder).returncode == 2


@pytest.mark.keras
@pytest.mark.usefixtures("loaded_once")
def test_what_is_served_can_be_asked_calibrated_and_watched(invoke, finished, tmp_path):
    from PIL import Image

    folder, _ = finished
    shutil.copytree(folder / "saved" / "tiny" / "1", tmp_path / "tiny" / "1")
    (tmp_path / "own").mkdir()
    for place in range(60):
        pixels = np.random.default_rng(place).integers(0, 256, (9, 7), "uint8")
        Image.fromarray(pixels).save(tmp_path / "own" / f"{place:02}.png")
    result = invoke("predict", "tiny", "own", "--json", cwd=tmp_path)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.returncode == 0 and [row["image"] for row in rows] == [f"own/{place:02}.png" for place in range(60)]
    (tmp_path / "log.jsonl").write_text(result.stdout)
    assert invoke("predict", "tiny", "own", "--csv", cwd=tmp_path).stdout.count("\n") == 61
    result = invoke("calibrate", "tiny", "--data", "own", "--accept", "0.8", cwd=tmp_path)
    assert result.returncode == 0 and "Written: tiny/2 (tiny/1 stays)" in result.stdout
    assert "set on 48 images" in result.stdout and "Of 12 others it accepts" in result.stdout
    result = invoke("calibrate", "tiny", "--data", "own", "--accept", "0.99", cwd=tmp_path)
    assert (
        result.returncode == 2
        and "needs at least 99 images" in result.stderr
        and not (tmp_path / "tiny" / "3").exists()
    )
    # Of the folder those that the new threshold was set on are left out; the log is of the version before.
    for data, images, known in (("own", 12, 48), ("log.jsonl", 60, 0)):
        result = invoke("monitor", "tiny", "--data", data, "--to", "out", cwd=tmp_path)
        assert result.returncode == 0 and "p-value: change point" in result.stdout, result.stderr
        told = json.loads((tmp_path / "out" / "monitor.json").read_text())
        assert (told["images"], told["known"]) == (images, known)
    result = invoke("serving-config", "tiny", "--to", "serving", cwd=tmp_path)
    assert (
        result.returncode == 0 and "docker run" in result.stdout and (tmp_path / "serving" / "models.config").exists()
    )
    result = invoke("single-signature", "tiny", "one", cwd=tmp_path)
    assert result.returncode == 0 and (tmp_path / "one" / "saved_model.pb").exists()
    (tmp_path / "own" / "bad.png").write_bytes(b"nothing")
    for command in (
        ["predict", "tiny", "own"],
        ["monitor", "tiny", "--data", "own"],
        ["calibrate", "tiny", "--data", "own"],
    ):
        result = invoke(*command, cwd=tmp_path)
        assert result.returncode == 1 and "bad.png cannot be read" in result.stdout + result.stderr


@pytest.mark.keras
@pytest.mark.slow
@pytest.mark.usefixtures("loaded_once")
def test_what_calibrate_set_stays_as_long_as_the_same_is_served(invoke, finished, tmp_path):
    from PIL import Image

    saved = tmp_path / "saved" / "tiny"
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "own").mkdir()
    for place in range(30):
        pixels = np.random.default_rng(place).integers(0, 256, (8, 8), "uint8")
        Image.fromarray(pixels).save(tmp_path / "own" / f"{place:02}.png")
    msp = [*LEAN, "--set", 'evaluate.scores=["msp"]', "--set", "evaluate.headline=msp"]

    def run(*more):
        result = invoke("run", "tiny.toml", *msp, *more, cwd=tmp_path)
        assert result.returncode == 0 and "damaged" not in result.stdout, result.stderr
        return " ".join(result.stdout.split()), sorted(path.name for path in saved.glob("[0-9]*"))

    assert run()[1] == ["1", "2"]
    assert invoke("calibrate", "saved/tiny", "--data", "own", "--accept", "0.8", cwd=tmp_path).returncode == 0
    # More is measured.
    more = ("--set", "data.near.more.source=digits", "--set", "data.near.more.classes=[7]")
    assert run(*more)[1] == ["1", "2", "3"] and "more" in report_of(tmp_path)["scores"]["msp"]
    # The run was killed when its version was in its place and the stage was not.
    (stage,) = (
        folder for folder in saved.glob("stages/export-*") if '"version": 2' in (folder / "stage.json").read_text()
    )
    (stage / "stage.json").unlink()
    stage.rename(f"{stage}.partial")
    assert run()[1] == ["1", "2", "3"] and stage.is_dir()
    # What was calibrated anew is all that is kept.
    shutil.rmtree(saved / "2")
    told, there = run()
    assert there == ["1", "3"] and report_of(tmp_path)["version"] == 3 and "SavedModel: saved/tiny/3" in told
    assert "export: version 2 was removed; version 3, calibrated from it, stays" in told
    # Something else is served.
    told, there = run("--set", "serve.accept=0.9")
    assert there == ["1", "3", "4"] and "no longer that which `kood calibrate` gave version 3" in told


@pytest.mark.keras
@pytest.mark.slow
def test_a_classifier_at_chance_is_told_first_but_of_a_smoke_run(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "known.npz", images=rng.integers(0, 256, (300, 8, 8, 1), np.uint8), labels=np.arange(300) % 3)
    (tmp_path / "mixed.toml").write_text(
        "[data]\nimage_shape = [8, 8, 1]\nid = {source = 'npz', path = 'known.npz'}\n"
        "far.uniform = {source = 'uniform', count = 50}\n"
        "[classifier]\nbackbone = 'small_cnn'\noptions.widths = [8, 8, 8]\n"
        "[train]\nepochs = 1\n[evaluate]\nscores = ['msp']\nheadline = 'msp'\n[serve]\nexport = false\n"
    )
    told = "the classifier is no better than chance: it labels "
    done = kood("run", "mixed.toml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, *_ = report_of(tmp_path, "mixed")["warnings"]
    assert first.startswith(told) and " of 60 test images rightly (" in first
    assert "no better than chance" in done.stdout and "no better than chance" in (
        tmp_path / "saved" / "mixed" / "report.html"
    ).read_text(encoding="utf-8")
    quick = kood("run", "mixed.toml", "--quick", cwd=tmp_path)
    assert quick.returncode == 0 and "its figures mean nothing" in quick.stdout
    assert "no better than chance" not in quick.stdout


@pytest.mark.slow
def test_a_full_disk_is_one_message_and_the_run_goes_on(invoke, tmp_path):
    """A limit on the size of files stands in for a full disk: it too fails in the middle of a write.

    That the run then ends as one of which nothing failed is looked at in test_faults.py.
    """
    (tmp_path / "tiny.toml").write_text(TINY)
    settings = (*LEAN, "--set", 'outliers.use=["noise"]', "--set", 'evaluate.scores=["msp"]')
    command = f'ulimit -f 60; exec "{sys.executable}" -m kood run tiny.toml "$@"'
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    result = subprocess.run(
        ["bash", "-c", command, "bash", *settings], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert result.stderr.startswith("kood: ") and len(result.stderr.strip().splitlines()) <= 6
    assert not list((tmp_path / "saved" / "tiny").glob("[0-9]*"))
    assert invoke("run", "tiny.toml", *settings, cwd=tmp_path).returncode == 0
    assert (tmp_path / "saved" / "tiny" / "1" / "saved_model.pb").is_file()
    assert not (tmp_path / "saved" / "tiny" / "error.log").exists()


@pytest.mark.keras
@pytest.mark.parametrize("words", ["No space left on device", "Disk quota exceeded", "Read-only file system"])
def test_a_full_disk_is_told_whoever_meets_it(tmp_path, monkeypatch, words):
    """TensorFlow has errors of its own, with the system's words in them."""
    import tensorflow as tf

    from kood.errors import UserError
    from kood.pipeline import prepare, run

    def full(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, f"saved/x.tmp; {words}")

    monkeypatch.setattr(prepare, "load_id", full)
    (tmp_path / "tiny.toml").write_text(TINY)
    with pytest.raises(UserError, match=rf"tiny: cannot write there \({words}\); make room, and the same") as told:
        run(tmp_path / "tiny.toml", saved=tmp_path / "saved")
    assert told.value.exit_code == 1 and not list(tmp_path.rglob("error.log"))


@pytest.mark.keras
def test_a_folder_that_another_process_holds_is_told_with_the_way_round_it(tmp_path):
    from kood.errors import UserError
    from kood.pipeline import run
    from kood.runs import Run

    (tmp_path / "tiny.toml").write_text(TINY)
    held = r"tiny: process \d+ holds this folder; wait for it, or give this run another name \(--set name=\.\.\.\)$"
    with Run(tmp_path / "saved" / "tiny").held(), pytest.raises(UserError, match=held):
        run(tmp_path / "tiny.toml", saved=tmp_path / "saved")


@pytest.mark.keras
def test_what_a_recipe_in_memory_cannot_be_given_is_refused(tmp_path):
    import kood

    (tmp_path / "tiny.toml").write_text(TINY)
    file, saved = tmp_path / "tiny.toml", tmp_path / "saved"
    recipe = kood.recipe.load(file)
    for given, options, message in (
        (recipe, {"overrides": ["train.epochs=1"]}, "overrides and quick change a recipe's file"),
        (recipe, {"quick": True}, "overrides and quick change a recipe's file"),
        (kood.recipe.Recipe(**{**tomllib.loads(TINY), "name": ""}), {}, "^name: this Recipe has none; give one"),
        (tomllib.loads(TINY), {}, "a recipe is a TOML file or the name of one that comes with kood; found a dict"),
        (file, {"overrides": "name=x"}, r"overrides: found the text 'name=x'; give a list"),
    ):
        with pytest.raises(kood.errors.UserError, match=message):
            kood.run(given, saved=saved, **options)
    assert not saved.exists()


@pytest.mark.keras
@pytest.mark.slow
def test_a_matrix_shares_a_diffusion_model_and_survives_failing_cells(invoke, tmp_path, monkeypatch):
    from kood.pipeline import matrix

    made = matrix.make_cell

    def failing(work):
        if work.recipe.train.learning_rate == 0.003:
            raise RuntimeError("out of luck")
        return made(work)

    monkeypatch.setattr(matrix, "make_cell", failing)
    (tmp_path / "table.toml").write_text(
        TINY.replace("[diffusion]", "[diffusion]\nseed = 3").replace("seed = 3\n", "", 1)
        + """
[serve]
export = false
[evaluate]
scores = ["msp", "energy"]
[matrix]
head = ["softmax"]
seed = [3, 4]
"train.learning_rate" = [0.003, 0.002]
"""
    )
    result = invoke("run", "table.toml", *LEAN, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report = report_of(tmp_path, "table")
    assert [cell["cell"]["seed"] for cell in report["cells"]] == ["3", "4"]
    assert [cell["cell"]["seed"] for cell in report["failed"]] == ["3", "4"]
    assert all("out of luck" in cell["error"] for cell in report["failed"])
    assert len(report["table"]) == 1 and "softmax" in result.stdout and "out of luck" in result.stdout
    saved = tmp_path / "saved" / "table"
    assert len(list(saved.glob("stages/diffusion-*"))) == 1 == len(list(saved.glob("stages/noise-*"))) - 1
    assert len(list(saved.glob("stages/label_mixup-*"))) == 2 == len(list(saved.glob("stages/classifier-*")))
    assert not list(saved.glob("[0-9]*"))
    alone = ("--set", 'matrix={head=["softmax"],seed=[3]}', "--set", "train.learning_rate=0.002")
    again = invoke("run", "table.toml", *LEAN, *alone, cwd=tmp_path)
    assert again.returncode == 0 and "started" not in again.stdout and len(report_of(tmp_path, "table")["cells"]) == 1


@pytest.mark.keras
@pytest.mark.slow
def test_a_table_of_controls_has_equal_numbers_and_one_baseline(invoke, tmp_path):
    recipe = TINY.replace("count = 40\n", "").replace("[outliers.noise]\ncount = 24\n", "")
    recipe = recipe.replace("per_batch = 16", "per_batch = 16\ncount = 33\nvirtual = { queue = 8, candidates = 20 }")
    (tmp_path / "controls.toml").write_text(
        recipe
        + """
[outliers.real]
source = "digits"
classes = [4, 5]
[data.validation_ood.sixes]
source = "digits"
classes = [6, 7]
[serve]
export = false
[evaluate]
scores = ["msp", "energy"]
[matrix]
outliers = ["none", "pixel_mixup", "noise", "virtual", "real", ["virtual", "noise"]]
"""
    )
    result = invoke("run", "controls.toml", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report = report_of(tmp_path, "controls")
    assert not report["failed"] and len(report["cells"]) == 6
    assert len({cell["id"]["accuracy"] for cell in report["cells"]} | {str(c["scores"]) for c in report["cells"]}) > 5
    stages = tmp_path / "saved" / "controls" / "stages"
    for name in ("pixel_mixup", "noise", "real"):
        (folder,) = stages.glob(f"{name}-*")
        assert np.load(folder / "outliers.images.npy").shape == (33, 8, 8, 1)
    # Six classifiers, the baseline of five among them: each is validated where it is measured, the baseline once.
    assert len(list(stages.glob("classifier-*"))) == len(list(stages.glob("evaluate-*"))) == 6
    assert len(list(stages.glob("validation-*"))) == 1
    none, *exposed = report["cells"]
    assert none["baseline"] is None and "baseline_classifier" not in none["stages"]
    for cell in exposed:
        assert cell["baseline"]["sets"] == cell["validation_sets"] == ["sixes"]
        assert cell["baseline"]["validation_accuracy"] == exposed[0]["baseline"]["validation_accuracy"]
        assert cell["stages"]["baseline_classifier"]["cached"]
        if none["headline_score"] == cell["baseline"]["score"]:
            np.testing.assert_allclose(
                cell["baseline"]["validation_auroc"], none["validation"][none["headline_score"]], atol=1e-9
            )


@pytest.mark.keras
@pytest.mark.slow
def test_a_run_that_exposure_made_worse_says_so_first(invoke, tmp_path):
    # Exposed, with all its might, to what are nearly its own training images.
    outliers = '["pixel_mixup"]\npixel_mixup = { weight = 0.999 }\nweight = 50.0\nexposure = "cosine_exposure"\n'
    recipe = TINY.replace('["label_mixup", "noise"]\n', outliers).replace("epochs = 2", "epochs = 6")
    (tmp_path / "worse.toml").write_text(recipe + "[serve]\nexport = false\n")
    unaudited = ("--set", "pure_samples.use=[]")
    result = invoke("run", "worse.toml", *unaudited, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report = report_of(tmp_path, "worse")
    assert report["baseline"]["worse"] and "--set outliers.use=[]" in report["warnings"][0]
    lines = [line for line in result.stdout.split("worse", 1)[1].splitlines() if "WARNING" in line]
    assert "made this classifier" in lines[0]
    html = (tmp_path / "saved" / "worse" / "report.html").read_text()
    assert html.index("outliers.use=[]") < html.index("Near-OOD AUROC")
    without = invoke("run", "worse.toml", "--set", "outliers.use=[]", *unaudited, cwd=tmp_path)
    assert without.returncode == 0 and report_of(tmp_path, "worse")["baseline"] is None
    assert report_of(tmp_path, "worse")["stages"]["classifier"]["cached"]


@pytest.mark.keras
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("epochs = 2", "epoch = 2"), ["tiny.toml", "train.epoch", "did you mean 'epochs'"]),
        (('source = "uniform"\ncount = 60', 'source = "folder"\npath = "nowhere"'), ["data.far.uniform", "nowhere"]),
        (
            ('source = "uniform"\ncount = 60', 'source = "folder"\npath = "$KOOD_NOT_SET/x"'),
            ["data.far.uniform.path", "KOOD_NOT_SET"],
        ),
        (('source = "uniform"\ncount = 60', 'source = "folder"'), ["data.far.uniform.path"]),
        (("classes = [8, 9]", "classes = [3, 9]"), ["data.near.other_digits", "60 different images are in data.id"]),
        (
            ('["label_mixup", "noise"]\n', '["real"]\nreal = { source = "digits", classes = [9] }\n'),
            ["outliers.real", "are in data.near.other_digits", "tested on images that it was trained on"],
        ),
        (
            ("[data.far.uniform]", '[data.validation_ood.few]\nsource = "digits"\nclasses = [8]\n[data.far.uniform]'),
            ["data.validation_ood.few", "are in data.near.other_digits", "choices would be made on test images"],
        ),
        (
            ('[outliers]\nuse = ["label_mixup", "noise"]\n',
             '[data.validation_ood.sixes]\nsource = "digits"\nclasses = [6]\n'
             '[outliers]\nuse = ["real"]\nreal = { source = "digits", classes = [6] }\n'),
            ["outliers.real", "are in data.validation_ood.sixes", "choices would be made on images that"],
        ),
        (("classes = [8, 9]", "classes = [8, 12]"), ["data.near.other_digits", "12"]),
        (("classes = [0, 1, 2, 3]", "classes = [0]"), ["label_mixup.classes"]),
        (("width = 32", "width = -1"), ["diffusion.options", "width"]),
        (("seed = 3", "seed = 3\n[serve]\naccept = 0.999"), ["serve.accept", "calibration"]),
    ],
)  # fmt: skip
def test_wrong_input_is_one_message_and_exit_code_2(invoke, tmp_path, change, expected):
    assert change[0] in TINY
    text = TINY.replace(*change, 1)
    (tmp_path / "tiny.toml").write_text(text)
    result = invoke("run", "tiny.toml", cwd=tmp_path)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    for part in expected:
        assert part in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]


@pytest.mark.keras
def test_a_refused_recipe_leaves_an_earlier_run_as_it_was(invoke, finished):
    folder, _ = finished

    def state():
        files = [p for p in (folder / "saved").glob("**/*") if p.is_file() and p.name != ".lock"]
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in files}

    before = state()
    for setting in ("serve.accept=0.9999", "data.near.other_digits.classes=[3,9]", "data.split_seed=5",
                    "data.id.classes=[0,1,2,4]"):  # fmt: skip
        more = ("--set", "serve.accept=0.9999") if "split" in setting else ()
        result = invoke("run", "tiny.toml", "--set", setting, *more, cwd=folder)
        assert result.returncode == 2 and "Traceback" not in result.stderr
        assert state() == before


@pytest.mark.keras
@pytest.mark.parametrize("steps", [1, 7, 20, 250, 333, 2000, 2003, 100_000])
def test_training_steps_make_whole_epochs(steps):
    from kood.pipeline.diffusion import epochs_of

    epochs, length = epochs_of(steps)
    assert steps <= epochs * length < steps + epochs and length <= 250
    assert epochs_of(2000) == (20, 100)


@pytest.mark.keras
def test_a_stopped_run_says_so_and_goes_on(invoke, tmp_path, monkeypatch):
    (tmp_path / "tiny.toml").write_text(TINY.replace("epochs = 2", "epochs = 2000"))
    lean = (*LEAN, "--set", 'outliers.use=["noise"]', "--set", "serve.export=false", "--set", 'evaluate.scores=["msp"]')
    command = [sys.executable, "-m", "kood", "run", "tiny.toml", *lean]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        deadline = time.monotonic() + 120
        for line in run.stdout:
            if line.startswith("classifier: epoch") or time.monotonic() > deadline:
                break
        run.send_signal(signal.SIGTERM)
        _, errors = run.communicate(timeout=60)
    assert run.returncode == 143
    assert "stopped" in errors and "Traceback" not in errors
    # Another takes up what it has left, and is stopped too.
    with monkeypatch.context() as patch:
        patch.setattr("kood.training.fit", lambda *_, **__: signal.raise_signal(signal.SIGINT))
        result = invoke("run", "tiny.toml", *lean, cwd=tmp_path)
    assert result.returncode == 130 and "stopped" in result.stderr and "Traceback" not in result.stderr
    assert "noise: already there" in result.stdout and not list(tmp_path.glob("saved/tiny/report.json"))
    result = invoke("run", "tiny.toml", "--set", "train.epochs=2", *lean, cwd=tmp_path)
    assert result.returncode == 0 and "noise: already there" in result.stdout


@pytest.mark.keras
def test_a_missing_backend_is_one_message(tmp_path, tiny):
    for backend, expected in (("mxnet", "did you mean|Allowed: jax"), ("jax", r"pip install 'kood\[jax\]'")):
        if backend == "jax" and __import__("importlib.util").util.find_spec("jax"):
            continue
        result = kood("run", tiny, cwd=tmp_path, KERAS_BACKEND=backend)
        assert result.returncode == 2 and re.search(expected, result.stderr)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--help"], "predict"),
        (["list", "heads"], "arcface"),
        (["list", "scores"], "mahalanobis"),
        (["list", "datasets"], "photo_patches"),
        (["list", "backbones"], "resnet18"),
        (["schema"], '"properties"'),
        (["show", ROOT / "recipes" / "digits_arcface_oe.toml"], "label_dropout"),
    ],
)
def test_questions_are_answered_at_once(invoke, tmp_path, arguments, expected):
    result = invoke(*arguments, cwd=tmp_path)
    assert result.returncode == 0 and expected in result.stdout


def test_list_recipes_and_wrong_words(invoke, tmp_path):
    for folder, name in ((ROOT, "digits_arcface_oe.toml"), (tmp_path, "digits_arcface_oe ")):
        assert name in invoke("list", "recipes", cwd=folder).stdout
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.toml").write_text("# Version 1.5 of it,\n# in a.toml's words. More\n")
    (tmp_path / "recipes" / "note.toml").write_text("# A note\n# kood run note.toml\n# Time: a minute.\n")
    listed = invoke("list", "recipes", cwd=tmp_path).stdout
    assert re.search(r"mine\.toml +Version 1\.5 of it, in a\.toml's words\. *\n", listed)
    assert re.search(r"note\.toml +A note *\n", listed)
    wrong = invoke("list", "head", cwd=tmp_path)
    assert wrong.returncode == 2 and "did you mean 'heads'" in wrong.stderr


@pytest.mark.keras
@pytest.mark.slow
def test_doctor(invoke, tmp_path):
    result = invoke("doctor", cwd=tmp_path)
    assert result.returncode == 0 and "backend tensorflow" in result.stdout and "keras-cv" in result.stdout
