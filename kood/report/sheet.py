"""The contact sheet of label mixup: along each row the mixture goes from one class to another."""

import io
from pathlib import Path

import numpy as np

from kood.report.files import write_bytes

__all__ = ["write_sheet"]

#: Pixels of an image's longer side on the sheet at least, and of the space around it.
TILE, GAP, MARGIN = 72, 4, 96


def write_sheet(
    path: Path, images: np.ndarray, conditions: np.ndarray, class_names: list[str], captions: list[str] | None = None
) -> None:
    """Writes a PNG with a row for each pair of classes, its two classes named at the ends, the shares above.

    Args:
        images: uint8 (rows, columns, H, W, C).
        conditions: (rows, columns, K) label mixtures of the images.
        captions: What stands under the name at the left end of each row.
    """
    from PIL import Image, ImageDraw, ImageFont

    rows, columns, height, width, channels = images.shape
    factor = max(1, -(-TILE // max(width, height)))  # A whole one, which keeps pixels square.
    tile = (factor * width, factor * height)
    page = Image.new("RGB", (2 * MARGIN + columns * (tile[0] + GAP), 28 + rows * (tile[1] + GAP)), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for row in range(rows):
        top = 28 + row * (tile[1] + GAP)
        ends = [class_names[int(conditions[row, column].argmax())] for column in (0, columns - 1)]
        for name, x, anchor in ((ends[0], MARGIN - 8, "rm"), (ends[1], MARGIN + columns * (tile[0] + GAP) + 4, "lm")):
            draw.text((x, top + tile[1] / 2), _short(name), fill="black", font=font, anchor=anchor)
        if captions is not None:
            below = (MARGIN - 8, top + tile[1] / 2 + 18)
            draw.text(below, _short(captions[row]), fill="gray", font=font, anchor="rm")
        for column in range(columns):
            pixels = images[row, column, :, :, 0] if channels == 1 else images[row, column]
            picture = Image.fromarray(pixels).convert("RGB").resize(tile, Image.Resampling.NEAREST)
            page.paste(picture, (MARGIN + column * (tile[0] + GAP), top))
    last = conditions[0, -1].argmax()
    for column in range(columns):
        x = MARGIN + column * (tile[0] + GAP) + tile[0] / 2
        draw.text((x, 14), f"{conditions[0, column, last]:.0%}", fill="gray", font=font, anchor="mm")
    content = io.BytesIO()
    page.save(content, format="PNG")
    write_bytes(path, content.getvalue())


def _short(name: str) -> str:
    # Pillow's built-in font knows Latin letters only; a name it cannot draw must not stop a run.
    text = "".join(c if c.isprintable() and ord(c) < 256 else "?" for c in str(name))
    return text if len(text) <= 12 else text[:11] + "."
