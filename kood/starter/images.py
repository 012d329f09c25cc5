"""What a user's folder or table of images holds, and what this machine offers."""

import functools
import math
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kood.data.copies import connected, image_digests, near_pairs, perceptual_hashes
from kood.data.decode import decoding, opened, orientation_of
from kood.data.elsewhere import TRANSPARENT, TURNED
from kood.data.listing import TESTED, Listing, check_parts
from kood.data.paths import what_is_at
from kood.data.sources.folder import listed_splits
from kood.data.sources.table import TABLES, WITHOUT_RECIPE, listed_table
from kood.errors import UserError, in_words
from kood.files import digest_file, refuse_not_utf_8
from kood.machine import cores
from kood.text import clean

__all__ = ["KINDS", "NEAR", "Machine", "Survey", "survey"]

#: Files that are opened to see what the images are like.
LOOKED_AT = 400

#: Bits in which the perceptual hashes of near copies differ at most: `data.id.near_copies` calls so many cautious.
NEAR = 4

#: A size at which one sees whether an image is grey.
_ENOUGH = (64, 64)

#: What a run does with files of a kind, as `kood.data.rules` has it.
KINDS = {
    "16 bits": "their upper 8 count",
    "CMYK": "read as Adobe has it, colour profiles are not applied",
    "several pictures": "the first is taken",
    TRANSPARENT: "laid over data.ground, white where it is not given",
    TURNED: "turned upright",
}


@dataclass(frozen=True)
class Survey:
    """What is in a folder or a table of images.

    Attributes:
        names: The classes, empty where it has none.
        train: Images of each class that can be trained on; of out-of-distribution images those that are tested on.
        test: Images of each class in a test part of its own; empty where there is none.
        shapes: (n, 2) heights and widths of the images looked at.
        grey: Whether all of these are grey.
        unreadable: Files among them that are no images, with the reason; also those looked at in other parts.
        validation: Images of each class in a validation part of its own; empty where there is none.
        notes: What the source has to say of itself, a sentence each.
        formats: How many of those looked at have which format.
        kinds: How many of them are of which of `KINDS`.
        copies: Files, of all parts, with the bytes of another; `torn` those of them whose other is of another class,
            and `apart` the first two such files.
        paths: The files of each class, of all parts that are read, as the disk has them; "" names those without one.
        near: How many of those looked at to train on are near copies of some looked at in other parts, at other pixels;
            `nearest` the first two such files.
        unlike: Images of each class as in `train` that were not found unreadable, the same bytes counted once, and not
            at all where another part has them, since a run leaves these out; as many as there where it is not given.
        others: How many files of other parts were looked at, and how many of these are no images.
        pixels: Of each class the digests of the pixels of those looked at that show something, as `paths`.
    """

    names: tuple[str, ...]
    train: tuple[int, ...]
    test: tuple[int, ...]
    shapes: np.ndarray
    grey: bool
    unreadable: tuple[tuple[str, str], ...]
    validation: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    formats: Mapping[str, int] = field(default_factory=dict)
    kinds: Mapping[str, int] = field(default_factory=dict)
    copies: int = 0
    torn: int = 0
    apart: tuple[str, ...] = ()
    paths: Mapping[str, frozenset[str]] = field(default_factory=dict)
    near: int = 0
    nearest: tuple[str, ...] = ()
    unlike: tuple[int, ...] = ()
    others: tuple[int, int] = (0, 0)
    pixels: Mapping[str, frozenset[bytes]] = field(default_factory=dict)

    @property
    def learnable(self) -> tuple[int, ...]:
        """Different images of each class to train on that no other part has, without those that cannot be read."""
        return self.unlike or self.train

    @property
    def uneven(self) -> float:
        """How many times as many images the largest class has as the smallest."""
        return max(self.train) / max(1, min(self.train))

    @property
    def left_out(self) -> float:
        """The share of the files to train on that near copies in other parts leave out."""
        return self.near / len(self.shapes)

    @property
    def files(self) -> int:
        """How many there are."""
        return sum(self.train) + sum(self.validation) + sum(self.test)

    @property
    def looked_at(self) -> int:
        """How many of them were opened."""
        seen, bad = self.others
        return len(self.shapes) + len(self.unreadable) - bad + seen

    @property
    def bad_at_most(self) -> int:
        """How many files of a part may turn out to be unreadable: those seen where all were looked at, else twice their
        share."""
        seen, bad = self.others
        rest = self.files - sum(self.train) if seen else 0
        own = len(self.unreadable) - bad
        counted = ((own, len(self.shapes) + own, self.files - rest), (bad, seen, rest))
        return max(n if looked >= files else math.ceil(2 * n * files / looked) for n, looked, files in counted)


@dataclass(frozen=True)
class Machine:
    """What a run will have.

    Attributes:
        cores: CPU cores that this process may use.
        accelerator: Whether an NVIDIA GPU or a TPU is in sight.
    """

    cores: int
    accelerator: bool

    @classmethod
    def here(cls) -> "Machine":
        """This one; no framework is asked, so a GPU that none of them can use counts too."""
        seen = Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None or Path("/dev/accel0").exists()
        return cls(cores(), seen)


