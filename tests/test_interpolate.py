"""`kood interpolate`: the way between two classes, from a run's diffusion model."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from kood import cli
from kood.errors import UserError
from kood.files import digest_file
from kood.pipeline import interpolate
from kood.recipe import load
from kood.report.sheet import GAP, TILE, write_sheet
from kood.runs import Run
from tests.conftest import TINY, Cell

pytestmark = pytest.mark.usefixtures("as_written")

#: Enough steps that images are more than black and white.
LEARNED = TINY.replace("steps = 20\n", "steps = 300\n", 1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run's folder with a finished diffusion model."""
    folder = tmp_path_factory.mktemp("interpolate") / "saved" / "tiny"
    folder.mkdir(parents=True)
    train(folder)
    return folder


def train(folder, *settings):
    (folder.parent / "tiny.toml").write_text(LEARNED)
    recipe = load(folder.parent / "tiny.toml", settings)
    (folder / "recipe.toml").write_text(recipe.to_toml())
    return Cell(recipe, folder).make("diffusion")


@pytest.fixture
def sampled(monkeypatch):
    """What was sampled, and how, beside what was drawn."""
    seen = []

    def images(self, condition, *, noise=None, start=None, progress=None):
        result = original(self, condition, noise=noise, start=start, progress=progress)
        seen.append({"sampler": self, "condition": condition, "noise": noise, "start": start, "images": result})
        return result

    original = interpolate.ImageSampler.images
    monkeypatch.setattr(interpolate.ImageSampler, "images", images)
    return seen


def kood(*arguments):
    return CliRunner().invoke(cli.app, ["interpolate", *map(str, arguments)])


def test_the_picture_has_one_start_along_a_row(finished, sampled, tmp_path):
    out = tmp_path / "figure.png"
    result = kood(finished, "--from", "1", "--to", "3", "--rows", 3, "--columns", 5, "--out", out, "--seed", 7)
    assert result.exit_code == 0, result.output
    assert f"Written: {out}" in result.output.replace("\n", "")
    (job,) = sampled
    noise = job["noise"].reshape(3, 5, 8, 8, 1)
    assert (noise == noise[:, :1]).all() and len(np.unique(noise[:, 0, 0, 0, 0])) == 3
    share = job["condition"].reshape(3, 5, 4)
    np.testing.assert_allclose(share[:, :, 3], [[0, 0.25, 0.5, 0.75, 1.0]] * 3)
    np.testing.assert_allclose(share[:, :, 1], 1 - share[:, :, 3])
    assert job["sampler"].num_steps == 4 and job["sampler"].mix == "condition"  # As the recipe has it.
    with Image.open(out) as sheet:
        assert sheet.format == "PNG" and sheet.height == 28 + 3 * (TILE + GAP)
    before = out.read_bytes()
    assert kood(finished, "--from", "1", "--to", "3", "--rows", 3, "--columns", 5, "--out", out, "--seed", 7)
    assert out.read_bytes() == before
    kood(finished, "--from", "1", "--to", "3", "--rows", 3, "--columns", 5, "--out", out, "--seed", 8)
    assert out.read_bytes() != before


@pytest.mark.slow
def test_a_process_that_trained_nothing_can_draw(finished, tmp_path):
    out = tmp_path / "figure.png"
    command = [sys.executable, "-m", "kood", "interpolate", finished, "--from", "0", "--to", "2", "--out", out]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert out.stat().st_size > 0


def test_options_take_the_place_of_the_recipe(finished, sampled, tmp_path):
    result = kood(finished, "--from", "0", "--to", "2", "--rows", 1, "--guidance", 2.5, "--mix", "prediction",
                  "--sampler", "ddim", "--steps", 2, "--out", tmp_path / "a.png")  # fmt: skip
    assert result.exit_code == 0, result.output
    used = sampled[0]["sampler"]
    assert (used.guidance, used.mix, used.num_steps, used.sampler.__name__) == (2.5, "prediction", 2, "ddim")


