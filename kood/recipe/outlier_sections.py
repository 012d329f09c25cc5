"""The tables of a recipe that say what the classifier is exposed to, and what else is sampled."""

import functools
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

from pydantic import BeforeValidator, Field, WithJsonSchema, create_model, model_validator
from pydantic_core import PydanticKnownError

from kood import registry
from kood.errors import UserError
from kood.section import Positive, Sampling, Section, Share

__all__ = ["Outliers", "PureSamples", "table_of"]


class PureSamples(Sampling):
    """Images sampled from the diffusion model under one class each.

    Attributes:
        use: "audit": a test set of the audit, among others of whether the detector flags whatever is generated.
            "id_rows": labelled rows on the in-distribution side of every batch, so that being generated tells
            nothing. "augment": more training images, beside the real ones, outliers or not.
        count: How many images to train with; not given, `outliers.count`.
        audit_count: How many others for the audit, at least two; of the classes in the proportion of the validation
            images, where that is not about even.
        per_batch: Rows in a batch under "id_rows"; not given, `outliers.per_batch`.
    """

    use: list[Literal["audit", "id_rows", "augment"]] = ["audit"]
    count: Positive | None = None
    audit_count: Annotated[int, Field(ge=2, le=10**9)] = 1000
    per_batch: Positive | None = None

    @property
    def trains(self) -> bool:
        """Whether the classifier learns from them."""
        return "id_rows" in self.use or "augment" in self.use

    @model_validator(mode="after")
    def _check(self):
        if len(set(self.use)) != len(self.use):
            raise ValueError("use: a purpose is listed twice")
        if {"id_rows", "augment"} <= set(self.use):
            raise ValueError("use: 'id_rows' and 'augment' both train on the same images; keep one")
        return self


def _known(name: Any) -> str:
    words = [*registry.room("outliers"), *registry.announced("outliers")]
    if not isinstance(name, str) or (":" not in name and name not in words):
        raise PydanticKnownError("literal_error", {"expected": ", ".join(f"'{one}'" for one in words)})
    table_of(name)
    return name


def table_of(name: str) -> str:
    """The table of a recipe that holds the options of an outlier source.

    Args:
        name: The source's, as `outliers.use` has it.

    Raises:
        UserError: there is no such source, or it is none.
    """
    entry = registry.find("outliers", name)
    if entry.package and not {"OutlierSource", "FeatureSource"} & set(entry.bases):
        raise UserError(f"{name!r} is no outlier source; derive it from kood.outliers.OutlierSource or FeatureSource")
    taken = entry.name in _Outliers.model_fields or hasattr(_Outliers, entry.name)
    # Under this name the key of a classifier has the outliers that are images.
    if entry.package and (taken or (entry.name == "images" and "FeatureSource" in entry.bases)):
        raise UserError(f"{name!r} would have the table outliers.{entry.name}, which means something else; rename it")
    return entry.name


#: A name of `kood list outliers`, or `package.module:Class`.
_Source = Annotated[
    str, BeforeValidator(_known),
    WithJsonSchema({"anyOf": [{"enum": list(registry.room("outliers"))}, {"type": "string"}]}, mode="validation"),
]  # fmt: skip


