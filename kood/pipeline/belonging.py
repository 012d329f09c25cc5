"""What a run folder belongs to: one set of classes and one data set, since its versions are one model to a server."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kood import registry
from kood.data.paths import data_path
from kood.data.rules import Framing
from kood.data.stored import read_digests
from kood.errors import UserError
from kood.files import write_atomically
from kood.pipeline.prepare import Data
from kood.recipe import Recipe
from kood.report.html import BESIDE
from kood.runs import Run
from kood.text import clean, some_of

__all__ = ["Belonging", "Identity", "identity_of", "refuse_mixed_classes"]

#: In the run folder: what it belongs to.
FILE = "belongs_to.json"
#: The smallest digests of a data set, a random sample of its images.
SAMPLE = 1024


@dataclass(frozen=True)
class Identity:
    """Classes and data set of a run.

    Attributes:
        class_names: In their order: a server answers with their numbers.
        source: Which data set the recipe names, paths expanded.
        image_shape: (H, W, C); digests of different shapes do not compare, nor do those of another framing or version.
        digests: The smallest digests of its in-distribution images, hexadecimal, ascending.
        is_whole: Whether those are all.
        framing: How they were brought to the shape.
        version: Of the code that makes the images.
    """

    class_names: tuple[str, ...]
    source: dict[str, str]
    image_shape: tuple[int, ...]
    digests: tuple[str, ...]
    is_whole: bool
    framing: Framing
    version: int

    def is_same(self, other: "Identity") -> bool:
        """Whether both are one set of classes and one data set.

        One data set is one that the recipe names alike, unless its images can be compared and have nothing in common;
        or one that has half of the smaller one's images in common, wherever it lies.
        """
        if self.class_names != other.class_names:
            return False
        common = self._common(other)
        if self.source == other.source:
            return "path" not in self.source or common is None or common > 0.0
        return common is not None and common >= 0.5

    def _common(self, other: "Identity") -> float | None:
        """The share of the smaller set's images that the other has too; None where digests cannot tell."""
        if self._made_unlike(other):
            return None
        # Up to here both samples hold all that their sets have.
        ends = [one.digests[-1] for one in (self, other) if not one.is_whole]
        mine, theirs = ({d for d in one.digests if not ends or d <= min(ends)} for one in (self, other))
        fewer = min(len(mine), len(theirs))
        return len(mine & theirs) / fewer if fewer else None

    def _made_unlike(self, other: "Identity") -> str:
        """What makes one file other pixels in both, in the recipe's words; "" where digests compare."""
        unlike = {
            "image_shape": self.image_shape != other.image_shape,
            **{key: value != vars(other.framing)[key] for key, value in vars(self.framing).items()},
            "kood's way of reading images": self.version != other.version,
        }
        return " and ".join(what for what, differs in unlike.items() if differs)

    def why(self, other: "Identity") -> str:
        """Why the same classes in one order are of two data sets, in brackets; "" where the classes tell."""
        if self.class_names != other.class_names:
            return " (in another order)" if sorted(self.class_names) == sorted(other.class_names) else ""
        unlike = self._made_unlike(other)
        if unlike:
            return f" (their images cannot be compared, as {unlike} changed)"
        common = self._common(other) or 0.0
        return f" (of the smaller one's images the other has {f'only {common:.0%}' if common else 'none'})"

    def told(self, other: "Identity") -> str:
        """What tells it from another, in words."""
        if self.class_names != other.class_names:
            return f"the classes {some_of(self.class_names, 8)} ({self._named()})"
        return f"the images of {self._named()}"

    def _named(self) -> str:
        return " ".join(self.source.values())