def test_several_numbers_of_steps_are_compared_from_the_same_starts(finished, sampled, tmp_path):
    out = tmp_path / "steps.png"
    result = kood(finished, "--from", "0", "--to", "2", "--rows", 2, "--columns", 3, "--steps", "2,10, 5", "--out", out)
    assert result.exit_code == 0, result.output
    counts = [job["sampler"].num_steps for job in sampled]
    assert counts == [1, 2, 10, 5]  # The first is there to compile.
    assert all((job["noise"] == sampled[0]["noise"]).all() for job in sampled)
    with Image.open(out) as sheet:
        assert sheet.height == 28 + 6 * (TILE + GAP)
    rows = [line.split("│") for line in result.output.splitlines() if line.count("│") == 4]
    distances = {int(row[1]): float(row[3]) for row in rows}
    assert set(distances) == {2, 10, 5} and distances[10] == 0.0 and distances[2] > 0.0
    images = {job["sampler"].num_steps: np.rint((job["images"].clip(-1, 1) + 1) * 127.5) for job in sampled[1:]}
    assert distances[2] == pytest.approx(np.abs(images[2] - images[10]).mean(), abs=0.06)


def test_a_file_in_the_run_is_the_default_and_the_recipe_may_start_from_images(finished, sampled):
    recipe = (finished / "recipe.toml").read_text()
    try:
        changed = load(finished / "recipe.toml", ["outliers.label_mixup.start=image"]).to_toml()
        (finished / "recipe.toml").write_text(changed)
        result = kood(finished, "--from", "2", "--to", "0", "--rows", 2, "--columns", 2)
        assert result.exit_code == 0 and (finished / "outliers_2_0.png").is_file(), result.output
    finally:
        (finished / "recipe.toml").write_text(recipe)
    start = sampled[0]["start"]
    assert start.rows[0] == start.rows[1] != start.rows[2] == start.rows[3]
    labels = np.load(next(finished.glob("stages/data-*/train.labels.npy")))
    assert (labels[start.rows] == 2).all()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--from", "eight", "--to", "2"], "--from: there is no class 'eight'; Allowed: 0, 1, 2, 3."),
        (["--from", "1", "--to", "22"], "--to: there is no class '22'; did you mean '2'?"),
        (["--from", "1", "--to", "1"], "both '1'"),
        (["--from", "1", "--to", "2", "--steps", "5,x"], "--steps 5,x"),
        (["--from", "1", "--to", "2", "--steps", "0"], "--steps 0"),
        (["--from", "1", "--to", "2", "--steps", ""], "--steps "),
        (["--from", "1", "--to", "2", "--steps", "51"], "--steps: 51 sampling steps are more than the 50"),
        (["--from", "1", "--to", "2", "--mix", "predictions"], "--mix: found 'predictions'; did you mean 'prediction'"),
        (["--from", "1", "--to", "2", "--guidance", "0"], "--guidance = 0 draws every image without its classes; no"),
        (["--from", "1", "--to", "2", "--sampler", "ddin"], "--sampler: there is no 'ddin'"),
        (["--from", "1", "--to", "2", "--out", "figure.jpg"], "ending .png"),
    ],
)
def test_wrong_input_is_one_message(finished, sampled, arguments, expected):
    result = kood(finished, *arguments)
    assert isinstance(result.exception, UserError) and result.exception.exit_code == 2
    assert expected in str(result.exception) and "\n" not in str(result.exception)
    assert not sampled


def test_guidance_needs_images_that_were_learnt_without_a_label(finished, sampled, monkeypatch):
    def opened(*arguments, **options):
        model = original(*arguments, **options)
        model.label_dropout = 0.0
        return model

    original = interpolate.opened
    monkeypatch.setattr(interpolate, "opened", opened)
    result = kood(finished, "--from", "1", "--to", "2", "--guidance", 3)
    assert "--guidance 3: this diffusion model learnt no image without a label" in str(result.exception)
    assert not sampled


@pytest.mark.parametrize("arguments", [["--from", "1"], ["--from", "1", "--to", "2", "--rows", "0"],
                                       ["--from", "1", "--to", "2", "--guidance", "-1"]])  # fmt: skip
