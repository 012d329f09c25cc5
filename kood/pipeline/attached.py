"""The stage that takes a classifier which exists in place of training one."""

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kood.attached import Adapted, adapted, bring, function_named, opened
from kood.data.image_set import ImageSet
from kood.data.paths import KERAS_FILE, data_path, need_file
from kood.data.sources.folder import on_disk
from kood.detector.measuring import Measuring
from kood.detector.trying import TRIED
from kood.errors import UserError
from kood.files import digest_file, refuse_not_utf_8
from kood.pipeline.checks import check_scores
from kood.pipeline.prepare import Data
from kood.pipeline.stage import Stage, Work
from kood.recipe import Recipe
from kood.registry import nearest, source_of
from kood.text import clean, composed, some_of

__all__ = ["Attached", "matched", "outputs_named"]

#: Known images that the order of the classes and the range of the pixels are checked on.
LOOKED_AT = 256


class Attached(Stage):
    """Takes a finished Keras classifier apart, and checks on known images that its outputs are the classes' own."""

    kind, version, is_shared = "attached", 6, False

    def __init__(self, recipe: Recipe, data: Data):
        super().__init__(recipe, role="classifier")
        assert recipe.attach is not None
        self.data, self.attach = data, recipe.attach

    @property
    def card(self) -> dict[str, Any]:
        """What the model card tells of the classifier."""
        return {"attached": self.told}

    @property
    def told(self) -> dict[str, Any]:
        """Which classifier it is, and how it was taken apart."""
        told = {"model": Path(self.attach.model).name, "preprocess": self.attach.preprocess}
        return {**told, "notes": self.facts["notes"]}

    @functools.cached_property
    def _file(self) -> Path:
        return data_path(self.attach.model)

    def decides(self) -> dict[str, Any]:
        need_file(self._file, "attach.model", KERAS_FILE)
        bring(self.attach.imports, "attach.imports")
        function, modules = self.function, self.attach.imports
        return {
            "backend": keras.backend.backend(), "model": digest_file(self._file), "preprocess": self.attach.preprocess,
            "features": self.attach.features, "classes": self._listed, "names": self._as_keras,
            "sets": self.data.digest("train"), "shape": list(self.recipe.data.shape),
            "imports": [[name, source_of(None, name)] for name in modules],
            "function": function and source_of(function_named(function), function.partition(":")[0]),
        }  # fmt: skip

    @functools.cached_property
    def _listed(self) -> list[str] | None:
        return None if self.attach.classes is None else outputs_named(data_path(self.attach.classes), self._folders)

    @property
    def _folders(self) -> list[str]:
        return list(self.data.images("train").class_names)

    @functools.cached_property
    def _as_keras(self) -> list[str]:
        """The class folders in the order in which Keras numbers them: names as the disk has them, not composed."""
        source, folders = self.recipe.data.id, self._folders
        if source.source != "folder" or source.path is None or source.classes is not None:
            return folders
        if all(map(str.isascii, folders)):
            return folders
        names = on_disk(source.path)
        return sorted(folders, key=lambda name: names.get(name, name))

    def make(self, folder: Path, work: Work) -> dict[str, Any]:
        with work.progress.bar(self.role):
            model = opened(self._file, key="attach.model")
            classifier = adapted(model, self.attach.features, self.attach.preprocess)
            measuring = Measuring(classifier, scores=["msp"], image_shape=self.recipe.data.shape)
            how, names, place = matched(self._folders, self._listed, measuring.num_classes, self._as_keras)
            facts: dict[str, Any] = {"class_names": names, "place": place}
            known = _labelled(self.data.images("train"), facts)
            some = known.take(np.linspace(0, len(known) - 1, min(LOOKED_AT, len(known))).astype(int))
            labelled = self._checked(measuring, some)
            classifier.save(folder / "classifier.keras")
            self._model = classifier
        told = [*measuring.told, how, *labelled]
        return {**facts, "parameters": model.count_params(), "notes": told, "history": {}}

    def check(self) -> None:
        """Refuses scores that the recipe names and this classifier, or so few images, cannot give."""
        check_scores(self.recipe, self.labelled(self.data.images("train")), self.model)

    def _checked(self, measuring: Measuring, known: ImageSet) -> list[str]:
        """What is to be said of the model's labels of known images; refuses one that says that something is wrong."""
        pixels, labels, measuring.class_names = np.asarray(known.images), known.known_labels, list(known.class_names)
        wrong = measuring.ranges.wrong(pixels) or measuring.ranges.left(pixels, None)
        # `outputs` refuses these in words for who gives arrays.
        given = None if wrong else measuring.outputs(known)["logits"].argmax(axis=1)
        rows = np.linspace(0, len(known) - 1, min(TRIED, len(known))).astype(int)
        some = [*zip(pixels[rows], labels[rows], strict=True)]
        doubts = measuring.suits(f"attach.model: {clean(self._file)}", given, labels, some, wrong)
        return [f"{np.mean(given == labels):.1%} of {len(known):,} known images are labelled rightly", *doubts]

    def says(self) -> list[tuple[str, str]]:
        return [(f"{self.role}: {note}", "") for note in self.facts["notes"]]

    def labelled(self, images: ImageSet) -> ImageSet:
        """Images of the data, their labels counted as the model's outputs are."""
        return _labelled(images, self.facts)

    def measured(self) -> tuple[Data, keras.Model]:
        """What it is measured on, and the classifier."""
        return self.data, self.model()

    def model(self) -> keras.Model:
        """The classifier, images in [-1, 1] -> features and logits."""
        return self._model

    def file(self, beside: Path) -> Path:
        """As of `kood.pipeline.classify.Classifier`; it keeps one."""
        return self.folder / "classifier.keras"

    @functools.cached_property
    def _model(self) -> keras.Model:
        classifier = keras.saving.load_model(self.file(self.folder), compile=False)
        if isinstance(classifier, Adapted):
            classifier.prepare_by(self.attach.preprocess)
        return classifier

    @property
    def function(self) -> str | None:
        """The user's own function that makes the model's pixels, "module:function"; None where there is none."""
        return self.attach.preprocess if ":" in self.attach.preprocess else None


