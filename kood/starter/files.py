"""What image files are beside their pixels: their formats, what is special about them, which are copies of others."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kood.data.decode import opened, orientation_of
from kood.runs import digest_file

__all__ = ["copies_among", "kinds_of"]

#: What a run does with files of a kind, as `kood.data.rules` has it.
KINDS = {
    "16 bits": "their upper 8 count",
    "CMYK": "read as Adobe has it, colour profiles are not applied",
    "several pictures": "the first is taken",
    "transparent": "laid over data.ground, white where it is not given",
    "turned by EXIF": "turned upright",
}


def kinds_of(file: str) -> tuple[str, tuple[str, ...]]:
    """A readable file's format, and which of `KINDS` it is."""
    with opened(file) as image:
        stored = str(image.tile[0].args) if image.format == "PNG" and image.tile else ""
        found = {
            "16 bits": image.mode.startswith("I") or stored.endswith("16B"),
            "CMYK": image.mode == "CMYK",
            "several pictures": getattr(image, "n_frames", 1) > 1,
            "transparent": image.has_transparency_data,
            "turned by EXIF": orientation_of(image) > 1,
        }
        return image.format or "unknown", tuple(kind for kind, is_one in found.items() if is_one)


def copies_among(files: Sequence[tuple[str, str]]) -> tuple[int, int]:
    """How many files have the bytes of another before them, and how many of these stand in another class.

    Only files of one size are read.

    Args:
        files: The path and the class of each.
    """
    by_size = defaultdict(list)
    with ThreadPoolExecutor(8) as pool:
        for number, size in enumerate(pool.map(lambda file: _size(file[0]), files)):
            by_size[size].append(number)
        numbers = [number for size, some in by_size.items() if size and len(some) > 1 for number in some]
        digests = list(pool.map(lambda number: digest_file(Path(files[number][0])), numbers))
    of: dict[str, Counter] = defaultdict(Counter)
    for number, digest in zip(numbers, digests, strict=True):
        of[digest][files[number][1]] += 1
    copies = sum(counts.total() - 1 for counts in of.values())
    return copies, sum(counts.total() - max(counts.values()) for counts in of.values())


def _size(file: str) -> int:
    """Bytes of a file; 0 where it cannot be read, which whoever opens it will say."""
    try:
        with Path(file).open("rb") as opened_file:
            return opened_file.seek(0, 2)
    except OSError:
        return 0
