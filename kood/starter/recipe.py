"""The recipe that `kood new` writes."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kood.data.paths import data_path
from kood.errors import UserError
from kood.files import refuse_not_utf_8, write_atomically
from kood.recipe import load
from kood.recipe.data_sections import RESERVED
from kood.recipe.sections import SLUG
from kood.report.wording import duration
from kood.starter.choices import FEWEST_EPOCHS, FROZEN_EPOCHS, MOST_EPOCHS, TEST, Choices, left_out
from kood.starter.images import KINDS, NEAR, Machine, Survey, survey
from kood.starter.pretrained import SMALLEST, pretrained, tried
from kood.template import filled
from kood.text import clean, some_of

__all__ = ["literal", "named", "new_recipe", "slug_of", "source_of"]

#: Classes whose sizes differ by this factor are said to.
UNEVEN = 4.0
#: Column of the reasons.
REASON = 44
#: What it costs that no pretrained network is at hand.
NO_WEIGHTS = (
    "No pretrained weights are at hand: Keras's cache has none, and there is no way to fetch any. A network trained "
    "from nothing on small copies of the images is far behind: on one set of ten kinds of clothes 60% of seven kinds "
    "were told rightly, 84% by a pretrained one. Give --backbone FILE, as "
    "`keras.applications.EfficientNetV2B0(include_top=False).save(FILE)` writes one where there is a network, or run "
    "this there."
)


def new_recipe(
    id_images: str,
    ood_images: Sequence[str] = (),
    *,
    name: str | None = None,
    minutes: float = 30.0,
    force: bool = False,
    backbone: str | None = None,
    options: Mapping[str, Any] | None = None,
    machine: Machine | None = None,
    console: Console | None = None,
) -> Path:
    """Writes NAME.toml for a folder or a table of images, each choice with its reason, and prints what was found.

    Args:
        id_images: The in-distribution images: a folder with one sub-folder a class, or a CSV of lines FILE,LABEL.
        ood_images: Folders or tables of images to test on that are of no such class.
        name: The recipe's name; made of the folder's where not given.
        minutes: About how long a run may take on this machine.
        backbone: A `.keras` file, or an HDF5 file, of a pretrained network to begin with.
        options: What else the backbone "file" is to be told of it: "layer", "preprocess", "imports".
        machine: What the run will have; this machine where not given.

    Returns:
        The file.

    Raises:
        UserError: no images, no classes or only one, a file of that name, a name that is none.
    """
    console, machine = console or Console(), machine or Machine.here()
    if not 1 <= minutes <= 1e5:
        raise UserError(f"--minutes {minutes:g}: say how long a run may take, in minutes from 1 on")
    place = literal(id_images)
    found = survey(place, to_learn=True)
    if len(found.names) < 2:
        none = "has images but no class folders" if place.is_dir() else "names images but no classes"
        few = f"has only one class, {found.names[0]!r}" if found.names else none
        few += "".join(f" ({note})" for note in found.notes)
        raise UserError(f"{clean(place)}: {clean(few)}; a classifier needs two or more, one sub-folder each, or a CSV "
                        "of lines FILE,LABEL")  # fmt: skip
    name = slug_of(name if name is not None else place.name if place.is_dir() else place.stem, given=name is not None)
    file = Path(f"{name}.toml")
    if file.exists() and not force:
        raise UserError(f"{file}: is there already; take another --name, or --force to write over it")
    outside = {slug: (place, survey(place)) for slug, place in named(ood_images).items()}
    without = {name for names in left_out(found).values() for name in names}
    kept = [name for name in found.names if name not in without]
    for its_place, its in outside.values():
        _refuse_shared(place, found, kept, its_place, its)
    side = float(np.median(found.shapes.min(axis=1)))
    network = pretrained(backbone, side, options or {})
    if network is None and side >= SMALLEST:
        console.print(Text(NO_WEIGHTS, "yellow"))
    if network is not None and side < min(SMALLEST, min(network.size) / 2):
        console.print(Text(_too_small(side, min(network.size)), "yellow"))
    per_image = None
    if network is not None:
        height, width = network.size
        console.print(Text(f"Timing {network.backbone} at {height}x{width} px on this machine ..."))
        network, per_image = tried(network, 1 if found.grey else network.channels)
        if network.features:
            console.print(Text(f"{network.features[0].upper()}{network.features[1:]}"), soft_wrap=True)
    _print(console, found, {slug: one for slug, (_, one) in outside.items()})
    text = _text(Choices(found, machine, minutes, network, per_image), place, name, outside)
    with tempfile.TemporaryDirectory() as folder_of_draft:
        draft = Path(folder_of_draft) / file.name
        draft.write_text(text, encoding="utf-8")
        load(draft)  # What is handed over has been read back.
    try:
        write_atomically(file, text.encode("utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}", exit_code=1) from error
    console.print(Text(f"Written: {file}\nNext: kood run {file}"), soft_wrap=True)
    return file


def _refuse_shared(place: Path, found: Survey, kept: Sequence[str], its_place: Path, its: Survey) -> None:
    """Refuses out-of-distribution images that are among the known ones: the same folder or table, one in the other, the
    same files, or others of the same pixels, which a run refuses too.

    Raises:
        UserError: some are the same.
    """
    known = frozenset[str]().union(*(found.paths.get(name, ()) for name in kept))
    shared, of, have = sum(len(known & paths) for paths in its.paths.values()), its.files, "are"
    if not shared:  # Of many images some are looked at: a run finds the others.
        seen = frozenset[bytes]().union(*(found.pixels.get(name, ()) for name in kept))
        shared, of = len(seen & frozenset().union(*its.pixels.values())), its.looked_at
        have = "looked at have the same pixels as some"
    if shared:
        raise UserError(
            f"{clean(its_place)}: {shared:,} of its {of:,} images {have} among those of {clean(place)}, so the "
            "detector would be wrong to flag them, and wrong to accept them; give images of none of its classes"
        )


def _too_small(side: float, wanted: int) -> str:
    """What speaks against a network of much larger images than there are."""
    return (
        f"The network takes images of {wanted} px, and half of yours have {side:.0f} px or less at the shorter side: "
        "enlarged so far they show it little of what it has learned; without --backbone a small network is trained on "
        "them as they are"
    )


def literal(path: str) -> Path:
    """The folder or file, if a recipe can name it."""
    folder = data_path(path)
    refuse_not_utf_8(folder.parts, str(folder))
    if "$" in str(folder):
        raise UserError(f"{clean(folder)}: in a recipe '$' stands for a variable; give it a name without it")
    return folder


def slug_of(wanted: str, *, given: bool) -> str:
    """A name that can name a folder; one that the user gave is taken as it is, or refused."""
    if given:
        if not SLUG.fullmatch(wanted):
            raise UserError(f"--name {clean(wanted)}: use letters, digits, '.', '_' and '-'")
        return wanted
    return (
        "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in wanted).lstrip("._-")[:60] or "mine"
    )


def named(paths: Sequence[str]) -> dict[str, Path]:
    """A name for each out-of-distribution folder or table, as the report will have it."""
    places: dict[str, Path] = {}
    for place in map(literal, paths):
        base = slug = slug_of(place.name if place.is_dir() else place.stem, given=False)
        number = 2
        while slug in places or slug in RESERVED or slug in ("uniform", "blobs"):
            slug, number = f"{base}-{number}", number + 1
        places[slug] = place
    return places


def source_of(place: Path, found: Survey) -> dict[str, Any]:
    """The table of a recipe that says where images are, and how many files of them may be left out."""
    bad = {"max_bad_images": found.bad_at_most} if found.bad_at_most else {}
    return {"source": "folder" if place.is_dir() else "table", "path": str(place), **bad}


def _text(chosen: Choices, place: Path, name: str, outside: dict[str, tuple[Path, Survey]]) -> str:
    """The recipe; `outside` are the out-of-distribution images and where they lie, by name."""
    text = filled(
        "kood.starter", "recipe.toml", {"clean": clean, "duration": duration, "toml": _toml},
        chosen=chosen, place=place, name=name, outside=outside, source_of=source_of,
        copies=_copies(chosen.found), near=_near(chosen.found), distance=NEAR, test=TEST, uneven=UNEVEN,
        epochs=(FEWEST_EPOCHS, MOST_EPOCHS), frozen_epochs=FROZEN_EPOCHS,
    )  # fmt: skip
    return text.expandtabs(REASON)  # In the template a tab stands before each reason, and nowhere else.


def _copies(found: Survey) -> list[str]:
    """What becomes of files that are copies of others."""
    told = [f"{found.copies:,} files are copies of others; of these one part of the split has all."] * (
        found.copies > 0
    )
    if found.torn:
        told.append(f"{found.torn:,} of them stand in two classes, of which one is wrong. The first:")
        told += [f"  {clean(file)}" for file in found.apart]
    return told


def _near(found: Survey) -> list[str]:
    """What becomes of images to train on that are near copies of some in other parts."""
    if not found.near:
        return []
    own = " and ".join(part for part, its in (("validation", found.validation), ("test", found.test)) if its)
    return [
        f"{found.near:,} of {len(found.shapes):,} training images looked at are near copies of some of the {own} part:",
        "the same picture, saved at another size or quality. near_copies leaves such out. The first two:",
        *(f"  {clean(file)}" for file in found.nearest),
    ]


def _toml(value: str | Sequence[str]) -> str:
    """A string of TOML, with whatever it needs escaped, tabs too; or an array of some, on one line."""
    if not isinstance(value, str):
        return f"[{', '.join(map(_toml, value))}]"
    return tomli_w.dumps({"k": value}).strip().removeprefix("k = ").replace("\t", r"\t")


def _print(console: Console, found: Survey, outside: dict[str, Survey]) -> None:
    """Prints what was found, before anything is chosen: it says why there may be nothing to choose."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")

    def add(label: str, text: str) -> None:
        table.add_row(Text(label), Text(clean(text)))

    counts = ", ".join(f"{name} {n:,}" for name, n in list(zip(found.names, found.train, strict=True))[:12])
    more = "" if len(found.names) <= 12 else f", and {len(found.names) - 12} more"
    add("classes", f"{len(found.names)}: {counts}{more}")
    for part, images in (("validation images", found.validation), ("test images", found.test)):
        if images:
            add(part, f"{sum(images):,} of their own")
    low, high = found.shapes.min(axis=0), found.shapes.max(axis=0)
    sizes = f"{low[0]}x{low[1]}" + ("" if (low == high).all() else f" to {high[0]}x{high[1]}")
    colour, seen = "grey" if found.grey else "colour", len(found.shapes) + len(found.unreadable)
    formats = ", ".join(f"{name} {count:,}" for name, count in sorted(found.formats.items(), key=lambda one: -one[1]))
    add("images", f"{sizes} pixels (height x width), {colour}; {seen} looked at: {formats}")
    for kind, count in found.kinds.items():
        add("", f"{count:,} {kind}: {KINDS[kind]}")
    for slug, one in outside.items():
        add(f"near-OOD {slug}", f"{one.files:,} images")
    console.print(table)
    for slug, one in {"": found, **outside}.items():
        for note in one.notes:
            console.print(Text(clean(f"{slug}: {note}" if slug else note), "yellow"), soft_wrap=True)
    every = [*found.unreadable, *(bad for one in outside.values() for bad in one.unreadable)]
    if every:
        console.print(Text(f"{len(every)} of these cannot be read; a run leaves them out:", "yellow"))
        for _, reason in every[:5]:
            console.print(Text(f"  {clean(reason)}", "yellow"), soft_wrap=True)
    for text in (*_copies(found), *_near(found)):
        console.print(Text(text, "yellow"), soft_wrap=True)
    for reason, names in left_out(found).items():
        console.print(Text(f"Left out, with {reason}: {some_of(map(clean, names), 12)}", "yellow"), soft_wrap=True)
