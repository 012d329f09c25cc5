"""Files to pixels: the formats that are taken, their values, and the memory that it takes."""

import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kood.data import decode
from kood.data.copies import perceptual_hashes
from kood.data.decode import OUTSIDE, decode_image, decode_readable
from kood.data.files import SUFFIXES, files_under
from kood.data.images import fit_images
from kood.data.rules import Framing
from kood.data.sources.folder import folder
from kood.errors import UserError
from tests.picture_files import PLAIN, decode_images, encoded, exif, picture, png, xmp


def test_the_suffixes_are_those_of_all_formats_that_pillow_reads_by_itself():
    Image.init()
    suffixes = {suffix: kind for suffix, kind in Image.EXTENSION.items() if kind in Image.OPEN}
    assert {suffix for suffix, kind in suffixes.items() if kind not in OUTSIDE} <= set(SUFFIXES)
    assert not {suffix for suffix, kind in suffixes.items() if kind in OUTSIDE} & set(SUFFIXES)
    assert not {".pdf", ".svg", ".txt", ".csv", ".json", ".npy", ".zip"} & set(SUFFIXES)
    assert len(set(SUFFIXES)) == len(SUFFIXES)


def test_a_file_of_every_format_is_taken_and_read(tmp_path):
    Image.init()
    written = []
    for suffix in SUFFIXES:
        kind = Image.EXTENSION.get(suffix)
        if kind not in Image.SAVE:
            continue
        plain = PLAIN.resize((18, 16))  # Pillow before 13 writes icons from 16 x 16 pixels on.
        for image in (plain, plain.convert("1"), plain.convert("P"), plain.convert("L").convert("F")):
            try:
                image.save(tmp_path / f"{len(written):02}{suffix.upper()}", kind)
                break
            except (OSError, ValueError):
                continue
        written.append(suffix)
    assert {".tif", ".tiff", ".jp2", ".ppm", ".tga", ".ico", ".pcx", ".jfif"} <= set(written)
    assert len(files_under(tmp_path)) == len(written)
    found = folder((8, 8, 3), seed=0, path=str(tmp_path), max_bad_images=len(written))["all"]
    unread = {why.split(" cannot be read")[0][-4:].lower() for why in found.skipped}
    assert unread <= {".pfm"} and len(found) + len(found.skipped) == len(written)  # Its pixels are floats.