def identity_of(data: Data, class_names: Sequence[str] | None = None) -> Identity:
    """What a cell's run folder belongs to.

    Args:
        class_names: Those that it serves, in the order of the classifier's outputs; the data's where not given.
    """
    spec, digests = data.recipe.data.id, read_digests(data.folder, "data.id")
    source = {"source": registry.find("datasets", spec.source).name, "path": spec.path and str(data_path(spec.path)),
              "root": spec.root and str(data_path(spec.root)), "name": spec.name}  # fmt: skip
    return Identity(
        tuple(data.images("train").class_names if class_names is None else class_names),
        {key: value for key, value in source.items() if value},
        data.recipe.data.shape,
        tuple(row.tobytes().hex() for row in digests[:SAMPLE]),
        len(digests) <= SAMPLE,
        Framing.of(data.recipe.data),
        Data.version,
    )


class Belonging:
    """Keeps a run folder to one set of classes and one data set.

    Args:
        other_data: Whether the user asked to go on in it with others.
    """

    def __init__(self, run: Run, other_data: bool = False):
        self._run, self._other_data = run, other_data
        self._first: Identity | None = None

    def accept(self, data: Data, class_names: Sequence[str] | None = None) -> None:
        """Takes the folder for the run's first cell, and lets no other cell publish what does not belong there.

        Raises:
            UserError: the folder, or its first cell, is of other classes or of another data set.
        """
        found, folder = identity_of(data, class_names), self._run.folder
        if self._first is not None:
            if data.recipe.serve.export and not found.is_same(self._first):
                raise UserError(
                    f"{folder}: its first cell is of {self._first.told(found)}, this one of {found.told(self._first)}"
                    f"{found.why(self._first)}; the versions of "
                    "a folder are one model to a server, so set serve.export = false, or give this cell a recipe with "
                    "a name of its own"
                )
            return
        kept = _kept(folder)
        if kept is not None and not found.is_same(kept):
            if not self._other_data:
                raise UserError(
                    f"{folder} belongs to {kept.told(found)}; this run is of {found.told(kept)}{found.why(kept)}. Give "
                    "it another name (--set name=...), or ask for its results in this folder (--other-data): the "
                    "earlier report is kept beside, the SavedModel becomes the next version of the same model"
                )
            self._set_aside()
        write_atomically(folder / FILE, json.dumps(asdict(found)).encode())
        self._first = found

    def _set_aside(self) -> None:
        """Keeps the report of the other data under the version that it was there before."""
        folder, number = self._run.folder, self._run.next_version()
        aside, again = folder / f"before-{number}", 1
        while aside.exists():
            again += 1
            aside = folder / f"before-{number}-{again}"
        aside.mkdir()
        beside = dict.fromkeys(Path(pattern).parts[0] for pattern in BESIDE)
        for name in ("report.json", "report.html", "recipe.toml", *beside):
            if (folder / name).exists():
                (folder / name).rename(aside / name)
        if (folder / FILE).exists():
            shutil.copy2(folder / FILE, aside / FILE)


def refuse_mixed_classes(cells: Sequence[Recipe]) -> None:
    """A matrix over classes publishes nothing; told before the first cell is trained.

    Raises:
        UserError: cells that would publish name different classes.
    """
    classes = {repr(cell.data.id.classes) for cell in cells if cell.serve.export}
    if len(classes) > 1:
        raise UserError(
            "matrix: its cells have different data.id.classes, and the versions of a run folder are one model to a "
            "server; set serve.export = false"
        )


def _kept(folder: Path) -> Identity | None:
    """What a folder belongs to; None where that has not been written down."""
    file = folder / FILE
    if not file.exists():
        return None
    try:
        kept = json.loads(file.read_bytes())
        lists = {key: tuple(kept[key]) for key in ("class_names", "image_shape", "digests")}
        framing, source = Framing.read(kept["framing"]), dict(kept["source"])
        return Identity(**lists, source=source, framing=framing, is_whole=kept["is_whole"], version=kept["version"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        told = f"{type(error).__name__}: {error}"
        raise UserError(f"{clean(file)}: this is not what this version of kood writes there ({told}); remove it if "
                        "what is in the folder is of this recipe's images") from error  # fmt: skip
