"""Files decoded in the served graph, against Pillow as training reads them."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kood.serving.encoded import decode_files
from tests.picture_files import decode_images
from tests.serving.models import encoded


def picture(size=(42, 54), seed=0):
    """Blocks of colour with grain: what JPEG blurs, and what it keeps."""
    rng = np.random.default_rng(seed)
    blocks = np.kron(rng.integers(0, 256, (7, 9, 3)), np.ones((size[0] // 7, size[1] // 9, 1)))
    return Image.fromarray((blocks + rng.normal(0, 8, blocks.shape)).clip(0, 255).astype("uint8"))


def turned(orientation, byte_order="<", image=None):
    exif = Image.Exif()
    exif.endian = byte_order
    exif[0x010F] = "maker"
    exif[0x0112] = orientation
    return encoded(image or picture(), "JPEG", exif=exif)


def wide(channels):
    values = np.random.default_rng(1).integers(0, 65536, (20, 20)).astype("uint16")
    return encoded(Image.fromarray(values), "PNG") if channels == 1 else None


RGB = picture()
FILES = {
    "png": encoded(RGB),
    "jpeg": encoded(RGB, "JPEG"),
    "jpeg without subsampling": encoded(RGB, "JPEG", subsampling=0),
    "progressive jpeg": encoded(RGB, "JPEG", progressive=True),
    "grey jpeg": encoded(RGB.convert("L"), "JPEG"),
    "cmyk jpeg": encoded(RGB.convert("CMYK"), "JPEG"),
    "webp": encoded(RGB, "WEBP"),
    "lossless webp": encoded(RGB, "WEBP", lossless=True),
    "gif": encoded(RGB, "GIF"),
    "animated gif": encoded(RGB, "GIF", save_all=True, append_images=[RGB.rotate(180)]),
    "bmp": encoded(RGB, "BMP"),
    "grey": encoded(RGB.convert("L")),
    "grey with alpha": encoded(Image.merge("LA", (RGB.convert("L"), RGB.getchannel("G")))),
    "alpha": encoded(Image.merge("RGBA", (*RGB.split(), RGB.getchannel("B").rotate(180)))),
    "palette": encoded(RGB.convert("P")),
    "one bit": encoded(RGB.convert("1")),
    "sixteen bits": wide(1),
    "animated png": encoded(RGB, "PNG", save_all=True, append_images=[RGB.rotate(180)]),
    "one pixel": encoded(Image.new("RGB", (1, 1), (1, 2, 3))),
    **{f"turned {one}": turned(one) for one in range(1, 9)},
    "turned, other byte order": turned(6, ">"),
    "turned beyond what there is": turned(9),
}


@functools.cache
def compiled(shape):
    return tf.function(lambda data: decode_files(data, shape), input_signature=[tf.TensorSpec((None,), tf.string)])


def decode(files, shape):
    images, decoded = compiled(shape)(tf.constant(files, tf.string))
    return images.numpy(), decoded.numpy()


@pytest.mark.parametrize(
    "shape",
    [(42, 54, 3), *(pytest.param(one, marks=pytest.mark.slow) for one in ((16, 16, 3), (16, 20, 1), (60, 60, 3)))],
)
def test_files_are_read_as_training_reads_them(shape):
    images, decoded = decode(list(FILES.values()), shape)
    assert decoded.all(), [name for name, fine in zip(FILES, decoded, strict=True) if not fine]
    for name, data, found in zip(FILES, FILES.values(), images, strict=True):
        expected = decode_images([data], shape)[0]
        # A grey image is resized as one channel here and as three equal ones there, which may round otherwise.
        np.testing.assert_allclose(found, expected, atol=1 if "grey" in name else 0, err_msg=name)


def bomb():
    """A PNG of 30,000 x 30,000 pixels in its header, which decoding would believe."""
    data = bytearray(encoded(Image.new("L", (4, 4))))
    data[16:24] = (30_000).to_bytes(4, "big") * 2
    return bytes(data)


REFUSED = {
    "nothing": b"",
    "no image": b"not an image",
    "cut jpeg": FILES["jpeg"][:700],
    "cut png": FILES["png"][:700],
    "cut webp": FILES["lossless webp"][:200],
    "header of a gif": b"GIF89a",
    # TensorFlow 2.21 ends the process on one.
    "animated webp": encoded(RGB, "WEBP", save_all=True, append_images=[RGB.rotate(180)]),
    "bomb": bomb(),
    "tiff": encoded(RGB, "TIFF"),
}


def test_what_cannot_be_decoded_leaves_its_place_empty():
    files = [data for one in REFUSED.values() for data in (one, FILES["png"])]
    images, decoded = decode(files, (8, 8, 3))
    assert decoded.tolist() == [False, True] * len(REFUSED)
    assert (images[::2] == 0).all()
    np.testing.assert_array_equal(images[1], images[3])


@pytest.mark.parametrize("files", [[], [b""], [b"", b"x"]])
def test_batches_with_nothing_in_them(files):
    images, decoded = decode(files, (4, 6, 1))
    assert images.shape == (len(files), 4, 6, 1) and not decoded.any()


def test_a_damaged_rotation_flag_is_none():
    data = turned(6)
    place = data.index(b"Exif\0\0")
    broken = [
        data[:at] + bytes([value]) + data[at + 1 :] for at in range(place, place + 40) for value in (0, 1, 127, 255)
    ]
    images, decoded = decode(broken, (8, 8, 3))
    # Whatever the flag says, the pixels are there, in one of eight ways to turn them.
    assert decoded.all()
    ways = np.stack([decode_images([turned(one)], (8, 8, 3))[0] for one in range(1, 9)])
    assert all((np.abs(ways - image).max(axis=(1, 2, 3)) == 0).any() for image in images)