def test_no_other_program_is_started_whatever_a_file_is_called(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was asked for"))
    PLAIN.save(tmp_path / "x.eps")
    (tmp_path / "x.png").write_bytes((tmp_path / "x.eps").read_bytes())
    with pytest.raises(UserError, match=r"x\.png cannot be read as an image \(its content is no known image format\)"):
        decode_image(tmp_path / "x.png")


def test_a_tiff_and_an_avif_stand_as_they_say_themselves():
    turned = np.asarray(PLAIN.transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(decode_image(encoded(PLAIN, "TIFF", tiffinfo={274: 6})), turned)
    np.testing.assert_array_equal(decode_image(encoded(PLAIN, "TIFF", tiffinfo={700: xmp(6)})), PLAIN)
    if "AVIF" in Image.SAVE:
        plain, other = (decode_image(encoded(PLAIN, "AVIF", quality=100, **how)) for how in ({}, {"exif": exif(6)}))
        np.testing.assert_array_equal(np.asarray(Image.fromarray(plain).transpose(Image.Transpose.ROTATE_270)), other)


def test_values_that_pillow_alone_would_get_wrong():
    wide = np.array([[0, 128, 129, 257, 65535]])
    assert decode_image(png(wide, 16, 0))[..., 0].tolist() == [[0, 0, 1, 1, 255]]
    for depth, one in ((1, 255), (2, 85), (4, 17), (8, 1)):
        found = decode_image(png(np.array([[0, 1]]), depth, 0, (b"tRNS", b"\0\1")))
        assert found.tolist() == [[[0, 0, 0, 255], [one, one, one, 0]]]
    assert decode_image(png(wide, 16, 0, (b"tRNS", b"\1\1")))[..., 3].tolist() == [[255, 255, 255, 0, 255]]


def tiff(pixels, width, bits, kind=1, polarity=1, order="<"):
    """One row of grey pixels as a TIFF has them; white is 0 under polarity 0, and kind 2 has a sign."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: polarity, 273: 8, 277: 1, 278: 1, 279: len(pixels), 339: kind}
    entries = b"".join(struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    start = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8 + len(pixels))
    return start + pixels + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def fits(pixels):
    """One row of two pixels of 16 bits as astronomers keep it, with a sign."""
    cards = {"SIMPLE": "T", "BITPIX": 16, "NAXIS": 2, "NAXIS1": 2, "NAXIS2": 1}
    head = "".join(f"{name:8}= {value:>20}".ljust(80) for name, value in cards.items()) + "END"
    return head.ljust(2880).encode() + pixels.ljust(2880, b"\0")


@pytest.mark.parametrize("order", "<>")
def test_wide_grey_goes_from_black_to_white(order):
    wide = np.array([0, 128, 129, 65535], f"{order}u2").tobytes()
    assert decode_image(tiff(wide, 4, 16, order=order)).ravel().tolist() == [0, 0, 1, 255]
    if order == "<":  # Pillow refuses the others.
        assert decode_image(tiff(wide, 4, 16, polarity=0)).ravel().tolist() == [255, 255, 254, 0]
        assert decode_image(tiff(b"\xff\xf8\0\0\0\x09", 4, 12)).ravel().tolist() == [255, 128, 0, 1]


SIGNED = {f"{bits} bits, {order}": tiff(np.array([0, 100], f"{order}i{bits // 8}").tobytes(), 2, bits, 2, 1, order)
          for bits in (8, 16, 32) for order in "<>" if (bits, order) != (8, ">")}  # fmt: skip
INTEGERS = {
    **SIGNED,
    "32 bits": tiff(np.arange(2, dtype="<u4").tobytes(), 2, 32),
    "FITS": fits(np.array([-32768, 32767], ">i2").tobytes()),
    "IM": encoded(Image.fromarray(np.arange(12, dtype="int32").reshape(3, 4)), "IM"),
}


@pytest.mark.parametrize("kind", [*INTEGERS, "floats"])
def test_numbers_of_no_known_range_are_refused(kind, tmp_path):
    floats = encoded(Image.fromarray(np.linspace(0, 1, 12).reshape(3, 4).astype("float32")), "TIFF")
    (tmp_path / "x.tif").write_bytes(INTEGERS.get(kind, floats))
    why = "floating-point numbers" if kind == "floats" else "whole numbers of no known range, as those with a sign"
    with pytest.raises(UserError, match=rf"x\.tif cannot be read as an image \(its pixels.*{why}.*save it with 8 or"):
        decode_image(tmp_path / "x.tif")


def test_large_and_small_files_come_in_order_and_as_one_by_one(tmp_path):
    sides = [(20, 30), (700, 600), (20, 30), (40, 9), (512, 512), (513, 512), (30, 20)]
    files = [tmp_path / f"{place}.png" for place in range(len(sides))]
    for place, (side, file) in enumerate(zip(sides, files, strict=True)):
        picture(*side, channels=3 + place % 2).save(file)
    files.insert(3, tmp_path / "none.png")
    found, rows, why = decode_readable(files, (16, 12, 3), 1, Framing((1, 2, 3)))
    assert rows.tolist() == [0, 1, 2, 4, 5, 6, 7] and len(why) == 1
    for image, row in zip(found, rows, strict=True):
        alone = fit_images(decode_image(files[row])[np.newaxis], (16, 12, 3), Framing((1, 2, 3)))[0]
        np.testing.assert_array_equal(image, alone)


def test_threads_share_the_memory(monkeypatch, tmp_path):
    picture(300, 200).save(tmp_path / "small.png")
    picture(1200, 1000).save(tmp_path / "large.png")
    small, large = 8 * 3 * 300 * 200, 8 * 3 * 1200 * 1000
    monkeypatch.setattr(decode, "IN_FLIGHT", 3 * small)
    taken, most, alone, lock = [0], [], [], threading.Lock()
    plain = decode._pixels

    def watched(image, *how):
        size = 24 * image.width * image.height
        with lock:
            taken[0] += size
            most.append(taken[0])
            alone.append(size == large)
        try:
            return plain(image, *how)
        finally:
            with lock:
                taken[0] -= size

    monkeypatch.setattr(decode, "_pixels", watched)
    decode_images([tmp_path / name for name in ["small.png", "small.png", "large.png", "small.png"] * 12], (8, 8, 3))
    assert len(most) == 48 and 3 * small < large
    assert all(size <= (large if at_large else 3 * small) for size, at_large in zip(most, alone, strict=True))


PEAK = """
import re, sys
from pathlib import Path
from kood.data.decode import decode_readable

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

file, count = sys.argv[1:]
decode_readable([file], (12, 12, 3), 0)
before = peak()
decode_readable([file] * int(count), (12, 12, 3), 0)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read where Linux has it")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_memory_is_flat_in_the_number_of_large_files(tmp_path, kind):
    # Twelve megapixels, of which sixteen would be 549 MiB.
    file = tmp_path / f"large.{kind.lower()}"
    Image.fromarray(np.zeros((3000, 4000, 3), "uint8")).save(file, kind)
    told = subprocess.run([sys.executable, "-c", PEAK, str(file), "16"], capture_output=True, text=True, check=True)
    # What lies beside the room for decoding, and what the allocator keeps.
    assert int(told.stdout) < 400, f"sixteen files take {told.stdout.strip()} MiB more than one"


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_perceptual_hashes_are_of_whole_pictures_large_ones_too(tmp_path, resize):
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 12, 3), np.uint8))
    files = [tmp_path / "large.png", tmp_path / "small.png", tmp_path / "broken.png"]
    for file, size in zip(files, [(960, 400), (480, 200)], strict=False):
        coarse.resize(size, Image.Resampling.BICUBIC).save(file)
    files[2].write_bytes(b"no picture")
    hashes = np.zeros(4, np.uint64)
    _, read, _ = decode_readable([files[2], *files[:2], files[0]], (32, 32, 3), 1, Framing(resize=resize), hashes)
    assert read.tolist() == [1, 2, 3]
    whole = [perceptual_hashes(decode_image(file)[None])[0] for file in files[:2]]
    assert hashes.tolist() == [0, whole[0], whole[1], whole[0]] and np.bitwise_count(whole[0] ^ whole[1]) <= 2
