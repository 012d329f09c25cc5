"""The tables of a recipe: every setting, its default, its range, and what contradicts it."""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_serializer,
    field_validator,
    model_validator,
)

from kood import registry, specs
from kood.section import ImageShape, Positive, Rate, Section, Share

__all__ = ["SLUG", "Attach", "Budget", "Classifier", "Diffusion", "Evaluate", "Head", "Seed", "Serve"]

Seed = Annotated[int, Field(ge=0, lt=2**31)]
#: What an option of a backbone, a denoiser or a head may be.
Option = bool | int | float | str | list[int] | list[float] | list[str]


def _score(value: Any) -> Any:
    return specs.canonical(value) if isinstance(value, str | dict) else value


def _score_or_auto(value: Any) -> Any:
    return "auto" if isinstance(value, str) and value.lower() == "auto" else _score(value)


_TABLE = {
    "type": "object",
    "properties": {"name": {"type": "string"}},
    "required": ["name"],
    "additionalProperties": {"type": ["boolean", "number", "string"]},
}
_SCHEMA = WithJsonSchema({"anyOf": [{"type": "string"}, _TABLE]}, mode="validation")
#: A score and its options, `"knn:k=10"` or `{ name = "knn", k = 10 }`; everything after the recipe sees the first.
Score = Annotated[str, BeforeValidator(_score), _SCHEMA]
#: The same, or "auto".
Headline = Annotated[str, BeforeValidator(_score_or_auto), _SCHEMA]

#: Training steps of the diffusion model where the recipe says nothing.
DIFFUSION_STEPS = 2000
SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def _check_options(room: str, name: str, options: dict[str, Any]) -> None:
    entry = registry.find(room, name, "name")
    for option, value in options.items():
        if option not in entry.options:
            known = registry.nearest(option, entry.options)
            raise ValueError(f"{option} (found {value!r}): {entry.name!r} takes no {option!r}; {known}")


class Diffusion(Section):
    """The class-conditional diffusion model that label mixup samples from.

    Attributes:
        image_shape: (height, width, channels) of what it learns from and draws; `data.image_shape` where not given.
            Training images are made smaller for it, and what it draws is enlarged.
        denoiser: The network (`kood list denoisers`).
        options: Its own settings (width, depth, ...).
        schedule: Noise schedule.
        num_steps: Length of the schedule.
        prediction: What the network predicts: the noise ("epsilon") or the velocity ("v", arXiv 2202.00512).
        label_dropout: Share of training rows without a label, for classifier-free guidance (arXiv 2207.12598).
        min_snr: Limit gamma of the signal-to-noise ratio that weighs each training row (min-SNR, arXiv 2303.09556; 5 in
            the paper); every row weighs 1 where not given.
        steps: How long to train, in steps, rounded up to whole epochs of one length (at most 250 steps); 2000 where
            neither this, `epochs` nor `minutes` is given, and only one of them may be.
        epochs: The same in passes over the training images; half a pass is 0.5.
        minutes: The same in minutes of wall-clock time, without compilation. The rate then falls with the time, so two
            such trainings are never quite the same; steps and epochs repeat bit for bit.
        batch_size: Images a training step.
        learning_rate: Peak of the rate, which falls to 0 along a half cosine over the steps, epochs or minutes.
        ema: Decay of the weights' moving average, which sampling uses.
        clip_norm: Global norm to which gradients are clipped.
        precision: Arithmetic of the network; losses are float32 always. "auto" measures a few steps in float32 and in
            bfloat16 before training and takes the faster.
        seed: Seed of this training alone, so that classifiers of several seeds may share one diffusion model; the
            recipe's where not given. What is sampled from it follows the recipe's in either case.
    """

    image_shape: ImageShape | None = None
    denoiser: str = "mlp"
    options: dict[str, Option] = {}
    schedule: Literal["linear", "cosine"] = "cosine"
    num_steps: Annotated[int, Field(ge=2, le=10_000)] = 1000
    prediction: Literal["epsilon", "v"] = "epsilon"
    label_dropout: Share = 0.1
    min_snr: Annotated[float, Field(gt=0.0, le=1e6)] | None = None
    steps: Positive | None = None
    epochs: Annotated[float, Field(gt=0.0, le=1e6)] | None = None
    minutes: Annotated[float, Field(gt=0.0, le=1e6)] | None = None
    batch_size: Positive = 128
    learning_rate: Rate = 2e-3
    ema: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.995
    clip_norm: Rate | None = 1.0
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16", "auto"] = "float32"
    seed: Seed | None = None

    @property
    def budget(self) -> tuple[Literal["steps", "epochs", "minutes"], float]:
        """How long to train: the unit and how many of it."""
        if self.minutes is not None:
            return "minutes", self.minutes
        return ("epochs", self.epochs) if self.epochs is not None else ("steps", self.steps or DIFFUSION_STEPS)

    @model_validator(mode="after")
    def _check(self):
        given = {unit: getattr(self, unit) for unit in ("steps", "epochs", "minutes")}
        found = [f"{unit} = {value}" for unit, value in given.items() if value is not None]
        if len(found) > 1:
            raise ValueError(f"found {' and '.join(found)}; give only one of steps, epochs and minutes")
        _check_options("denoisers", self.denoiser, self.options)
        return self


