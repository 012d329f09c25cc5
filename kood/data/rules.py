"""How image files become pixels: one table, which training (`decode`) and the served graph (`serving.encoded`) follow.

What a graph cannot do by these rules it refuses; kood's clients decode such a file themselves and send it as PNG.

| matter                  | rule                                                          | the served graph       |
|-------------------------|---------------------------------------------------------------|------------------------|
| orientation             | EXIF's: of a JPEG's first APP1 segment "Exif", a PNG's last   | the same               |
|                         | eXIf chunk before its pixels, a WebP's EXIF chunk; a damaged  |                        |
|                         | one is none. TIFF and AVIF say it their own way. XMP is never |                        |
|                         | read, nor are text chunks                                     |                        |
| gamma, colour profile   | not applied                                                   | the same               |
| alpha                   | laid over `data.ground`, before anything is resized           | the same               |
| another shape           | `data.resize`: stretched, cropped in the middle, or padded,   | the same               |
|                         | antialiased or not (`data.antialias`)                         |                        |
| transparent colour      | alpha 0 where a pixel has it; refused in 16 bits of colour    | the same; GIF: refused |
| palette                 | its colours, with their alpha                                 | the same; BMP: refused |
| 16 bits                 | grey: round(v 255 / 65535); colour: the upper 8 bits          | the same               |
| 12 bits of a TIFF       | grey: round(v 255 / 4095)                                     | refused                |
| 1, 2, 4 bits of grey    | spread over 0..255                                            | the same; BMP: refused |
| floats, wider integers, | refused: nothing says which value is white                    | refused                |
| integers with a sign    |                                                               |                        |
| CMYK, YCCK              | inverted, as Adobe has it                                     | the same with Adobe's  |
|                         |                                                               | marker, else refused   |
| several pictures        | the first                                                     | the same; WebP: refused|
| GIF's first picture     | colour 0 around it, or transparent where it has a transparent | refused                |
| smaller than its canvas | colour                                                        |                        |
| BMP                     | alpha only where it has a mask                                | 24 bits, else refused  |
| large JPEG              | decoded at 1/2, 1/4 or 1/8 (`reduction`) where antialiased    | the same               |
| cut off or damaged      | refused                                                       | refused                |
| over 178,956,970 pixels | refused                                                       | refused                |
| other formats           | as Pillow reads them by itself                                | refused                |
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from kood.errors import UserError

__all__ = [
    "LARGEST", "MIRRORED", "ORIENTATION", "REDUCED_FROM", "REDUCTIONS", "STEPS", "STRETCHED", "UPSIDE_DOWN", "WHITE",
    "Colour", "Framing", "Resize", "ground_colour", "inscribed", "orientation_in", "reduction",
]  # fmt: skip

#: (red, green, blue), each 0..255.
Colour = tuple[int, int, int]

#: What becomes of a picture of other proportions than the model's.
Resize = Literal["stretch", "crop", "pad"]

WHITE: Colour = (255, 255, 255)
_GROUNDS: dict[str, Colour] = {"white": WHITE, "black": (0, 0, 0), "grey": (128, 128, 128)}

#: Most pixels of a file, as Pillow has it: small files may claim gigabytes.
LARGEST = 178_956_970

#: EXIF's tag for the orientation; its value is one 16-bit number from 1 to 8.
ORIENTATION = 0x0112
#: Orientations stored with left and right exchanged, and upside down; from 5 on, rows and columns were exchanged first.
MIRRORED, UPSIDE_DOWN = (2, 3, 6, 7), (3, 4, 7, 8)

#: What a JPEG may be reduced by while it is decoded.
REDUCTIONS = (8, 4, 2, 1)
#: Pixels from which it is. Below, memory is no matter, and a side that 8 does not divide would be stretched visibly.
REDUCED_FROM = 2**22

#: Segments, chunks or bytes that are walked over in search of metadata; the graph refuses what has more.
STEPS = 4096


def ground_colour(ground: str | Sequence[int]) -> Colour:
    """The colour under transparency that a recipe's `data.ground` asks for: a name, or [red, green, blue]."""
    red, green, blue = _GROUNDS[ground] if isinstance(ground, str) else ground
    return int(red), int(green), int(blue)