def survey(source: Path, *, to_learn: bool = False) -> Survey:
    """Counts the images of a folder or a table and looks at some of them, spread evenly over it.

    Args:
        source: A folder as the data source `folder` takes it, or a file as `table` does.
        to_learn: Whether these are the known images, of which all parts are read. Of others only the part that is
            tested on is.

    Raises:
        UserError: As the data sources `folder` and `table` do; or none of the files looked at is an image.
    """
    at = what_is_at(source)
    is_table = at == "a file" and source.suffix.lower() in TABLES
    if at != "a folder" and not is_table:
        found = f"is {at}, not a folder or a table (.csv, .tsv, .txt)" if at else "does not exist"
        raise UserError(f"{clean(source)}: {found}; give a folder with one sub-folder of images for each class, or a "
                        "CSV file of lines FILE,LABEL")  # fmt: skip
    with in_words(WITHOUT_RECIPE):
        listed = (listed_table if is_table else listed_splits)(str(source))
    if to_learn:
        check_parts(listed.parts, clean(source))
        refuse_not_utf_8(next(iter(listed.parts.values())).names, str(source))
    order: Sequence[str] = ("train", "all", "test", "validation") if to_learn else TESTED
    first, *further = [part for part in order if part in listed.parts]
    own = further if to_learn else []
    train = listed.parts[first]
    seen, bad = _looked_at(train.files)
    if not seen:
        raise UserError(f"{clean(source)}: none of {len(bad)} files looked at can be read as an image; the first: "
                        f"{clean(bad[0][1])}")  # fmt: skip
    elsewhere, bad_others = _looked_at([file for part in own for file in listed.parts[part].files])
    near, nearest = _near_copies(seen, elsewhere)
    test, validation = (_counts(listed.parts[part]) if part in own else () for part in ("test", "validation"))
    good = [look for _, look in seen]
    shapes, grey = np.array([look.shape for look in good]), all(look.is_grey for look in good)
    every = [pair for part in (first, *own) for pair in _classed(listed.parts[part])]
    alike = _alike([file for file, _ in every] if to_learn else [])
    copies, torn, apart = copies_among(every, alike)
    unread = {file for file, _ in bad}
    return Survey(
        train.names, _counts(train), test, shapes, grey, (*bad, *bad_others), validation, listed.notes,
        Counter(look.format for look in good), Counter(kind for look in good for kind in look.kinds), copies, torn,
        apart, _paths(every), near, nearest, _counts(train, _idle(train, alike, unread)),
        (len(elsewhere) + len(bad_others), len(bad_others)), _pixels(every, [*seen, *elsewhere]),
    )  # fmt: skip


def _counts(listing: Listing, without: Sequence[int] = ()) -> tuple[int, ...]:
    """The files of each class, without those of some numbers."""
    if not listing.names:
        return (len(listing.files) - len(without),)
    labels = np.delete(listing.labels, np.array(without, int))
    return tuple(int(n) for n in np.bincount(labels, minlength=len(listing.names)))


def _idle(train: Listing, alike: Sequence[Sequence[int]], unread: Collection[str]) -> list[int]:
    """The numbers of those files to train on that bring nothing more to learn or cannot be read.

    Args:
        alike: The numbers of the files of the same bytes, ascending; those of other parts come after those to train on.
        unread: Files that cannot be read.
    """
    count, idle = len(train.files), {number for number, file in enumerate(train.files) if file in unread}
    for same in alike:
        own = [number for number in same if number < count]
        first = {int(train.labels[number]): number for number in reversed(own)} if same[-1] < count else {}
        idle |= set(own) - set(first.values())
    return sorted(idle)


def _classed(listing: Listing) -> list[tuple[str, str]]:
    """Each file with its class, "" where there is none."""
    labels = listing.labels if listing.names else np.zeros(len(listing.files), int)
    names = listing.names or ("",)
    return [(file, names[label]) for file, label in zip(listing.files, labels, strict=True)]


class _Look(NamedTuple):
    """What one file is like: (height, width), its format, which of `KINDS` it is, the digest of its pixels, and the
    perceptual hash of what it shows."""

    shape: tuple[int, int]
    is_grey: bool
    format: str
    kinds: tuple[str, ...]
    digest: bytes
    hash: np.uint64


def _looked_at(files: Sequence[str]) -> tuple[list[tuple[str, _Look]], list[tuple[str, str]]]:
    """Some of the files, spread evenly: the images, and what each is like; and the others, and why they are none."""
    spread = np.unique(np.linspace(0, len(files) - 1, min(len(files), LOOKED_AT)).astype(int))
    some = [files[i] for i in spread]
    with ThreadPoolExecutor(8) as pool:
        looks = list(zip(some, pool.map(_look, some), strict=True))
    good = [(file, look) for file, look in looks if isinstance(look, _Look)]
    return good, [(file, why) for file, why in looks if isinstance(why, str)]


