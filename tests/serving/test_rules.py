"""One picture, one answer: every format and what it may say of itself, in training, in the graph, through a client."""

import functools
import itertools

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kood.data.decode import decode_image, decoding, opened
from kood.data.rules import REDUCED_FROM, Framing, inscribed, orientation_in, reduction
from kood.errors import UserError
from kood.serving.client import prepared
from kood.serving.encoded import decode_files
from tests import picture_files
from tests.picture_files import ALIKE, BAD, FOR_CLIENTS, HEIGHT, ORIENTED, WIDTH, chunk, decode_images, encoded, exif

pytestmark = pytest.mark.usefixtures("as_written")

FRAMINGS = [Framing((9, 200, 77), resize) for resize in ("stretch", "crop", "pad")]
ALIASED = Framing((9, 200, 77), antialias=False)
GROUND = FRAMINGS[0]
SHAPES = [(HEIGHT, WIDTH, 3), (10, 11, 1)]
WAYS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


@functools.cache
def compiled(shape, framing):
    specification = [tf.TensorSpec((None,), tf.string)]
    return tf.function(lambda data: decode_files(data, shape, framing), input_signature=specification)


def graph(files, shape, framing=GROUND):
    images, decoded = compiled(shape, framing)(tf.constant(list(files), tf.string))
    return images.numpy(), decoded.numpy()


def through_a_client(tmp_path, data):
    """What a graph is sent."""
    (tmp_path / "file").write_bytes(data)
    return prepared(tmp_path / "file")


def test_a_picture_stands_as_its_exif_says_and_nothing_else():
    stored = {kind: np.asarray(opened(getattr(picture_files, kind))) for kind in ("JPEG", "PNG", "WEBP")}
    for name, (data, orientation) in ORIENTED.items():
        upright = Image.fromarray(stored[name.split(",")[0].upper()])
        upright = np.asarray(upright.transpose(WAYS[orientation]) if orientation > 1 else upright)
        np.testing.assert_array_equal(decode_image(data), upright, err_msg=name)
    for shape, wanted in ((SHAPES[0], (1, 2, 3, 4)), ((WIDTH, HEIGHT, 3), (5, 6, 7, 8))):
        names = [name for name, (_, orientation) in ORIENTED.items() if orientation in wanted]
        files = [ORIENTED[name][0] for name in names]
        images, decoded = graph(files, shape)
        assert decoded.all()
        for name, image, data in zip(names, images, files, strict=True):
            np.testing.assert_array_equal(image, decode_image(data), err_msg=name)


def test_a_client_sends_what_stands_the_same_way(tmp_path):
    for name, (data, _) in ORIENTED.items():
        np.testing.assert_array_equal(decode_image(through_a_client(tmp_path, data)), decode_image(data), err_msg=name)


@pytest.mark.parametrize(
    ("shape", "framing"), [(SHAPES[0], GROUND), *((SHAPES[1], framing) for framing in (*FRAMINGS, ALIASED))]
)
def test_what_the_graph_reads_it_reads_as_training_does(shape, framing, tmp_path):
    images, decoded = graph(ALIKE.values(), shape, framing)
    assert decoded.all(), [name for name, fine in zip(ALIKE, decoded, strict=True) if not fine]
    sent = graph((through_a_client(tmp_path, data) for data in ALIKE.values()), shape, framing)[0]
    for name, data, image, by_client in zip(ALIKE, ALIKE.values(), images, sent, strict=True):
        expected = decode_images([data], shape, framing)[0]
        np.testing.assert_array_equal(image, expected, err_msg=name)
        np.testing.assert_array_equal(by_client, expected, err_msg=name)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_the_graph_leaves_to_clients_they_send_as_training_reads_it(shape, tmp_path):
    assert not graph(FOR_CLIENTS.values(), shape)[1].any()
    images, decoded = graph((through_a_client(tmp_path, data) for data in FOR_CLIENTS.values()), shape)
    assert decoded.all()
    for name, data, image in zip(FOR_CLIENTS, FOR_CLIENTS.values(), images, strict=True):
        np.testing.assert_array_equal(image, decode_images([data], shape, GROUND)[0], err_msg=name)


def test_what_training_refuses_everybody_refuses(tmp_path):
    assert not graph(BAD.values(), SHAPES[0])[1].any()
    for name, data in BAD.items():
        with pytest.raises(UserError, match="cannot be read as an image"):
            print(name, decode_image(data).shape)
        (tmp_path / "file").write_bytes(data)
        with pytest.raises(UserError, match="cannot be read as an image"):
            prepared(tmp_path / "file", anyhow=True)


def test_more_metadata_than_the_graph_looks_through_is_left_to_clients():
    texts = [(b"tEXt", b"Comment\0x")] * 5000
    data = picture_files.png_with(picture_files.PNG, *texts, (b"eXIf", exif(3)))
    np.testing.assert_array_equal(decode_image(data), decode_image(picture_files.PNG)[::-1, ::-1])
    assert graph([data, picture_files.PNG], SHAPES[0])[1].tolist() == [False, True]