class Head(Section, extra="allow"):
    """The head; what is not given has the head's own default.

    Attributes:
        name: `kood list heads`.
        margin: Radians (ArcFace, SubCenterArcFace, CurricularFace), cosine units (CosFace), both in one (AdaFace), a
            multiplier (SphereFace).
        scale: Factor on the cosines, or "auto" for sqrt(2) ln(K-1).
        sub_centers: Prototypes a class (SubCenterArcFace).
        momentum: Share of the old value in the running means of CurricularFace, AdaFace and CIDER.
        h: How strongly AdaFace's margin follows the length of a feature.
        temperature: Divisor of the normalized logits (LogitNorm), the normalized features (T2FNorm) or the cosines
            (CIDER).
        dispersion_weight: Weight of what drives CIDER's prototypes apart.
    """

    # Options of other heads are theirs to name and to judge; `_check` refuses what a head does not take.

    name: str = "softmax"
    margin: Annotated[float, Field(ge=0.0, le=100.0)] | None = None
    scale: Annotated[float, Field(gt=0.0, le=10_000.0)] | Literal["auto"] | None = None
    sub_centers: Annotated[int, Field(ge=1, le=1000)] | None = None
    momentum: Share | None = None
    h: Rate | None = None
    temperature: Rate | None = None
    dispersion_weight: Annotated[float, Field(ge=0.0, le=1e6)] | None = None

    @field_validator("*", mode="wrap")
    @classmethod
    def _as_koods(cls, value: Any, handler: Any, info: ValidationInfo) -> Any:
        """The types and ranges above are those of kood's heads; another's may call an option likewise."""
        name = info.data.get("name", "softmax")  # The first field; of one that is none `_check` tells.
        is_own = info.field_name == "name" or ":" not in name and name.lower() in registry.room("heads")
        return handler(value) if is_own else value

    @field_serializer("*")
    def _as_it_is(self, value: Any) -> Any:
        return value

    def options(self) -> dict[str, Any]:
        """The arguments that the recipe gives beside the number of classes."""
        return {key: value for key, value in self.model_dump(exclude={"name"}).items() if value is not None}

    @model_validator(mode="after")
    def _check(self):
        _check_options("heads", self.name, self.options())
        return self


class Classifier(Section):
    """The network under the head.

    Attributes:
        backbone: `kood list backbones`.
        options: Its own settings.
        train: What of it learns: "all", or the "head" alone, with the neck if there is one. The backbone is then frozen
            as it comes, each image passes it once, and everything after it is trained on the features it gave. "last"
            is both: the head first and then, from there, all by `fine_tuning`.
        backbone_rate: The backbone's rate as a share of that of the head and the neck, where the backbone is trained.
        frozen_statistics: Whether a backbone that is trained keeps the statistics of its batch normalization, as is
            usual for small sets or batches; its dropout then rests too.
        neck: Unless under "all", the units of a dense layer with batch normalization and ReLU between the features and
            the head, so that what is trained can bend; not given, there is none.
        views: Where the head learns from features, how many augmented views (`data.augment`) of each training image it
            learns from besides the image itself.
    """

    backbone: str = "small_cnn"
    options: dict[str, Option] = {}
    train: Literal["all", "head", "last"] = "all"
    backbone_rate: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    frozen_statistics: bool = False
    neck: Annotated[int, Field(ge=1, le=100_000)] | None = None
    views: Annotated[int, Field(ge=0, le=1000)] = 0

    @property
    def is_frozen(self) -> bool:
        """Whether the backbone stays as it comes."""
        return self.train == "head"

    @property
    def begins_frozen(self) -> bool:
        """Whether the head learns from features that the backbone gave as it came."""
        return self.train != "all"

    @model_validator(mode="after")
    def _check(self):
        _check_options("backbones", self.backbone, self.options)
        for name, value in (("neck", self.neck), ("views", self.views)):
            if value and not self.begins_frozen:
                raise ValueError(
                    f'{name} = {value}: only what stands after a frozen backbone has it; add train = "head"'
                )
        if self.is_frozen and (self.backbone_rate != 1.0 or self.frozen_statistics):
            name = "frozen_statistics" if self.frozen_statistics else "backbone_rate"
            raise ValueError(f'{name}: under train = "head" no backbone learns; remove it, or set train = "last"')
        return self