def test_what_typer_refuses(finished, arguments):
    assert kood(finished, *arguments).exit_code == 2


def test_where_there_is_no_model_the_message_says_so(finished, tmp_path):
    ends = ("--from", "1", "--to", "2")
    for folder in (tmp_path / "none", tmp_path):
        result = kood(folder, *ends)
        assert isinstance(result.exception, UserError) and "there is no run here" in str(result.exception)
    (tmp_path / "recipe.toml").write_text((finished / "recipe.toml").read_text())
    result = kood(tmp_path, *ends)
    assert "no finished diffusion model" in str(result.exception) and result.exception.exit_code == 2


def test_a_file_that_cannot_be_written(finished, tmp_path):
    (tmp_path / "file").write_text("")
    result = kood(finished, "--from", "1", "--to", "2", "--rows", 1, "--out", tmp_path / "file" / "a.png")
    assert isinstance(result.exception, UserError) and result.exception.exit_code == 1
    assert "cannot write there" in str(result.exception)


def test_the_newest_finished_model_is_taken(finished):
    before = Run(finished).finished("diffusion")
    assert len(before) == 1 and before[0].cached
    newer = train(finished, "diffusion.steps=5")
    train(finished)
    found = Run(finished).finished("diffusion")
    assert [stage.key for stage in found] == [newer.key, before[0].key]
    (newer.folder / "denoiser.keras").write_bytes(b"damaged")
    half = finished / "stages" / "diffusion-0123456789abcdef.partial"
    half.mkdir()
    (half / "stage.json").write_text(json.dumps({"facts": {}, "seconds": 0, "files": {}}))
    assert [stage.key for stage in Run(finished).finished("diffusion")] == [before[0].key]
    assert Run(finished / "nowhere").finished("diffusion") == []


@pytest.mark.parametrize(("shape", "tile"), [((8, 8), (72, 72)), ((10, 40), (20, 80)), ((96, 80), (96, 80))])
def test_pixels_stay_square_on_the_sheet(tmp_path, shape, tile):
    images = np.zeros((1, 2, *shape, 3), np.uint8)
    write_sheet(tmp_path / "sheet.png", images, np.eye(2)[None], ["a", "b"])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert (np.asarray(sheet)[28:, 96:-96] == 0).all(axis=-1).sum() == 2 * tile[0] * tile[1]


def test_captions_stand_on_the_sheet(tmp_path):
    images, conditions = np.zeros((2, 2, 8, 8, 1), np.uint8), np.tile(np.eye(2), (2, 1, 1))
    write_sheet(tmp_path / "plain.png", images, conditions, ["a", "b"])
    write_sheet(tmp_path / "captions.png", images, conditions, ["a", "b"], ["5 steps", "9 steps"])
    plain, captions = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("plain", "captions"))
    assert plain.shape == captions.shape
    changed = np.argwhere((plain != captions).any(axis=-1))
    assert len(changed) and changed[:, 1].max() < 96  # In the left margin alone.


def test_a_strangers_model_is_opened_without_running_anything_of_theirs(finished, tmp_path):
    """A Lambda layer in a `.keras` file is Python from whoever wrote it."""
    import keras

    folder = tmp_path / "stranger"
    shutil.copytree(finished, folder)
    marker, name = tmp_path / "ran", str(tmp_path / "ran")
    stage = next(folder.glob("stages/diffusion-*"))
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Lambda(lambda x: (Path(name).touch(), x)[1])])
    marker.unlink(missing_ok=True)
    model.save(stage / "denoiser.keras")
    record = json.loads((stage / "stage.json").read_text())
    record["files"]["denoiser.keras"] = digest_file(stage / "denoiser.keras")
    (stage / "stage.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"denoiser\.keras cannot be loaded: .*Lambda.*run; run .* --fresh$"):
        interpolate.draw(folder, "0", "1")
    assert not marker.exists()


def test_a_class_may_be_named_in_either_unicode_form():
    assert interpolate._class_of("cafe\u0301", ["tea", "caf\u00e9"], "--from") == 1