def test_damage_never_gives_other_pixels():
    draw = np.random.default_rng(0)
    seeds = [data for data, _ in ORIENTED.values()] + list(ALIKE.values()) + list(FOR_CLIENTS.values())
    damaged = []
    for data in seeds:
        for _ in range(3):
            broken = bytearray(data)
            for _ in range(draw.integers(1, 4)):
                broken[draw.integers(min(len(broken), 150))] = draw.choice([0, 1, 127, 255, draw.integers(256)])
            damaged.append(bytes(broken))
    images, decoded = graph(damaged, SHAPES[0])
    assert 0.1 < decoded.mean() < 0.9
    for data, image in zip(itertools.compress(damaged, decoded), images[decoded], strict=True):
        try:
            expected = decode_images([data], SHAPES[0], GROUND)[0]
        except UserError:
            continue  # Pillow minds damage beside the pixels too.
        np.testing.assert_allclose(image, expected, atol=1)


def test_how_much_a_jpeg_is_reduced():
    assert reduction(4000, 6000, (12, 12)) == 8 and reduction(4000, 6000, (224, 224)) == 8
    assert reduction(4000, 6000, (300, 300)) == 4 and reduction(4000, 6000, (1001, 300)) == 1
    assert reduction(2048, 2048, (128, 128)) == 8 and reduction(2048, 2048, (129, 128)) == 4
    assert reduction(2048, REDUCED_FROM // 2048 - 1, (8, 8)) == 1
    for resize in ("stretch", "crop"):
        assert reduction(2048, 8192, (256, 256), resize) == reduction(8192, 2048, (256, 256), resize) == 4
    # Padded, the longer side becomes 256 and the other 64; a side of few pixels becomes one.
    assert reduction(2048, 8192, (256, 256), "pad") == reduction(8192, 2048, (256, 256), "pad") == 8
    assert reduction(65500, 65, (8, 8), "pad") == 8 and reduction(2**22, 3, (8, 8), "pad") == 1


def test_what_is_reduced_is_large_enough_for_what_it_is_resized_to():
    draw = np.random.default_rng(0)
    for height, width, high, wide in zip(*draw.integers(1, (65500, 65500, 1025, 1025), (5000, 4)).T, strict=True):
        sides, size = (int(height), max(int(width), REDUCED_FROM // int(height) + 1)), (int(high), int(wide))
        for resize in ("stretch", "crop", "pad"):
            by = reduction(*sides, size, resize)
            window = inscribed(sides, size) if resize == "crop" else sides
            becomes = inscribed(size, sides) if resize == "pad" else size
            assert by == 1 or all(side // by >= 2 * to for side, to in zip(window, becomes, strict=True))


@functools.cache
def large_jpegs():
    """The first is the plain one."""
    grain = np.random.default_rng(0).normal(0, 4, (2048, 2056, 3))
    smooth = picture_files.picture(24, 24).resize((2056, 2048))
    large = Image.fromarray((np.asarray(smooth) + grain).clip(0, 255).astype("uint8"))
    plain = encoded(large, "JPEG")
    return [
        plain, encoded(large.crop((0, 0, 2053, 2047)), "JPEG"), encoded(large.convert("L"), "JPEG"),
        encoded(large.convert("CMYK"), "JPEG"),
        encoded(large, "JPEG", progressive=True, subsampling=0),
        *(picture_files.jpeg_with(plain, (0xE1, b"Exif\0\0" + exif(one))) for one in (3, 6)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "framing"),
    [
        pytest.param((128, 128, 3), GROUND, marks=pytest.mark.slow),
        ((100, 400, 1), FRAMINGS[2]),
        pytest.param((128, 128, 3), FRAMINGS[1], marks=pytest.mark.slow),
        pytest.param((128, 128, 3), FRAMINGS[2], marks=pytest.mark.slow),
        pytest.param((129, 128, 3), GROUND, marks=pytest.mark.slow),
    ],
)
def test_a_large_jpeg_is_reduced_alike(shape, framing):
    plain, *others = large_jpegs()
    # Every kind of file in one framing, and of the others one that is turned as well.
    files = [plain, *(others if (shape, framing) == ((128, 128, 3), GROUND) else others[-1:])]
    found = decode_images(files, shape, framing)
    for file, image in zip(files, found, strict=True):  # One by one, or all are large at once.
        images, decoded = graph([file], shape, framing)
        assert decoded.all()
        np.testing.assert_array_equal(images, [image])
    # What it was decoded to is smaller, what comes of it almost the same; a window is of whole pixels of that.
    with decoding(plain, shape[:2], framing) as (pixels, _):
        height, width = pixels.shape[:2]
    by = reduction(2048, 2056, shape[:2], framing.resize)
    assert (height, width) == (-(-2048 // by), -(-2056 // by)) and by > 1
    whole = decode_images([encoded(Image.fromarray(decode_image(plain)), "BMP")], shape, framing)[0]
    assert np.abs(whole.astype(int) - found[0]).mean() < (4 if framing.resize == "crop" else 0.6)


@pytest.mark.slow
def test_a_large_jpeg_that_is_not_antialiased_is_whole():
    plain, *_ = large_jpegs()
    found = decode_images([plain], (128, 128, 3), ALIASED)
    np.testing.assert_array_equal(graph([plain], (128, 128, 3), ALIASED)[0], found)
    whole = decode_images([encoded(Image.fromarray(decode_image(plain)), "BMP")], (128, 128, 3), ALIASED)
    np.testing.assert_array_equal(whole, found)


def test_damaged_exif_is_none():
    for length in range(len(exif(6))):
        assert orientation_in(exif(6)[:length]) in (1, 6)
    assert orientation_in(exif(6)) == orientation_in(b"Exif\0\0" + exif(6, ">")) == 6
    assert chunk(b"eXIf", exif(6))[8:12] == b"II*\0"
