"""The recipe as a whole, and the cells of its matrix."""

import copy
import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError, WithJsonSchema, model_validator

from kood import registry, specs
from kood.errors import UserError, in_words
from kood.recipe import sections, settings
from kood.recipe.data_sections import Data
from kood.recipe.messages import explain
from kood.recipe.outlier_sections import Outliers, PureSamples, table_of
from kood.recipe.training_sections import FineTuning, Train
from kood.section import Sampling, Section, by_name

__all__ = ["Recipe", "of_its_file", "shrunk"]


_HEAD = {"anyOf": [{"type": "string"}, sections.Head.model_json_schema()]}


class Recipe(Section):
    """Everything that decides a run.

    Attributes:
        name: Names the folder under `saved/`; the file's name where not given.
        seed: Every random draw of the run follows from it.
        attach: A classifier that exists; then nothing is trained, and `head`, `classifier` and `train` have no say.
        matrix: {dotted key: list of values}; the run makes every combination. `head` and `outliers` may be given by
            name alone ("none" and "pure", pure samples as plain augmentation, are names of `outliers` too). The key
            `arm` takes tables of a name and any dotted keys, for rows that differ in more than one setting.
    """

    name: str = Field(default="", max_length=100)
    seed: sections.Seed = 0
    data: Data
    attach: sections.Attach | None = None
    diffusion: sections.Diffusion = sections.Diffusion()
    outliers: SerializeAsAny[Outliers] = Outliers()
    pure_samples: PureSamples = PureSamples()
    head: Annotated[sections.Head, BeforeValidator(by_name), WithJsonSchema(_HEAD)] = sections.Head()
    classifier: sections.Classifier = sections.Classifier()
    train: Train = Train()
    fine_tuning: FineTuning = FineTuning()
    evaluate: sections.Evaluate = sections.Evaluate()
    serve: sections.Serve = sections.Serve()
    report: sections.Report = sections.Report()
    budget: sections.Budget = sections.Budget()
    matrix: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    quick: bool = False

    _given: dict[str, Any] = {}
    _file: Path | None = None
    _overrides: tuple[str, ...] = ()
    _taken: dict[str, dict[str, Any]] = {}

    def comes_from(self, file: Path, overrides: Sequence[str], taken: dict[str, dict[str, Any]]) -> None:
        """Keeps the file that it was loaded from, the `KEY=VALUE` settings and what these took from the file."""
        self._file, self._overrides, self._taken = file, tuple(overrides), taken

    @property
    def file(self) -> Path | None:
        """The file that it was loaded from."""
        return self._file

    @property
    def overrides(self) -> tuple[str, ...]:
        """The `KEY=VALUE` settings that it was loaded with."""
        return self._overrides

    @property
    def taken(self) -> dict[str, dict[str, Any]]:
        """What settings that give a table whole took from the file: {key: {dotted key: what the file says}}."""
        return self._taken

    def value(self, key: str) -> Any:
        """What it has under a dotted key; None where there is nothing."""
        found: Any = self
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else getattr(found, part, None)
        return found

    def changed(self, **tables: dict[str, Any]) -> "Recipe":
        """The same with other values in some tables, which nothing checks."""
        update = {name: getattr(self, name).model_copy(update=values) for name, values in tables.items()}
        return self.model_copy(update=update)

    @model_validator(mode="after")
    def _check(self):
        if self.name and not sections.SLUG.fullmatch(self.name):
            raise ValueError(f"name: {self.name!r} cannot name a folder; use letters, digits, '.', '_' and '-'")
        if self.samples_pure:
            self.pure_samples.check_steps("pure_samples", self.diffusion.num_steps)
        self._check_baseline()
        if self.diffusion.image_shape is not None:
            self._check_drawn()
        for key, sampling in self.samplings.items():
            if sampling.guidance != 1 and not self.diffusion.label_dropout:
                raise ValueError(
                    f"{key}.guidance = {sampling.guidance:g} needs images that are learnt without a label, and "
                    f"diffusion.label_dropout is 0; raise it to 0.1, or set {key}.guidance = 1"
                )
        for source in self.outliers.sources.values():
            source.check(self)
        if self.classifier.begins_frozen:
            self._check_frozen()
        if self.attach is not None:
            if self.outliers.use or self.pure_samples.trains:
                raise ValueError("attach: a classifier that exists is not trained, so it cannot be exposed; remove "
                                 "outliers.use and pure_samples.use")  # fmt: skip
            if self.data.hold_out is not None:
                raise ValueError("data.hold_out: a classifier that exists is not trained again without some classes; "
                                 "remove it")  # fmt: skip
            return self  # Its scores are those that the model itself can give.
        self._check_auxiliary()
        if self.outliers.use and self.outliers.acts_on_cosines and not self._is_angular():
            raise ValueError(f"outliers.exposure = {self.outliers.exposure!r} acts on cosines; head {self.head.name!r} "
                             "has none")  # fmt: skip
        self._check_head_moves()
        self._check_scores()
        return self

    def _check_head_moves(self) -> None:
        """Refuses exposure whose gradient moves nothing."""
        head = registry.find("heads", self.head.name, "head.name")
        if head.learns or not self.outliers.exposes:
            return
        end = f"and head {self.head.name!r} has no weights that learn; take another head, or"
        for name in map(self.outliers.named, self.outliers.layers):
            raise ValueError(f"outliers.use: {name} outliers teach the head alone, {end} remove {name!r}")
        if self.outliers.reach == "head":
            raise ValueError(f'outliers.reach = "head" lets outliers teach the head alone, {end} set '
                             'outliers.reach = "all"')  # fmt: skip
        if self.classifier.backbone_rate == 0 and not self.classifier.neck:
            raise ValueError(f"classifier.backbone_rate = 0 leaves outliers the head alone to teach, {end} raise "
                             "classifier.backbone_rate")  # fmt: skip

    def _check_drawn(self) -> None:
        (high, wide, channels), whole = self.drawn_shape, self.data.shape
        if channels != whole[2] or high > whole[0] or wide > whole[1]:
            raise ValueError(f"diffusion.image_shape = {list(self.drawn_shape)}: what is drawn is enlarged to "
                             f"data.image_shape = {list(whole)}; give a height and a width up to these, and "
                             f"{whole[2]} channels")  # fmt: skip

    def _check_frozen(self) -> None:
        """Refuses what needs pixels where the classifier learns from features."""
        end = 'set classifier.train = "all"'
        if self.outliers.mix != "none":
            raise ValueError(f"outliers.mix = {self.outliers.mix!r} mixes pixels in each batch, and a frozen backbone "
                             f"sees each image once; remove it, or {end}")  # fmt: skip
        if self.pure_samples.trains:
            raise ValueError("pure_samples.use trains on samples beside the images, which a frozen backbone does not; "
                             f'leave it at ["audit"], or {end}')  # fmt: skip
        if self.classifier.views and not self.data.augment:
            raise ValueError(f"classifier.views = {self.classifier.views}: views are made by data.augment, which names "
                             "nothing; name some (kood list augmentations), or remove views")  # fmt: skip
        head = registry.find("heads", self.head.name, "head.name")
        if not head.learns and not self.classifier.neck:
            raise ValueError(f"head {self.head.name!r} has no weights that learn, nor has a frozen backbone; set "
                             f"classifier.neck = 128, or {end}")  # fmt: skip
        for score in [name for output in registry.PERTURBATION for name in self._scores_of(output)]:
            if self.classifier.is_frozen:
                raise ValueError(f"evaluate: score {score!r} moves pixels by a gradient, and features have none; "
                                 f"remove it, or {end}")  # fmt: skip

    def _check_auxiliary(self) -> None:
        turns = self.train.auxiliary.name == "rotation"
        if turns and self.data.shape[0] != self.data.shape[1]:
            raise ValueError(f'train.auxiliary = "rotation" turns images by 90 degrees, and data.image_shape = '
                             f"{list(self.data.shape)} is not square; give it one height and width, or remove "
                             "train.auxiliary")  # fmt: skip
        if turns and self.classifier.train == "last" and not self.fine_tuning.epochs:
            raise ValueError('train.auxiliary = "rotation" is learnt in fine-tuning, and fine_tuning.epochs is 0; '
                             "raise it, or remove train.auxiliary")  # fmt: skip
        if turns and self.classifier.is_frozen:
            raise ValueError('train.auxiliary = "rotation" turns the images of each batch, and a frozen backbone sees '
                             'each image once; set classifier.train = "last" or "all"')  # fmt: skip

    def _check_scores(self) -> None:
        """Refuses scores that are made of what the classifier does not have."""
        angular, head = self._is_angular(), self.head.name
        turns = self.train.auxiliary.name == "rotation"
        refused = {
            "cosines": not angular and f"is made of cosines; head {head!r} has none",
            "kernel": angular and f"reworks a linear head; head {head!r} is angular",
            "rotations": not turns
            and 'is made of rotations, which this classifier does not learn; set train.auxiliary = "rotation"',
        }
        for quantity, why in refused.items():
            for score in self._scores_of(quantity):
                if why:
                    raise ValueError(f"evaluate: score {score!r} {why}")

    def _check_baseline(self) -> None:
        rows = {key: settings.labels(values) for key, values in self.matrix.items() if key != "seed"}
        for key, value in self.report.baseline.items():
            # The cells of a matrix are recipes of their own, without one.
            if self.matrix and key not in rows:
                raise ValueError(f"report.baseline: {key!r} is no key of the matrix; {registry.nearest(key, rows)}")
            if self.matrix and value not in rows[key]:
                raise ValueError(f"report.baseline.{key}: no row of the matrix is called {value!r}; "
                                 f"{registry.nearest(value, rows[key])}")  # fmt: skip

    @property
    def drawn_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of what the diffusion model learns from and draws."""
        height, width, channels = self.diffusion.image_shape or self.data.shape
        return height, width, channels

    @property
    def samples_pure(self) -> bool:
        """Whether the run samples images of one class each: to train on, or for the audit of what it samples."""
        return self.pure_samples.trains or (bool(self.pure_samples.use) and self.outliers.needs("denoiser"))

    @property
    def samplings(self) -> dict[str, Sampling]:
        """How the run draws from the diffusion model, by the tables that say so."""
        tables = {f"outliers.{table}": source for table, source in self.outliers.drawn.items()}
        tables |= {"pure_samples": self.pure_samples} if self.samples_pure else {}
        return {key: table for key, table in tables.items() if isinstance(table, Sampling)}

    @property
    def needs_diffusion(self) -> bool:
        """Whether the run trains the diffusion model."""
        return self.outliers.needs("denoiser") or self.samples_pure

    @property
    def needs_judge(self) -> bool:
        """Whether a classifier trained on real images has a say in the outliers, or audits what is sampled."""
        return self.audits or self.outliers.needs("judge")

    @property
    def audits(self) -> bool:
        """Whether the run audits what it samples."""
        return self.samples_pure and "audit" in self.pure_samples.use

    def _scores_of(self, quantity: str) -> Iterator[str]:
        """The scores that the recipe names and that are made of, or fitted on, a quantity."""
        for score in [*(self.evaluate.scores or []), self.evaluate.headline]:
            if score != "auto":
                entry = registry.find("scores", specs.name_of(score), "evaluate.scores")
                if quantity in (*entry.required, *entry.fitted_on):
                    yield score

    def _is_angular(self) -> bool:
        return "AngularHead" in registry.find("heads", self.head.name, "head.name").bases

    def cells(self) -> "list[tuple[dict[str, Any], Recipe]]":
        """Every combination of the matrix.

        Returns:
            (labels, recipe) for each cell, the labels as {matrix key: readable value}; one pair with no labels where
            the recipe has no matrix. Those of a smoke run are cut down.

        Raises:
            UserError: a combination is not a valid recipe.
        """
        if not self.matrix:
            return [({}, self)]
        rows = [zip(settings.labels(values), values, strict=True) for values in self.matrix.values()]
        cells = []
        for choice in itertools.product(*rows):
            given = copy.deepcopy(self._given)
            given.pop("matrix", None)
            labels = {key: label for key, (label, _) in zip(self.matrix, choice, strict=True)}
            settings.put_cell(given, {key: value for key, (_, value) in zip(self.matrix, choice, strict=True)})
            try:
                self._without_unused_tables(given.get("outliers"))
                cell = Recipe.model_validate(given)
                if self.quick:
                    given = shrunk(cell, given)
                    cell = Recipe.model_validate(given)
            except (ValidationError, UserError) as error:
                shown = ", ".join(f"{key} = {label}" for key, label in labels.items())
                raise UserError(f"matrix cell ({shown}): {explain(error, Recipe, given)}") from error
            cell._given.update(given)
            cells.append((labels, cell))
        return cells

    def _without_unused_tables(self, outliers: Any) -> None:
        """Takes out of a cell the tables of sources from outside that other cells use: it knows them by `use` alone.

        What is no table, or names no sources, stays as it is and is refused with the rest of the cell.
        """
        use = outliers.get("use", []) if isinstance(outliers, dict) else None
        if isinstance(use, list) and all(isinstance(name, str) for name in use):
            for table in set(self.outliers.tables) - set(Outliers.model_fields) - {*map(table_of, use)}:
                outliers.pop(table, None)

    def to_toml(self) -> str:
        """The complete recipe, defaults included, as TOML that `load` reads back."""
        return tomli_w.dumps(self.model_dump(exclude_none=True))


def shrunk(recipe: Recipe, given: dict[str, Any]) -> dict[str, Any]:
    """The smoke run: every length cut down to what shows that the recipe works.

    Args:
        given: What a TOML file would say of it; left as it is.
    """
    given = copy.deepcopy(given)

    def at_most(key: str, value: float) -> None:
        current = recipe.value(key)
        settings.put(given, key, value if current is None else min(current, value), where="--quick")

    at_most("data.id.per_class", 40)
    unit, _ = recipe.diffusion.budget
    at_most(f"diffusion.{unit}", {"steps": 20, "epochs": 1.0, "minutes": 0.1}[unit])
    at_most("diffusion.batch_size", 16)
    if recipe.diffusion.precision == "auto":  # Measuring takes longer than the few steps that are left.
        settings.put(given, "diffusion.precision", "float32", where="--quick")
    at_most("outliers.count", 64)
    for table, source in recipe.outliers.tables.items():
        for key, value in source.smoke().items():
            settings.put(given, f"outliers.{table}.{key}", value, where="--quick")
    at_most("pure_samples.sampling_steps", 4)
    at_most("pure_samples.count", 64)
    at_most("pure_samples.audit_count", 64)
    at_most("outliers.per_batch", 16)
    at_most("train.epochs", 2)
    at_most("train.batch_size", 32)
    at_most("fine_tuning.epochs", 1)
    at_most("fine_tuning.batch_size", 32)
    if "seed" in recipe.matrix:
        given["matrix"]["seed"] = recipe.matrix["seed"][:1]
    return given


def of_its_file(recipe: Recipe) -> AbstractContextManager[None]:
    """Puts the file of a recipe before a message that begins with one of its keys.

    Args:
        recipe: As it was loaded; without a file messages stay as they are.

    Raises:
        UserError: what was raised inside, with the same exit code.
    """
    begins = f"^(?=({'|'.join(Recipe.model_fields)})(?![a-z_]))"
    file = f"{recipe.file}: ".replace("\\", r"\\")
    return in_words({begins: file} if recipe.file else {})