class Attach(Section):
    """A classifier that exists, in place of one that is trained: what `kood attach` writes.

    Attributes:
        model: Its `.keras` file.
        classes: A file that says which class each output of the model is: one name a line in the order of the outputs,
            or JSON, a list of names or {name = number}. Not given, classes are matched by the numbers that their
            folders' names begin with where all do, else in alphabetical order, as Keras numbers folders: by
            their names as the disk has them, where é may be an e and an accent.
        preprocess: What the model takes in place of pixels of 0..255: "none", these; "0..1"; "-1..1"; "caffe", BGR less
            ImageNet's means; "torch", 0..1 normalized by ImageNet's means and deviations; or "module:function".
        features: The layer whose outputs are the features; the input of the last dense layer where not given.
        imports: Modules to import first, for layers and functions of the user's own; Python has to find them.
    """

    model: str
    classes: str | None = None
    preprocess: str = "none"
    features: str | None = None
    imports: list[str] = []


class Evaluate(Section):
    """What is measured.

    Attributes:
        scores: `kood list scores`, by name or with options, "knn:k=10" or { name = "knn", k = 10 }; not given, every
            score the head allows, less those of `kood.scores.ON_REQUEST`.
        headline: The score of the summary, the threshold and the SavedModel, measured even if it is named here alone;
            "auto" takes the one that best tells validation images from `data.validation_ood` or, where there is none,
            from pixel mixups and patch shuffles of validation images and from drawn pictures, so that no
            out-of-distribution test image is looked at.
        tune: Whether each score that is named without options, or with its defaults, is measured under those of its
            usual values that best tell the same validation images apart; `kood list scores` shows which are tried.
        baseline: Train the same classifier without outliers as well, where there are any, and warn if exposure made the
            detector worse on validation images.
        batch_size: Images a forward pass, at most; fewer where they are larger than 32 x 32.
    """

    scores: list[Score] | None = Field(default=None, min_length=1)
    headline: Headline = "auto"
    tune: bool = False
    baseline: bool = True
    batch_size: Positive = 512

    @model_validator(mode="after")
    def _check(self):
        if self.headline != "auto" and self.scores is not None and self.headline not in self.scores:
            raise ValueError(f"headline: {self.headline!r} is not among scores ({', '.join(self.scores)})")
        return self


class Serve(Section):
    """The SavedModel.

    Attributes:
        export: Write one.
        accept: Share of in-distribution images that the threshold accepts.
        by_class: A threshold for each class that an image may be labelled as, so that the accepted share is promised
            for each of them and not over all alone (Mondrian conformal prediction). Classes that too few calibration
            images are labelled as share one.
        undecodable: What the signature `encoded` makes of a file that cannot be decoded: "error", which fails the
            request and names its index, or "mark", which marks its row and answers the others.
    """

    export: bool = True
    accept: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.95
    by_class: bool = False
    undecodable: Literal["error", "mark"] = "error"


class Budget(Section):
    """How long the run may take. Without `minutes` it takes what it takes.

    Lengths that the recipe gives are then upper bounds. The diffusion model and the samples are cut to their shares,
    and so is the classifier of a recipe without a matrix. A classifier of a matrix that will not be finished is left
    out, as is a fold of `data.hold_out` that there is no time for, and the report names it.

    Attributes:
        minutes: Of wall-clock time, from the start of the command on.
        diffusion: Share of them that training the diffusion model may take.
        sampling: Share of them that sampling from it may take, for each seed.
    """

    minutes: Annotated[float, Field(gt=0.0, le=1e6)] | None = None
    diffusion: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.4
    sampling: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1

    @model_validator(mode="after")
    def _check(self):
        if self.diffusion + self.sampling >= 1.0:
            raise ValueError(f"diffusion and sampling take {self.diffusion + self.sampling:.0%} of the time; leave the "
                             "classifiers some")  # fmt: skip
        return self


class Report(Section):
    """How results are laid out. Nothing is made again when this changes.

    Attributes:
        baseline: Which row of a matrix the others are compared with, seed by seed: values of its keys as the table
            prints them, such as { outliers = "none" }; a key that is not named stays as each row has it.
        leaderboard: Lay every row of a matrix by every score out in one table, the best near AUROC first, with what
            training and decision cost; that decisions take is measured for it.
        tensorboard: Write TensorBoard's event files of every training under `logs/` of the run's folder, as it goes.
    """

    baseline: dict[str, str] = {}
    leaderboard: bool = False
    tensorboard: bool = False