def _labelled(images: ImageSet, facts: dict[str, Any]) -> ImageSet:
    place = np.array(facts["place"], np.int64)
    return replace(images, labels=place[images.known_labels], class_names=tuple(facts["class_names"]))


def outputs_named(file: Path, folders: Sequence[str] = ()) -> list[str]:
    """The class of each output of a model, from a file.

    Args:
        file: One name a line; or JSON, a list of names, {name: number}, {number: name} or {number: [name, ...]}.
        folders: Names of the class folders: of several names of each output, those are taken that hold all of these,
            the last where none do.

    Returns:
        The names, in the order of the outputs.

    Raises:
        UserError: the file cannot be read, or does not say which class each output is.
    """
    need_file(file, "attach.classes", "give a file of one name a line, in the order of the model's outputs")
    try:
        text = file.read_text(encoding="utf-8-sig")
        found = json.loads(text) if file.suffix.lower() == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"attach.classes: {clean(file)} cannot be read ({error})") from error
    if isinstance(found, dict):
        pairs = {str(k): v for k, v in found.items()}
        if all(isinstance(number, int) for number in pairs.values()):
            pairs = {str(number): name for name, number in pairs.items()}
        if sorted(pairs, key=lambda n: (len(n), n)) != [str(number) for number in range(len(pairs))]:
            raise UserError(
                f"attach.classes: {clean(file)}: write {{name: number}}, each number from 0 to {len(pairs) - 1} once"
            )
        # ImageNet's own list has a pair for each number, its WordNet id and its name.
        values = [pairs[str(number)] for number in range(len(pairs))]
        rows = [value[::-1] if isinstance(value, list) and value else [value] for value in values]
        columns = [list(column) for column in zip(*rows, strict=False)] or [[]]
        found = next((column for column in columns if all(name in column for name in folders)), columns[0])
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise UserError(f"attach.classes: {clean(file)}: write a list of names, in the order of the model's outputs")
    refuse_not_utf_8(found, "attach.classes", "class")
    names = [composed(name).strip() for name in found]
    while names and not names[-1]:
        names.pop()
    empty = [number for number, name in enumerate(names, start=1) if not name]
    if empty or not names:
        where = f"line {empty[0]} is empty" if empty else "there is no name in it"
        raise UserError(f"attach.classes: {clean(file)}: {where}; write one name for each output of the model")
    # Two of ImageNet's classes are called crane, and two maillot.
    return [name if (before := names[:place].count(name)) == 0 else f"{name} ({before + 1})"
             for place, name in enumerate(names)]  # fmt: skip


def matched(
    folders: Sequence[str], listed: Sequence[str] | None, outputs: int, as_keras: Sequence[str] | None = None
) -> tuple[str, list[str], list[int]]:
    """Which output of a model each class folder is.

    Args:
        listed: The class of each output, where that is known.
        as_keras: The folders in the order in which Keras numbers them; as they stand where not given.

    Returns:
        How they were matched, a sentence; a name for each output; and the output of each folder.

    Raises:
        UserError: the list has another length, a folder is not in it, or there is none and the numbers differ.
    """
    if listed is not None:
        if len(listed) != outputs:
            raise UserError(
                f"attach.classes: has {len(listed)} names, and the model has {outputs} outputs; give each one"
            )
        place = {name: number for number, name in enumerate(listed)}
        if twice := [name for name in folders if (other := f"{name} (2)") in place and other not in folders]:
            raise UserError(
                f"attach.classes: {clean(twice[0])!r} stands there twice, and a folder has that name; give each output "
                "a name of its own"
            )
        missing = [name for name in folders if name not in place]
        if missing:
            hint = nearest(missing[0], listed) if len(listed) <= 20 else f"it begins with {some_of(listed, 5)}"
            raise UserError(
                f"attach.classes: {len(missing)} of {len(folders)} folders are not in the list, such as "
                f"{clean(missing[0])!r}; {hint}"
            )
        return "classes: by the list", list(listed), [place[name] for name in folders]
    numbers = [re.match(r"\d+", name) for name in folders]
    found = [int(number.group()) for number in numbers if number]
    if len(found) == len(folders) == len(set(found)) and max(found) < outputs:
        names = [str(number) for number in range(outputs)]
        for number, folder in zip(found, folders, strict=True):
            names[number] = folder
        return "classes: by the numbers that the folders' names begin with", names, found
    if len(folders) != outputs:
        raise UserError(
            f"attach.model: has {outputs} outputs, and there are {len(folders)} class folders; say which output each "
            "class is (--classes FILE, one name a line in the order of the outputs)"
        )
    names = list(folders if as_keras is None else as_keras)
    return "classes: the folders in alphabetical order, as Keras numbers them", names, list(map(names.index, folders))
