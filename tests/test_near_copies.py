"""Near copies between the images of the known classes and other sets, where a recipe asks for near copies."""

import numpy as np
import pytest
from PIL import Image

from kood.data.copies import perceptual_hashes
from kood.pipeline import prepare
from kood.recipe import load
from tests.conftest import Cell

pytestmark = [pytest.mark.keras, pytest.mark.one_backend]

RECIPE = """
data.image_shape = [32, 32, 3]
data.id = { source = "folder", path = "known", test = 0.25, validation = 0.25, calibration = 0.25 }
data.near.others = { source = "folder", path = "others" }
data.far.drawn = { source = "uniform", count = 30 }
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Forty known images of two classes, and of six others two that are known ones saved again."""
    rng = np.random.default_rng(0)
    shown = [
        Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
        for _ in range(44)
    ]
    for name in ("known/a", "known/b", "others"):
        (tmp_path / name).mkdir(parents=True)
    for number, image in enumerate(shown[:40]):
        image.save(tmp_path / f"known/{'ab'[number % 2]}/{number:02}.png")
    for number, image in enumerate((*shown[:2], *shown[40:])):
        image.save(tmp_path / f"others/{number}.jpg", quality=80)
    (tmp_path / "it.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def warned(folder, *settings):
    made = Cell(load(folder / "it.toml", settings), folder / "run")
    return [text for text in made["data"].warnings if "near copies" in text], made["data"]


def test_near_copies_among_outliers_are_warned_of_with_their_files(folder, monkeypatch):
    (told,), data = warned(folder, "data.id.near_copies=4")
    assert told.startswith("data.near.others: 2 of its 6 images are near copies of some in data.id (perceptual hashes")
    assert "others/0.jpg like " in told and "known/a/00.png, " in told and "known/b/01.png)" in told
    assert "so the detector would be wrong to flag them, and wrong to accept them; look at them" in told
    used = np.concatenate([np.asarray(data.images(name).images) for name in ("train", "validation", "calibration")])
    assert set(data.hashes()) == set(perceptual_hashes(used))
    monkeypatch.setattr("kood.data.image_set.perceptual_hashes", lambda *_: pytest.fail("an image is hashed"))
    monkeypatch.setattr("kood.data.decode.perceptual_hashes", lambda *_: pytest.fail("an image is hashed"))
    told, data = warned(folder)
    assert told == [] and data.hashes() is None


def test_sets_that_may_share_images_may_share_near_copies(folder):
    again = "{ source = 'folder', path = 'others' }"
    two, _ = warned(folder, "data.id.near_copies=4", f"data.far.again={again}")
    assert [text.partition(":")[0] for text in two] == ["data.near.others", "data.far.again"]
    looks = prepare.Looks(np.arange(1, 9, dtype=np.uint64) << np.uint64(20), np.full(8, "", object))
    met = {"data.id": looks, "data.near.x": looks}
    (told,) = prepare.near_shared("data.validation_ood.y", looks._replace(hashes=looks.hashes + np.uint64(1)),
                                  {"data.near.x": looks}, 4)  # fmt: skip
    assert "8 of its 8 images are near copies of some in data.near.x" in told and "such as" not in told
    assert "choices would be made on test images" in told
    assert prepare.near_shared("data.pictures", looks, {"data.id": looks}, 4) == []
    assert len(prepare.near_shared("outliers.real", looks, met, 4)) == 2 and met["outliers.real"] is looks
