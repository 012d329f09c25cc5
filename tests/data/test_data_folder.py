"""The user's own image files: layouts, formats, and damage."""

import numpy as np
import pytest
from PIL import Image

from kood.data import load_id, load_ood, load_source
from kood.data.decode import decode_image
from kood.errors import UserError


def write(file, value, size=(5, 4), mode="L", **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(file, **options)
    return file


@pytest.fixture
def load(source, tmp_path):
    def build(path=tmp_path, image_shape=(4, 5, 1), seed=0, **options):
        return load_source(source("folder", path=str(path), **options), image_shape, seed=seed, key="data.id")

    return build


def test_class_folders(tmp_path, load):
    for value, name in enumerate(["cat/b.png", "cat/a.PNG", "dog/inner/x.bmp", "dog/.hidden.png", "cat/notes.txt"]):
        write(tmp_path / name, value * 10, format="PNG" if not name.endswith("bmp") else "BMP")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "readme.md").write_text("not an image")
    found = load()["all"]
    assert found.class_names == ("cat", "dog")
    assert found.images[:, 0, 0, 0].tolist() == [10, 0, 20] and found.labels.tolist() == [0, 0, 1]
    assert load(classes=["dog"])["all"].images[:, 0, 0, 0].tolist() == [20]


def test_train_and_test_folders(tmp_path, load, source):
    for split, classes in {"train": "abc", "test": "ca"}.items():
        for name in classes:
            write(tmp_path / split / name / "1.png", ord(name) + (100 if split == "test" else 0))
    sets = load()
    assert sets["train"].class_names == sets["test"].class_names == ("a", "b", "c")
    assert sets["test"].labels.tolist() == [0, 2] and sets["test"].images[:, 0, 0, 0].tolist() == [197, 199]
    assert load(split="train").keys() == {"train"}
    chosen = load_ood(source("folder", path=str(tmp_path), classes=["c"]), (4, 5, 1), seed=0, key="data.near.x")
    assert chosen.images[:, 0, 0, 0].tolist() == [199] and chosen.class_names == ("c",)


def test_flat_folders_have_no_labels(tmp_path, load, source):
    for number in range(5):
        write(tmp_path / f"{number}.png", number)
    found = load()["all"]
    assert found.labels is None and found.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match=r"data\.id\.classes: this source has no classes"):
        load(classes=["a"])
    for split in ("train", "test"):
        write(tmp_path / "both" / split / "1.png", 7)
    assert load(tmp_path / "both")["test"].labels is None


def test_count_decodes_only_what_it_draws(tmp_path, source, load, monkeypatch):
    from kood.data import decode

    for number in range(40):
        write(tmp_path / f"c{number % 2}" / f"{number:02}.png", number)
    seen = []
    whole = decode.decode_readable

    def counted(files, *options):
        seen.append(len(files))
        return whole(files, *options)

    monkeypatch.setattr(decode, "decode_readable", counted)
    take = {"image_shape": (4, 5, 1), "key": "data.far.x"}
    first = load_ood(source("folder", path=str(tmp_path), count=6), seed=0, **take)
    again = load_ood(source("folder", path=str(tmp_path), count=6), seed=0, **take)
    one_class = load_ood(source("folder", path=str(tmp_path), count=6, classes=["c1"]), seed=0, **take)
    assert seen == [6, 6, 6] and first.sha256() == again.sha256()
    assert len({load_ood(source("folder", path=str(tmp_path), count=6), seed=s, **take).sha256() for s in range(4)}) > 1
    assert (one_class.images[:, 0, 0, 0] % 2 == 1).all()
    with pytest.raises(UserError, match=r"data\.far\.x\.count: 41 images asked for, 40 there"):
        load_ood(source("folder", path=str(tmp_path), count=41), seed=0, **take)


def test_splits_from_class_folders(tmp_path, id_data):
    for number in range(40):
        write(tmp_path / f"c{number % 2}" / f"{number:02}.jpg", number)
    splits = load_id(id_data("folder", path=str(tmp_path)))
    assert [len(part) for part in (splits.train, splits.validation, splits.calibration, splits.test)] == [24, 4, 4, 8]


def test_mixed_sizes_are_brought_to_one(tmp_path, load):
    sizes = [(1, 1), (5, 4), (300, 200), (7, 90), (5, 4)]
    for number, size in enumerate(sizes):
        write(tmp_path / f"{number}.png", 50 * number, size=size)
    np.testing.assert_array_equal(
        load()["all"].images, np.broadcast_to(np.arange(0, 250, 50).reshape(5, 1, 1, 1), (5, 4, 5, 1))
    )


