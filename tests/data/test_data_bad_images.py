"""Broken, strange and hostile image files: read, or left out with a reason up to a limit, never more than that."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kood.data import load_ood, load_source
from kood.data.decode import decode_readable
from kood.data.files import files_under
from kood.data.sources.folder import folder, listed_splits
from kood.errors import UserError


def write(path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path))).integers(0, 256, (20, 30, 3), "uint8")
    Image.fromarray(pixels).save(path, **options)
    return path


def header_of_a_bomb():
    """A small PNG whose header claims 30,000 x 30,000 pixels."""
    import io

    out = io.BytesIO()
    Image.new("L", (4, 4)).save(out, "PNG")
    data = bytearray(out.getvalue())
    data[16:24] = (30_000).to_bytes(4, "big") * 2
    return bytes(data)


@pytest.fixture
def messy(tmp_path):
    """Two classes, ten files that can be read and six that cannot."""
    root = tmp_path / "messy folder \N{PARTY POPPER}"
    good = [
        "a/plain.png", "a/-rf.png", "a/with space.jpg", "a/line\nbreak.png", "a/\N{PARTY POPPER}.png", "b/UPPER.JPEG",
        "b/deep/er/one.bmp", "b/moving.gif", "b/a png in truth.jpg", "b/one pixel.png",
    ]  # fmt: skip
    for name in good[:-3]:
        write(root / name)
    write(root / good[7], save_all=True, append_images=[Image.new("RGB", (30, 20))])
    write(root / good[8], format="PNG")
    Image.new("RGB", (1, 1), (9, 8, 7)).save(root / good[9])
    bad = {
        "a/empty.png": b"", "a/text.jpg": b"not an image", "a/cut.png": (root / good[0]).read_bytes()[:99],
        "b/bomb.png": header_of_a_bomb(), "b/html.gif": b"<script>alert(1)</script>",
    }  # fmt: skip
    for name, content in bad.items():
        (root / name).write_bytes(content)
    (root / "b" / "loop.png").symlink_to("loop.png")
    (root / "b" / "up").symlink_to("..")
    (root / "b" / "dangling.png").symlink_to("nothing.png")
    return root, good, [*bad, "b/dangling.png", "b/loop.png"]


@pytest.mark.keras
def test_what_cannot_be_read_is_left_out_with_its_reason(messy):
    root, good, bad = messy
    found = folder((8, 8, 3), seed=0, path=str(root), max_bad_images=len(bad))["all"]
    assert len(found) == len(good) and np.bincount(found.labels).tolist() == [5, 5]
    assert len(found.skipped) == len(bad)
    for name in bad:
        assert sum(f"{root / name} cannot be read as an image (" in why for why in found.skipped) == 1, name
    strict = folder((8, 8, 3), seed=0, path=str(root), max_bad_images=99)["all"]
    np.testing.assert_array_equal(strict.images, found.images)


@pytest.mark.parametrize("most", [0, 1, 6])
def test_one_too_many_stops_and_names_them(messy, most):
    root, _, bad = messy
    with pytest.raises(UserError) as caught:
        folder((8, 8, 3), seed=0, path=str(root), max_bad_images=most)
    message = str(caught.value)
    assert message.count("cannot be read as an image") == min(most + 1, 5)
    assert "max_bad_images" in message and sum(name in message for name in bad) >= min(most + 1, 5)


@pytest.mark.keras
def test_rows_say_which_were_read(messy):
    root, _, _ = messy
    files = [root / "a" / "empty.png", root / "a" / "plain.png", root / "a" / "text.jpg"]
    images, rows, why = decode_readable(files, (8, 8, 3), 2)
    assert images.shape == (1, 8, 8, 3) and rows.tolist() == [1] and len(why) == 2
    images, rows, why = decode_readable(files[:1], (8, 8, 3), 1)
    assert images.shape == (0, 8, 8, 3) and rows.tolist() == [] and len(why) == 1


@pytest.mark.keras
def test_the_limit_is_a_key_of_the_source(messy, source):
    root, good, bad = messy
    spec = source("folder", path=str(root), max_bad_images=7)
    found = load_ood(spec, (8, 8, 3), seed=0, key="data.near.x")
    assert len(found) == len(good) and len(found.skipped) == len(bad)
    with pytest.raises(UserError, match=r"data\.near\.x\.path: .*max_bad_images = 3"):
        load_ood(source("folder", path=str(root), max_bad_images=3), (8, 8, 3), seed=0, key="data.near.x")
    with pytest.raises(UserError, match=r"data\.far\.u\.max_bad_images: the source 'uniform' takes no"):
        load_ood(source("uniform", max_bad_images=3), (8, 8, 3), seed=0, key="data.far.u")


@pytest.mark.keras
def test_a_drawn_number_may_be_fewer_by_what_cannot_be_read(messy, source):
    root, good, bad = messy
    spec = source("folder", path=str(root), max_bad_images=7, count=len(good) + len(bad) - 1)
    found = load_ood(spec, (8, 8, 3), seed=0, key="data.near.x")
    assert len(found) + len(found.skipped) == spec.count


@pytest.mark.keras
def test_a_list_leaves_out_as_a_folder_does(messy, source):
    root, good, bad = messy
    names = [name for name in (*good, *bad) if "\n" not in name]
    (root / "list.txt").write_text("".join(f"{name} {int(name[0] == 'b')}\n" for name in names))
    spec = source("image_list", path=str(root / "list.txt"), max_bad_images=7)
    found = load_ood(spec, (8, 8, 3), seed=0, key="data.near.x")
    assert len(found) == len(good) - 1 and len(found.skipped) == len(bad)
    assert np.bincount(found.labels).tolist() == [4, 5]


@pytest.mark.parametrize("inner", ["", "cats"])
def test_pipes_and_devices_are_passed_over_and_dead_links_are_told(tmp_path, source, inner):
    folder = tmp_path / "x" / inner
    folder.mkdir(parents=True)
    Image.fromarray(np.zeros((4, 4), "uint8")).save(folder / "good.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "linked.png").symlink_to("good.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "nowhere.png").symlink_to("none.png")
    (folder / "folder.png").symlink_to(tmp_path)
    if not inner:
        (folder / "folder.png").unlink()  # Here it would be a class.
    assert [Path(file).name for file in files_under(folder)] == ["good.png", "linked.png", "loop.png", "nowhere.png"]
    spec = source("folder", path=str(tmp_path / "x"), max_bad_images=2)
    found = load_source(spec, (4, 4, 1), seed=0, key="data.id")["all"]
    assert len(found) == 2 and len(found.skipped) == 2
    assert "loop.png" in found.skipped[0] and "nowhere.png" in found.skipped[1]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr(os, "scandir", refuse)
    for look in (files_under, listed_splits):
        with pytest.raises(UserError, match=r"path: .* cannot be read \(Permission denied\)"):
            look(tmp_path)


def test_folders_as_deep_as_one_likes_come_in_order(tmp_path):
    here = tmp_path
    for depth in range(60):
        here = here / "d"
        here.mkdir()
        (here / f"{depth:02}.PNG").touch()
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "last.jpg").touch()
    (tmp_path / "a.png").touch()
    names = [Path(file).name for file in files_under(tmp_path)]
    assert names == ["a.png", *(f"{depth:02}.PNG" for depth in range(60)), "last.jpg"]