@dataclass(frozen=True)
class Framing:
    """How a picture is laid into the model's shape (H, W, C).

    Attributes:
        ground: What is seen through its transparency, and beside it where it is padded.
        resize: "stretch": height and width each become the model's. "crop": the largest window of the model's
            proportions in its middle is resized, the rest is cut off. "pad": the whole of it is resized to the largest
            size of its own proportions in H x W, and stands in the middle of the ground. The window and the size are
            those of `inscribed`, in whole pixels; what is left over is halved, the odd pixel below and on the right.
        antialias: Whether what is made smaller is averaged over all of its pixels; if not, each new pixel is made of
            the four about its place, as Keras's and TensorFlow's loaders have it if they are not asked.

    Raises:
        UserError: there is no such way to resize.
    """

    ground: Colour = WHITE
    resize: Resize = "stretch"
    antialias: bool = True

    def __post_init__(self):
        if self.resize not in get_args(Resize):
            raise UserError(f"resize = {self.resize!r}: give one of {', '.join(get_args(Resize))}")

    @classmethod
    def of(cls, data: Any) -> "Framing":
        """That of a recipe's `data`."""
        return cls(ground_colour(data.ground), data.resize, data.antialias)

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> "Framing":
        """That of its `vars` as JSON gives them back; `KeyError` where one is missing."""
        return cls(ground_colour(told["ground"]), told["resize"], told["antialias"])


#: Where nothing is said: stretched, over white.
STRETCHED = Framing()


def inscribed(
    outer: Sequence[Any], proportions: Sequence[Any], least: Callable[..., Any] = min, most: Callable[..., Any] = max
) -> tuple[Any, Any]:
    """The largest (height, width) of the given proportions that fits into another one.

    With (h, w) of these proportions in (H, W), each side is min(H, max(1, round(W h / w))) and the like, a half rounded
    up, all in whole numbers.

    Args:
        outer: (H, W) to fit into.
        proportions: (h, w), of which only the ratio counts.
        least: The smaller of two numbers; TensorFlow's in a graph, where the sides are int64 tensors.
        most: The larger of two numbers.
    """
    (height, width), (high, wide) = outer, proportions
    return (
        least(most((2 * width * high + wide) // (2 * wide), 1), height),
        least(most((2 * height * wide + high) // (2 * high), 1), width),
    )


def orientation_in(block: bytes) -> int:
    """The orientation that a block of EXIF says, 1 to 8; 1 where it says none or is damaged.

    The block is a TIFF header and what follows, perhaps after "Exif" and two zeros.
    """
    block = block[6:] if block[:6] == b"Exif\0\0" else block
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    try:
        if order is not None:
            (directory,) = struct.unpack_from(f"{order}I", block, 4)
            (entries,) = struct.unpack_from(f"{order}H", block, directory)
            for place in range(directory + 2, min(directory + 2 + 12 * entries, len(block) - 11), 12):
                tag, kind, count, value = struct.unpack_from(f"{order}HHIH", block, place)
                if tag == ORIENTATION:
                    return value if (kind, count) == (3, 1) and 1 <= value <= 8 else 1
    except struct.error:
        pass  # It points out of itself.
    return 1


def reduction(
    height: int, width: int, size: tuple[int, int], resize: Resize = "stretch", antialias: bool = True
) -> int:
    """What a grey or colour JPEG is reduced by: the most that leaves each side twice what it is resized to.

    libjpeg reduces by leaving out frequencies, alike in Pillow (`draft`) and TensorFlow (`ratio`). Of the picture's
    sides, upright, and the (H, W) of the model, one of `REDUCTIONS`; 1 below `REDUCED_FROM` pixels. A window that is
    cropped has one side of the picture's whole, the one that decides where it is stretched, so both are reduced alike.
    What is not antialiased is not reduced, which averages too.
    """
    if height * width < REDUCED_FROM or not antialias:
        return 1
    if resize == "pad":
        size = inscribed(size, (height, width))
    most = min(height // (2 * size[0]), width // (2 * size[1]))
    return next((by for by in REDUCTIONS if by <= most), 1)