def test_many_files_over_several_chunks_keep_their_order(tmp_path, load):
    for number in range(600):
        write(tmp_path / f"{number:03}.png", number % 256)
    assert load()["all"].images[:, 0, 0, 0].tolist() == [number % 256 for number in range(600)]


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (lambda root: None, "has no images; files must end in .png"),
        (lambda root: (write(root / "a/1.png", 0), (root / "b").mkdir()), "class folder .*b has no images"),
        (lambda root: (write(root / "a/1.png", 0), write(root / "2.png", 0)), "beside class folders"),
        (lambda root: write(root / "train/a/1.png", 0), "has train but no test"),
        (lambda root: write(root / "test/a/1.png", 0), "has test but no train"),
        (
            lambda root: [write(root / s / "1.png", 0) for s in ("train/a", "test/b")],
            "test has classes that .* lacks: b",
        ),
        (
            lambda root: [write(root / s / "1.png", 0) for s in ("train/a", "test")],
            "train has class .*test none",
        ),
        (
            lambda root: [write(root / s / "1.png", 0) for s in ("train", "test/a")],
            "test has class .*train none",
        ),
        (
            lambda root: [write(root / s / "a/1.png", 0) for s in ("train", "test", "val")],
            r"beside train and test \(val\)",
        ),
        (lambda root: (root / "x.png").write_text("no image"), r"x\.png cannot be read as an image"),
        (lambda root: (root / "x.png").write_bytes(b""), r"x\.png cannot be read as an image"),
    ],
)
def test_wrong_folders_are_explained(tmp_path, load, make, wrong):
    make(tmp_path)
    with pytest.raises(UserError, match=wrong) as raised:
        load()
    assert str(raised.value).startswith("data.id.path: ")


def test_paths_that_are_no_folder(tmp_path, load):
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "none")
    with pytest.raises(UserError, match="is a file, not a folder"):
        load(write(tmp_path / "one.png", 0))


def test_a_class_named_train_without_folders_in_it(tmp_path, load):
    write(tmp_path / "train/1.png", 1)
    write(tmp_path / "plane/1.png", 2)
    assert load()["all"].class_names == ("plane", "train")


def test_cut_off_files_are_named(tmp_path, load):
    rng = np.random.default_rng(0)
    for suffix in ("jpg", "png", "gif", "bmp", "webp"):
        file = tmp_path / f"cut.{suffix}"
        Image.fromarray(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(file)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with pytest.raises(UserError, match=rf"cut\.{suffix} cannot be read"):
            load()
        file.unlink()


def test_bombs_are_refused(tmp_path, load, monkeypatch):
    write(tmp_path / "huge.png", 0, size=(100, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match=r"huge\.png cannot be read"):
        load()


def test_rotation_flag_is_obeyed(tmp_path):
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0, 0] = 200
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    turned = decode_image(tmp_path / "turned.png")
    assert turned.shape == (6, 4, 3) and turned[0, 3, 0] == 200


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    wide = np.array([[0, 257, 32768, 65535]], np.uint16)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert decode_image(tmp_path / "wide.png").ravel().tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("mode", "value", "suffix", "expected"),
    [
        ("1", 1, "png", [255]),
        ("L", 77, "png", [77]),
        ("LA", (77, 128), "png", [77, 77, 77, 128]),
        ("RGB", (1, 2, 3), "png", [1, 2, 3]),
        ("RGBA", (1, 2, 3, 4), "png", [1, 2, 3, 4]),
        ("P", 0, "png", [0, 0, 0]),
        ("CMYK", (0, 0, 0, 255), "jpg", [0, 0, 0]),
        ("CMYK", (0, 0, 0, 0), "jpg", [255, 255, 255]),
        ("L", 77, "bmp", [77]),
    ],
)
def test_pixel_formats(tmp_path, mode, value, suffix, expected):
    assert decode_image(write(tmp_path / f"x.{suffix}", value, mode=mode))[2, 2].tolist() == expected


def test_palette_and_its_transparency(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "p.png")
    assert decode_image(tmp_path / "p.png").tolist() == [[[10, 20, 30], [40, 50, 60]]]
    image.save(tmp_path / "t.png", transparency=0)
    assert decode_image(tmp_path / "t.png").tolist() == [[[10, 20, 30, 0], [40, 50, 60, 255]]]


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_animations_give_their_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (6, 6), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    lossless = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"moving.{suffix}", save_all=True, append_images=frames[1:], **lossless)
    assert np.abs(decode_image(tmp_path / f"moving.{suffix}")[0, 0, :3].astype(int) - [250, 0, 0]).max() <= 5


def test_bytes_decode_as_files_do(tmp_path):
    file = write(tmp_path / "x.png", (1, 2, 3), mode="RGB")
    np.testing.assert_array_equal(decode_image(file.read_bytes()), decode_image(file))
    with pytest.raises(UserError, match="an image cannot be read"):
        decode_image(b"nothing")