def _look(file: str) -> _Look | str:
    try:
        with decoding(file, _ENOUGH) as (pixels, shape):
            colours = pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1]
            is_grey = bool((colours == colours[..., :1]).all())
            digest = image_digests(colours[None]).tobytes()
            return _Look(shape, is_grey, *kinds_of(file), digest, perceptual_hashes(pixels[None])[0])
    except UserError as error:
        return str(error).removeprefix("path: ")


def _near_copies(train: list[tuple[str, _Look]], others: list[tuple[str, _Look]]) -> tuple[int, tuple[str, ...]]:
    """How many of the files to train on are near copies of others, without those of the same pixels, which a run finds
    anyway; and the first two such files."""
    known = {look.digest for _, look in others}
    rows = [
        (file, look.hash, is_other)
        for seen, is_other in ((train, False), (others, True))
        for file, look in seen
        if look.hash and (is_other or look.digest not in known)
    ]
    if not rows:
        return 0, ()
    paths, hashes, is_other = zip(*rows, strict=True)
    unit = connected(len(rows), links=near_pairs(np.array(hashes, np.uint64), NEAR))
    of_others = {own: row for row, own in reversed(list(enumerate(unit))) if is_other[row]}
    found = [row for row, own in enumerate(unit) if not is_other[row] and own in of_others]
    return len(found), tuple(paths[row] for row in (found[0], of_others[unit[found[0]]])) if found else ()


def kinds_of(file: str) -> tuple[str, tuple[str, ...]]:
    """A readable file's format, and which of `KINDS` it is."""
    with opened(file) as image:
        stored = str(image.tile[0].args) if image.format == "PNG" and image.tile else ""
        found = {
            "16 bits": image.mode.startswith("I") or stored.endswith("16B"),
            "CMYK": image.mode == "CMYK",
            TRANSPARENT: image.has_transparency_data,
            TURNED: orientation_of(image) > 1,
            "several pictures": _goes_on(image),  # Last, since it leaves the first one.
        }
        return image.format or "unknown", tuple(kind for kind in KINDS if found[kind])


def _goes_on(image) -> bool:
    """Whether a file has more than its first picture; one that is cut short after that has begun another."""
    try:
        return getattr(image, "n_frames", 1) > 1
    except Exception:  # Each of Pillow's formats has its own way to fail on a damaged one.
        return True


def _alike(files: Sequence[str]) -> list[list[int]]:
    """The numbers of the files of the same bytes, ascending, for all bytes; only files of one size are read."""
    by_size = defaultdict(list)
    with ThreadPoolExecutor(8) as pool:
        for number, size in enumerate(pool.map(_size, files)):
            by_size[size].append(number)
        numbers = [number for size, some in by_size.items() if size and len(some) > 1 for number in some]
        digests = list(pool.map(lambda number: digest_file(Path(files[number])), numbers))
    of: dict[str, list[int]] = defaultdict(list)
    for number, digest in zip(numbers, digests, strict=True):
        of[digest].append(number)
    return list(of.values())


def copies_among(files: Sequence[tuple[str, str]], alike: Sequence[list[int]]) -> tuple[int, int, tuple[str, ...]]:
    """How many files have the bytes of another before them, how many of these stand in another class, and the first two
    files that are one in two classes, if there are any.

    Args:
        files: The path and the class of each.
        alike: The numbers of those of the same bytes.
    """
    copies, torn, apart = 0, 0, list[tuple[int, int]]()
    for same in alike:
        counts = Counter(files[number][1] for number in same)
        copies += len(same) - 1
        torn += len(same) - max(counts.values())
        apart += [(same[0], other) for other in same if files[other][1] != files[same[0]][1]][:1]
    return copies, torn, tuple(files[number][0] for number in min(apart, default=()))


def _paths(files: Sequence[tuple[str, str]]) -> dict[str, frozenset[str]]:
    """The files of each class as the disk has them: the links on the way to their folders are followed."""
    folder, found = functools.cache(os.path.realpath), defaultdict[str, list[str]](list)
    for file, name in files:
        above, slash, own = file.rpartition("/")
        found[name].append(f"{folder(above)}{slash}{own}")
    return {name: frozenset(paths) for name, paths in found.items()}


def _pixels(files: Sequence[tuple[str, str]], seen: Sequence[tuple[str, _Look]]) -> dict[str, frozenset[bytes]]:
    """The digests of those of the files that were looked at and show something, by class."""
    digests = {file: look.digest for file, look in seen if look.hash}
    found = defaultdict[str, set[bytes]](set)
    for file, name in files:
        if file in digests:
            found[name].add(digests[file])
    return {name: frozenset(its) for name, its in found.items()}


def _size(file: str) -> int:
    """Bytes of a file; 0 where it cannot be read, which whoever opens it will say."""
    try:
        with Path(file).open("rb") as opened_file:
            return opened_file.seek(0, 2)
    except OSError:
        return 0
