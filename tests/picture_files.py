"""Image files of every kind that decoders read differently, made here so that each is known byte by byte."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from kood.data.decode import decode_readable
from kood.data.rules import STRETCHED

RNG = np.random.default_rng(0)
WIDTH, HEIGHT = 18, 14


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def picture(width=WIDTH, height=HEIGHT, channels=3):
    return Image.fromarray(np.random.default_rng(channels).integers(0, 256, (height, width, channels)).astype("uint8"))


def decode_images(sources, image_shape, framing=STRETCHED):
    return decode_readable(sources, image_shape, 0, framing)[0]


# EXIF and XMP


def exif(orientation, order="<", *, kind=3, count=1, before=0, thumbnail=None):
    """A block of EXIF; `before` other entries, and a second directory, of a thumbnail, where it has one."""
    entries = [struct.pack(f"{order}HHII", 0x0100 + one, 4, 1, 6) for one in range(before)]
    value = struct.pack(f"{order}HH", orientation, 0) if kind == 3 else struct.pack(f"{order}I", orientation)
    entries.append(struct.pack(f"{order}HHI", 0x0112, kind, count) + value)
    following = 8 + 2 + 12 * len(entries) + 4 if thumbnail else 0
    block = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8)
    block += struct.pack(f"{order}H", len(entries)) + b"".join(entries) + struct.pack(f"{order}I", following)
    if thumbnail:
        block += struct.pack(f"{order}H", 1) + struct.pack(f"{order}HHIHH", 0x0112, 3, 1, thumbnail, 0) + bytes(4)
    return block


def xmp(orientation):
    return (
        '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        f'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{orientation}"/></rdf:RDF></x:xmpmeta>'
        '<?xpacket end="w"?>'
    ).encode()


def segment(marker, data):
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def jpeg_with(data, *segments):
    """A JPEG with segments of (marker, data) behind its first bytes."""
    return data[:2] + b"".join(segment(*one) for one in segments) + data[2:]


def png_with(data, *chunks, last=False):
    """A PNG with chunks of (kind, data) behind its header, or before its end."""
    at = len(data) - 12 if last else 33
    return data[:at] + b"".join(chunk(*one) for one in chunks) + data[at:]


def webp_with(data, *chunks, flags=0):
    """A WebP in the extended format, with chunks of (name, data) behind its pixels."""

    def packed(name, held):
        return name + struct.pack("<I", len(held)) + held + bytes(len(held) % 2)

    canvas = struct.pack("<I", flags) + b"".join((side - 1).to_bytes(3, "little") for side in (WIDTH, HEIGHT))
    body = b"WEBP" + packed(b"VP8X", canvas) + data[12:] + b"".join(packed(*one) for one in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


PLAIN = picture()
JPEG, PNG, WEBP = encoded(PLAIN, "JPEG", quality=95), encoded(PLAIN), encoded(PLAIN, "WEBP", lossless=True)
TEXT = b"http://ns.adobe.com/xap/1.0/\0"


def _oriented():
    """{name: (file, orientation that it has)}."""
    found = {}
    for one in range(1, 9):
        for order, name in (("<", "little"), (">", "big")):
            block = exif(one, order, before=2)
            found |= {
                f"jpeg, {name} endian {one}": (jpeg_with(JPEG, (0xE1, b"Exif\0\0" + block)), one),
                f"png, {name} endian {one}": (png_with(PNG, (b"eXIf", block)), one),
                f"webp, {name} endian {one}": (webp_with(WEBP, (b"EXIF", block), flags=8), one),
            }
    blocks = {
        "a value that is none": (exif(9), 1),
        "zero": (exif(0), 1),
        "of 32 bits": (exif(6, kind=4), 1),
        "two values": (exif(6, count=2), 1),
        "of the thumbnail too": (exif(3, thumbnail=6), 3),
        "cut off": (exif(6)[:18], 1),
        "pointing out of itself": (exif(6)[:4] + b"\xff\xff\xff\xff" + exif(6)[8:], 1),
        "more entries than there are": (exif(6)[:8] + b"\xff\xff" + exif(6)[10:], 6),
        "of no byte order": (b"XX" + exif(6)[2:], 1),
        "of another number": (exif(6)[:2] + b"\0\0" + exif(6)[4:], 1),
        "empty": (b"", 1),
    }
    for name, (block, one) in blocks.items():
        found |= {
            f"jpeg, {name}": (jpeg_with(JPEG, (0xE1, b"Exif\0\0" + block)), one),
            f"png, {name}": (png_with(PNG, (b"eXIf", block)), one),
            f"webp, {name}": (webp_with(WEBP, (b"EXIF", block), flags=8), one),
        }
    app1, six = b"Exif\0\0", exif(6)
    profile = f"\nexif\n{len(app1 + six)}\n{(app1 + six).hex()}\n"
    return found | {
        "jpeg, xmp": (jpeg_with(JPEG, (0xE1, TEXT + xmp(6))), 1),
        "jpeg, xmp beside exif": (jpeg_with(JPEG, (0xE1, TEXT + xmp(6)), (0xE1, app1 + exif(3))), 3),
        "jpeg, exif without an orientation and xmp": (
            jpeg_with(JPEG, (0xE1, app1 + exif(6)[:8] + bytes(6)), (0xE1, TEXT + xmp(6))), 1
        ),
        "jpeg, exif within a comment": (jpeg_with(JPEG, (0xFE, app1 + six)), 1),
        "jpeg, exif within a profile": (jpeg_with(JPEG, (0xE2, b"ICC_PROFILE\0\1\1" + app1 + six)), 1),
        "jpeg, exif far behind": (jpeg_with(JPEG, *[(0xE3, bytes(60_000))] * 3, (0xE1, app1 + six)), 6),
        "jpeg, exif twice": (jpeg_with(JPEG, (0xE1, app1 + exif(8)), (0xE1, app1 + six)), 8),
        "jpeg, exif behind the pixels": (JPEG + segment(0xE1, app1 + six), 1),
        "jpeg, fill bytes": (JPEG[:2] + b"\xff\xff\xff" + jpeg_with(JPEG, (0xE1, app1 + six))[2:], 6),
        "png, xmp": (png_with(PNG, (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(6))), 1),
        "png, exif in a text": (png_with(PNG, (b"tEXt", b"Raw profile type exif\0" + profile.encode())), 1),
        "png, exif within a text": (png_with(PNG, (b"tEXt", b"Comment\0eXIf" + six)), 1),
        "png, exif twice": (png_with(PNG, (b"eXIf", six), (b"eXIf", exif(8))), 8),
        "png, exif behind the pixels": (png_with(PNG, (b"eXIf", six), last=True), 1),
        "webp, xmp": (webp_with(WEBP, (b"XMP ", xmp(6)), flags=4), 1),
        "webp, exif with a prefix": (webp_with(WEBP, (b"EXIF", app1 + six), flags=8), 6),
        "webp, exif that its header is silent about": (webp_with(WEBP, (b"EXIF", six)), 1),
        "webp, exif behind another chunk": (webp_with(WEBP, (b"abcd", b"xyz"), (b"EXIF", six), flags=8), 6),
        "webp, exif twice": (webp_with(WEBP, (b"EXIF", six), (b"EXIF", exif(8)), flags=8), 6),
    }  # fmt: skip


# PNG


#: Left, top, and the steps to the right and downwards of the passes of an interlaced PNG.
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def png(values, depth, colour, *chunks, interlaced=False):
    """A PNG of whole numbers (h, w) or (h, w, c), with chunks behind its header."""
    lines = b""
    for left, top, right, down in ADAM7 if interlaced else [(0, 0, 1, 1)]:
        for row in values[top::down, left::right]:
            bits = (row.reshape(-1)[:, np.newaxis] >> np.arange(depth - 1, -1, -1)) & 1
            lines += b"\0" + np.packbits(bits.astype("uint8")).tobytes()
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, colour, 0, 0, interlaced)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def _pngs():
    found = {}
    for depth in (1, 2, 4, 8):
        values = RNG.integers(0, 2**depth, (HEIGHT, WIDTH))
        colours = (b"PLTE", RNG.integers(0, 256, 3 * 2**depth).astype("uint8").tobytes())
        found |= {
            f"png, grey of {depth} bits": png(values, depth, 0),
            f"png, grey of {depth} bits, one of them transparent": png(values, depth, 0, (b"tRNS", b"\0\1")),
            f"png, palette of {depth} bits": png(values, depth, 3, colours),
            f"png, palette of {depth} bits with alpha": png(
                values, depth, 3, colours, (b"tRNS", bytes(range(min(2**depth, 200))))
            ),
            f"png, palette of {depth} bits, one of them transparent": png(
                values, depth, 3, colours, (b"tRNS", b"\xff\0")
            ),
        }
    for colour, channels in ((0, 1), (2, 3), (4, 2), (6, 4)):
        for depth in (8, 16):
            values = RNG.integers(0, 2**depth, (HEIGHT, WIDTH, channels))
            values[:, ::3] = (0x12, 0x1234)[depth == 16]
            name = f"png, colour type {colour} of {depth} bits"
            found[name] = png(values, depth, colour)
            found[f"{name}, gamma"] = png(values, depth, colour, (b"gAMA", struct.pack(">I", 100_000)))
            background = struct.pack(">H", 7) * (1 if colour in (0, 4) else 3)
            found[f"{name}, background"] = png(values, depth, colour, (b"bKGD", background))
            if colour in (0, 2):
                key = struct.pack(">H", (0x12, 0x1234)[depth == 16]) * channels
                found[f"{name}, one of them transparent"] = png(values, depth, colour, (b"tRNS", key))
    return found


# BMP, GIF


def bmp(bits, pixels, *, height=HEIGHT, compression=0):
    size = 54 + len(pixels)
    head = struct.pack("<2sIHHI", b"BM", size, 0, 0, 54)
    return head + struct.pack("<IiiHHIIiiII", 40, WIDTH, height, 1, bits, compression, 0, 0, 0, 0, 0) + pixels


def gif(canvas, frame, at=(0, 0), transparent=None):
    image = Image.fromarray(RNG.integers(0, 4, frame[::-1]).astype("uint8")).convert("P")
    image.putpalette(RNG.integers(0, 256, 768).tolist())
    data = bytearray(encoded(image, "GIF", **({} if transparent is None else {"transparency": transparent})))
    data[6:10] = struct.pack("<HH", *canvas)
    place = data.index(b",\0\0\0\0") + 1
    data[place : place + 4] = struct.pack("<HH", *at)
    return bytes(data)


# JPEG


def _jpegs():
    large, found = picture(48, 32).resize((96, 64)), {}
    for mode in ("RGB", "L", "CMYK"):
        for subsampling in (0, 1, 2) if mode != "L" else (None,):
            for progressive in (False, True):
                how = {"quality": 95, "progressive": progressive}
                how |= {} if subsampling is None else {"subsampling": subsampling}
                name = f"jpeg, {mode}, subsampling {subsampling}" + ", progressive" * progressive
                found[name] = encoded(large.convert(mode), "JPEG", **how)
    cmyk = found["jpeg, CMYK, subsampling 0"]
    ycck = bytearray(cmyk)
    ycck[cmyk.index(b"Adobe") + 11] = 2
    red_green_blue = segment(0xEE, b"Adobe\0\x64\0\0\0\0\0")
    return found | {
        "jpeg, YCCK": bytes(ycck),
        "jpeg, RGB as it is": encoded(large, "JPEG", keep_rgb=True),
        "jpeg, RGB by Adobe": JPEG[:2] + red_green_blue + JPEG[2:],
        "jpeg, restarts": encoded(large, "JPEG", restart_marker_blocks=2),
        "jpeg, more behind it": JPEG + b"more",
        "jpeg, two pictures": encoded(large, "MPO", save_all=True, append_images=[large.rotate(180)]),
    }


def without_adobe(data):
    place = data.index(b"Adobe") - 4
    return data[:place] + data[place + 2 + struct.unpack(">H", data[place + 2 : place + 4])[0] :]


#: {name: (file, orientation)}: the same picture, stored as it is, and what its metadata say.
ORIENTED = _oriented()

ALPHA = picture(channels=4)
_16_BITS = "png, colour type 2 of 16 bits, one of them transparent"
_PNGS, _JPEGS = _pngs(), _jpegs()

#: Files that the graph and training read alike.
ALIKE = {
    **{name: data for name, data in _PNGS.items() if name != _16_BITS},
    **_JPEGS,
    "webp": encoded(PLAIN, "WEBP"),
    "webp, lossless": WEBP,
    "webp, alpha": encoded(ALPHA, "WEBP"),
    "webp, lossless, alpha": encoded(ALPHA, "WEBP", lossless=True, exact=True),
    "png, interlaced": png(np.asarray(PLAIN), 8, 2, interlaced=True),
    "png, several pictures": encoded(PLAIN, "PNG", save_all=True, append_images=[PLAIN.rotate(180)]),
    "gif": gif((WIDTH, HEIGHT), (WIDTH, HEIGHT)),
    "gif, grey": encoded(PLAIN.convert("L"), "GIF"),
    "gif, interlaced": encoded(PLAIN, "GIF", interlace=True),
    "gif, comment": encoded(PLAIN, "GIF", comment=b"x" * 700),
    "gif, several pictures": encoded(PLAIN, "GIF", save_all=True, append_images=[PLAIN.rotate(180)]),
    "bmp": encoded(PLAIN, "BMP"),
    "bmp, upside down": bmp(
        24, RNG.integers(0, 256, HEIGHT * (3 * WIDTH + 2)).astype("uint8").tobytes(), height=-HEIGHT
    ),
}

#: Files that training reads, and the graph leaves to whoever asks.
FOR_CLIENTS = {
    "jpeg, CMYK without Adobe": without_adobe(_JPEGS["jpeg, CMYK, subsampling 0"]),
    "gif, transparent": gif((WIDTH, HEIGHT), (WIDTH, HEIGHT), transparent=2),
    "gif, smaller than its canvas": gif((20, 20), (10, 10), (4, 5)),
    "gif, smaller than its canvas, transparent": gif((20, 20), (10, 10), (4, 5), transparent=2),
    "gif, larger than its canvas": gif((8, 8), (10, 10), (4, 5)),
    "webp, several pictures": encoded(PLAIN, "WEBP", save_all=True, append_images=[PLAIN.rotate(180)]),
    "bmp, one bit": encoded(PLAIN.convert("1"), "BMP"),
    "bmp, grey": encoded(PLAIN.convert("L"), "BMP"),
    "bmp, palette": encoded(PLAIN.convert("P"), "BMP"),
    "bmp, alpha": encoded(ALPHA, "BMP"),
    "bmp, 32 bits": bmp(32, RNG.bytes(HEIGHT * WIDTH * 4)),
    "bmp, 32 bits, the last of zeros": bmp(32, np.array(ALPHA.convert("RGB").convert("RGBX")).tobytes()),
    "bmp, 16 bits": bmp(16, RNG.bytes(HEIGHT * WIDTH * 2)),
    "tiff": encoded(PLAIN, "TIFF"),
    "tiff, alpha": encoded(ALPHA, "TIFF"),
    "tiff, 16 bits": encoded(Image.fromarray(RNG.integers(0, 65536, (HEIGHT, WIDTH)).astype("uint16")), "TIFF"),
    "jpeg 2000": encoded(PLAIN, "JPEG2000"),
    "ppm": encoded(PLAIN, "PPM"),
    "tga": encoded(ALPHA, "TGA"),
    "ico": encoded(ALPHA.resize((32, 32)), "ICO"),
    "pcx": encoded(PLAIN, "PCX"),
    "qoi": encoded(ALPHA, "QOI") if "QOI" in Image.SAVE else encoded(PLAIN, "SGI"),
}

#: Files that nobody reads.
BAD = {
    "png, transparent of 16 bits": _PNGS[_16_BITS],
    "floats": encoded(Image.fromarray(RNG.random((HEIGHT, WIDTH)).astype("float32")), "TIFF"),
    "32 bits": encoded(Image.fromarray(RNG.integers(70_000, 2**30, (HEIGHT, WIDTH)).astype("int32")), "TIFF"),
    "below zero": encoded(Image.fromarray(RNG.integers(-9, 9, (HEIGHT, WIDTH)).astype("int32")), "TIFF"),
    **{f"{name}, cut off at {part:.0%}": data[: int(part * len(data))] for part in (0.2, 0.5, 0.9) for name, data in {
        "jpeg": JPEG, "png": PNG, "webp": WEBP, "gif": encoded(PLAIN, "GIF"), "bmp": encoded(PLAIN, "BMP"),
    }.items()},
    "jpeg, without its end": JPEG[:-2],
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n",
    "nothing": b"",
    "text": b"not an image",
}  # fmt: skip