class _Outliers(Section):
    use: list[_Source] = []
    exposure: str = "outlier_exposure"
    target: Literal["uniform", "parents"] = "uniform"
    weight: Annotated[float, Field(ge=0.0, le=1000.0)] = 0.5
    begin: Share = 0.0
    reach: Literal["all", "head"] = "all"
    per_batch: Positive = 64
    mix: Literal["none", "linear", "cutmix"] = "none"
    mix_alpha: Annotated[float, Field(gt=0.0, le=1000.0)] = 1.0
    amplitude: Literal["own", "swapped"] = "own"
    count: Positive = 1500

    @property
    def exposes(self) -> bool:
        """Whether the classifier sees outliers at all."""
        return bool(self.use) and self.weight > 0

    @property
    def sources(self) -> dict[str, Any]:
        """The sources in use, by the names of their tables."""
        return {table: getattr(self, table) for table in map(table_of, self.use)}

    @property
    def tables(self) -> dict[str, Any]:
        """All sources that there are settings of, in use or not, by the names of their tables."""
        return {name: found for name in type(self).model_fields if hasattr(found := getattr(self, name), "smoke")}

    def named(self, table: str) -> str:
        """What `use` calls the source of a table."""
        return next(name for name in self.use if table_of(name) == table)

    @property
    def drawn(self) -> dict[str, Any]:
        """The sources in use that draw images before training, `kood.outliers.OutlierSource` by name."""
        return {table: source for table, source in self.sources.items() if hasattr(source, "draw")}

    @property
    def layers(self) -> dict[str, Any]:
        """The sources in use that draw features during training, `kood.outliers.FeatureSource` by name."""
        return {table: source for table, source in self.sources.items() if hasattr(source, "layer")}

    def needs(self, what: str) -> bool:
        """Whether a source in use is to be given something, see `kood.outliers`."""
        return any(what in source.needs for source in self.drawn.values())

    def count_of(self, source: str) -> int:
        """How many images the source of a table draws."""
        return getattr(self, source).count or self.count

    @model_validator(mode="wrap")
    @classmethod
    def _with_tables(cls, value, handler):
        """A source from outside brings its own table, which the model has only once the source is known."""
        if cls is not Outliers or not isinstance(value, dict):
            return handler(value)
        used = value["use"] if isinstance(value.get("use"), list) else []
        others = [name for name in used if isinstance(name, str) and ":" in name]
        announced = registry.announced("outliers")
        others += [name for name in announced if name in used or name in value]
        if not others:
            return handler(value)
        return _with(tuple(dict.fromkeys(others))).model_validate(value)

    @model_validator(mode="after")
    def _check(self):
        if len(set(map(table_of, self.use))) != len(self.use):
            raise ValueError("use: a source is listed twice")
        for table, source in self.sources.items():
            if source is None:
                raise ValueError(f"use names {table!r}, but there is no [outliers.{table}] that says which images")
            source.check_signature()
        if len(self.layers) > 1:
            raise ValueError(f"use: {' and '.join(map(repr, self.layers))} each draw features as the classifier is "
                             "trained, which follows one such source; keep one")  # fmt: skip
        loss = self._loss
        if loss.package and loss.parameters[:1] not in (("logits",), ("cosines",)):
            raise ValueError(f"exposure: {self.exposure!r} is no loss of outliers, since its first parameter is "
                             "neither logits nor cosines")  # fmt: skip
        if loss.package and (others := [name for name in loss.required[1:] if name != "labels"]):
            raise ValueError(f"exposure: {self.exposure!r} asks for {others[0]!r}; a loss of outliers is given labels "
                             "beside its first parameter")  # fmt: skip
        if not loss.package and not loss.name.endswith("_exposure"):
            raise ValueError(
                f"exposure: {self.exposure!r} is not an exposure; {registry.nearest(self.exposure, _exposures())}"
            )
        self._check_shares()
        return self

    @property
    def _loss(self) -> registry.Entry:
        return registry.find("losses", self.exposure, "exposure")

    @property
    def acts_on_cosines(self) -> bool:
        """Whether the exposure takes cosines and not logits."""
        return self._loss.parameters[:1] == ("cosines",)

    def _check_shares(self) -> None:
        """Whether what asks for shares of a class can have them."""
        for name, asked, plain in (("mix", self.mix, "none"), ("target", self.target, "uniform")):
            if self.use and asked != plain and "labels" not in self._loss.parameters:
                able = [loss for loss in _exposures() if "labels" in registry.room("losses")[loss].parameters]
                raise ValueError(
                    f"{name} = {asked!r} asks for shares of a class, which exposure {self.exposure!r} cannot; take "
                    f"{' or '.join(able)}, or {name} = {plain!r}"
                )
        if self.mix != "none" and self.use and not self.drawn:
            raise ValueError(
                f"mix = {self.mix!r} mixes images, and {' and '.join(self.use)} outliers are none; name another source "
                "in use, or take mix = 'none'"
            )


def _exposures() -> list[str]:
    return [name for name in registry.room("losses") if name.endswith("_exposure")]


def _tables(names: tuple[str, ...]) -> dict[str, Any]:
    """A table for each source; one that cannot do without a setting is not there unless it is given."""
    tables: dict[str, Any] = {}
    for name, table in zip(names, map(table_of, names), strict=True):
        source = registry.obtain("outliers", name)
        needy = any(one.is_required() for one in source.model_fields.values())
        tables[table] = (Optional[source], None) if needy else (source, source())  # noqa: UP045
    return tables


@functools.cache
def _with(names: tuple[str, ...]) -> type["Outliers"]:
    """The table `outliers` with one more table for each source that is not kood's own."""
    return create_model("Outliers", __base__=Outliers, __doc__=_DOC, **_tables(names))  # type: ignore[call-overload]


_DOC = """What the classifier is exposed to, and how.

Attributes:
    use: Which of the sources of `kood list outliers`, or one of another package, "package.module:Class"; empty for no
        exposure. Each has a table of its own name, and the latter of its class's in small letters with underscores.
    exposure: The loss on outlier rows (`kood list losses`, those that end in `_exposure`).
    target: What outlier rows are taught: equal probabilities ("uniform"), or the shares of the classes that they
        are mixtures of ("parents"; what is no mixture is still taught the former). For `outlier_exposure` alone.
    weight: Its weight beside the cross-entropy.
    begin: Share of the training after which exposure begins.
    reach: Whether its gradient moves the whole network ("all") or the head alone ("head").
    per_batch: Outlier rows in a batch.
    mix: Mix every outlier image with a training image of its batch, pixel by pixel ("linear") or as a rectangle in
        it ("cutmix"), and ask of the classifier the share of its class, the rest spread evenly over all classes
        (MixOE, arXiv 2106.03917); "none" leaves outliers as they are.
    mix_alpha: The shares are drawn from Beta(mix_alpha, mix_alpha).
    amplitude: Leave the Fourier amplitudes of outlier images as they are ("own"), or give each image those of a
        training image ("swapped"; amplitude-phase recombination, arXiv 2108.08487), so that smoothness and contrast
        do not tell outliers from training images. `noise` keeps its own in either case.
    count: How many images each source makes, where it does not say itself.
"""

if TYPE_CHECKING:

    class Outliers(_Outliers):
        def __getattr__(self, source: str) -> Any: ...

else:
    Outliers = create_model("Outliers", __base__=_Outliers, __doc__=_DOC, **_tables(tuple(registry.room("outliers"))))
