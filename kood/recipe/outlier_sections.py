"""The tables of a recipe that say what the classifier is exposed to, and how the diffusion model is sampled."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kood import registry
from kood.recipe.data_sections import Source
from kood.recipe.sections import Positive, Section, Share

__all__ = ["SOURCES", "LabelMixup", "Outliers", "PureSamples", "Sampling"]

Weight = Annotated[float, Field(ge=0.0, lt=1.0)] | Literal["uniform", "beta"]
LabelWeight = Annotated[float, Field(ge=-2.0, lt=1.0)] | Literal["uniform", "beta"]
Alpha = Annotated[float, Field(gt=0.0, le=1000.0)]
Confidence = Annotated[float, Field(ge=0.0, le=1.0)]
SourceName = Literal[
    "label_mixup", "pixel_mixup", "cutmix", "noise", "patch_shuffle", "amplitude_swap", "virtual", "real"
]
#: Where outliers come from.
SOURCES: tuple[str, ...] = SourceName.__args__  # type: ignore[attr-defined]


class Sampling(Section):
    """How images are drawn from the diffusion model.

    Attributes:
        guidance: Classifier-free guidance w in uncond + w (cond - uncond); 1 is none.
        sampler: `kood list samplers`.
        sampling_steps: Steps of the sampler.
        clip: Clip the predicted clean image to [-clip, clip] at each step; 0 clips nothing.
        start: From pure noise ("noise"), or from a training image of the first class, noised to `level` ("image").
        level: Where on the schedule an image start begins, as a share of its length: near 0 the image stays as it was,
            at 1 nothing of it is left.
        batch_size: Images sampled at a time.
    """

    guidance: Annotated[float, Field(ge=0.0, le=20.0)] = 1.0
    sampler: str = "dpm_solver"
    sampling_steps: Annotated[int, Field(ge=1, le=10_000)] = 15
    clip: Annotated[float, Field(ge=0.0, le=100.0)] = 1.0
    start: Literal["noise", "image"] = "noise"
    level: Annotated[float, Field(gt=0.0, le=1.0)] = 0.6
    batch_size: Positive = 256

    @model_validator(mode="after")
    def _check_sampler(self):
        registry.find("samplers", self.sampler, "sampler")
        return self


class LabelMixup(Sampling):
    """Outliers sampled from the diffusion model under a mixture of class conditions.

    Attributes:
        count: How many images; not given, `outliers.count`.
        classes: How many classes a mixture has, where no groups are named.
        pairs: Which classes meet, where no groups are named: any, at random ("random"); every pair equally often
            ("all"); or the pairs that a classifier trained on real images confuses most ("confused").
        groups: The classes to mix, by number or name, two or more in each group; a mixture draws one group.
        weight: Share of the first class: a number, "uniform", or "beta" (Beta(alpha, alpha)). With more than two
            classes the rest is shared out equally; "uniform" and "beta" then mean Dirichlet weights. With an image
            start the first class is the image's own; 0 then leaves only the others, and a number below 0 turns away
            from it besides.
        alpha: Parameter of the Beta or Dirichlet distribution.
        mix: Mix the label vectors ("condition") or the network's predictions under each label ("prediction").
        push: How far each step moves the image, in units of [-1, 1], away from what a classifier trained on real images
            knows (classifier guidance along its energy); 0 is none.
        confidence: [low, high]: keep only images whose most probable class, by a classifier trained on real images, has
            a probability in this range; more are drawn until there are enough.
    """

    count: Positive | None = None
    classes: Annotated[int, Field(ge=2, le=100)] = 2
    pairs: Literal["random", "all", "confused"] = "random"
    groups: list[Annotated[list[int | str], Field(min_length=2)]] | None = Field(default=None, min_length=1)
    weight: LabelWeight = 0.5
    alpha: Alpha = 1.0
    mix: Literal["condition", "prediction"] = "condition"
    push: Annotated[float, Field(ge=0.0, le=2.0)] = 0.0
    confidence: Annotated[list[Confidence], Field(min_length=2, max_length=2)] | None = None

    @property
    def needs_judge(self) -> bool:
        """Whether a classifier trained on real images has a say in these outliers."""
        return self.confidence is not None or self.push > 0 or (self.pairs == "confused" and self.groups is None)

    @model_validator(mode="after")
    def _check(self):
        for group in self.groups or []:
            if len({str(name) for name in group}) != len(group):
                raise ValueError(f"groups: {group} names a class twice")
        if self.groups is not None and self.pairs != "random":
            raise ValueError(f"pairs = {self.pairs!r} and groups both say which classes meet; keep one")
        if self.pairs != "random" and self.classes != 2:
            raise ValueError(f"pairs = {self.pairs!r} mixes two classes, but classes is {self.classes}")
        if self.weight == 0.0 and self.start != "image":
            raise ValueError("weight = 0 leaves the first class out; that is meant for start = 'image'")
        if self.confidence is not None and self.confidence[0] >= self.confidence[1]:
            raise ValueError(f"confidence: [low, high] needs low < high, found {self.confidence}")
        return self


class PureSamples(Sampling):
    """Images sampled from the diffusion model under one class each.

    Attributes:
        use: "audit": a test set of the audit, among others of whether the detector flags whatever is generated.
            "id_rows": labelled rows on the in-distribution side of every batch, so that being generated tells
            nothing. "augment": more training images, beside the real ones, outliers or not.
        count: How many images to train with; not given, `outliers.count`.
        audit_count: How many others for the audit.
        per_batch: Rows in a batch under "id_rows"; not given, `outliers.per_batch`.
    """

    use: list[Literal["audit", "id_rows", "augment"]] = ["audit"]
    count: Positive | None = None
    audit_count: Positive = 1000
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


def _refuse_pure(section):
    if section.weight == 0.0:
        raise ValueError("weight = 0 leaves the first image out: what remains is a plain training image, no outlier")
    return section


class PixelMixup(Section):
    """Outliers that are pixel averages of two training images of different classes (arXiv 1710.09412).

    Attributes:
        count: How many images; not given, `outliers.count`.
        weight: Share of the first image: a number, "uniform" or "beta".
        alpha: Parameter of the Beta distribution.
    """

    count: Positive | None = None
    weight: Weight = 0.5
    alpha: Alpha = 1.0

    _check = model_validator(mode="after")(_refuse_pure)


class CutMix(Section):
    """Outliers that are a training image with a rectangle of another of a different class (arXiv 1905.04899).

    Attributes:
        count: How many images; not given, `outliers.count`.
        weight: Share of the area that the first image keeps: a number, "uniform" or "beta".
        alpha: Parameter of the Beta distribution.
    """

    count: Positive | None = None
    weight: Weight = 0.5
    alpha: Alpha = 1.0

    _check = model_validator(mode="after")(_refuse_pure)


class Noise(Section):
    """Outliers that are plain noise: the cheapest control.

    Attributes:
        count: How many images; not given, `outliers.count`.
        kind: Distribution of each pixel.
        scale: Standard deviation for Gaussian noise, half-width for uniform, in units of the [-1, 1] range.
    """

    count: Positive | None = None
    kind: Literal["gaussian", "uniform"] = "gaussian"
    scale: Annotated[float, Field(gt=0.0, le=10.0)] = 0.6


class PatchShuffle(Section):
    """Outliers that are training images cut into patches that change places.

    Attributes:
        count: How many images; not given, `outliers.count`.
        grid: Patches along each side.
    """

    count: Positive | None = None
    grid: Annotated[int, Field(ge=2, le=64)] = 2


class AmplitudeSwap(Section):
    """Outliers that are training images under the Fourier amplitudes of training images of other classes: what they
    show is real, and their texture is, but not of one piece.

    Attributes:
        count: How many images; not given, `outliers.count`.
    """

    count: Positive | None = None


class Virtual(Section):
    """Outliers in feature space: unlikely draws from Gaussians fitted to the features of each class (VOS, arXiv
    2202.01197). They need no images; each step exposes the head to `outliers.per_batch` of them.

    Attributes:
        queue: Latest features kept of each class.
        candidates: Draws a class from which the unlikeliest are taken.
    """

    queue: Annotated[int, Field(ge=2, le=100_000)] = 200
    candidates: Annotated[int, Field(ge=2, le=1_000_000)] = 1000


class RealOutliers(Source):
    """Real auxiliary images, an oracle's advantage: outlier exposure as in arXiv 1812.04606.

    A source's `count` is how many images are drawn; not given, `outliers.count`, as of every other source, or all where
    there are fewer.
    """


class Outliers(Section):
    """What the classifier is exposed to, and how.

    Attributes:
        use: Which of the sources below; empty for no exposure.
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
        label_mixup: Settings of that source, and likewise `pixel_mixup`, `cutmix`, `noise`, `patch_shuffle`,
            `amplitude_swap`, `virtual` and `real`.
    """

    use: list[SourceName] = []
    exposure: str = "outlier_exposure"
    target: Literal["uniform", "parents"] = "uniform"
    weight: Annotated[float, Field(ge=0.0, le=1000.0)] = 0.5
    begin: Share = 0.0
    reach: Literal["all", "head"] = "all"
    per_batch: Positive = 64
    mix: Literal["none", "linear", "cutmix"] = "none"
    mix_alpha: Alpha = 1.0
    amplitude: Literal["own", "swapped"] = "own"
    count: Positive = 1500
    label_mixup: LabelMixup = LabelMixup()
    pixel_mixup: PixelMixup = PixelMixup()
    cutmix: CutMix = CutMix()
    noise: Noise = Noise()
    patch_shuffle: PatchShuffle = PatchShuffle()
    amplitude_swap: AmplitudeSwap = AmplitudeSwap()
    virtual: Virtual = Virtual()
    real: RealOutliers | None = None

    @property
    def exposes(self) -> bool:
        """Whether the classifier sees outliers at all."""
        return bool(self.use) and self.weight > 0

    def count_of(self, source: str) -> int:
        """How many images a source makes."""
        return getattr(self, source).count or self.count

    @model_validator(mode="after")
    def _check(self):
        if len(set(self.use)) != len(self.use):
            raise ValueError("use: a source is listed twice")
        if "real" in self.use and self.real is None:
            raise ValueError("use names 'real', but there is no [outliers.real] that says which images")
        if self.real is not None:
            registry.find("datasets", self.real.source, "real.source")
        registry.find("losses", self.exposure, "exposure")
        if not self.exposure.lower().endswith("_exposure"):
            allowed = [n for n in registry.room("losses") if n.endswith("_exposure")]
            raise ValueError(
                f"exposure: {self.exposure!r} is not an exposure; {registry.nearest(self.exposure, allowed)}"
            )
        self._check_shares()
        return self

    def _check_shares(self) -> None:
        """Whether what asks for shares of a class can have them."""
        asking = {"mix": self.mix, "target": self.target}
        plain = {"mix": "none", "target": "uniform"}
        able = [
            e.name for n, e in registry.room("losses").items() if n.endswith("_exposure") and "labels" in e.parameters
        ]
        for name, asked in asking.items():
            if self.use and asked != plain[name] and self.exposure.lower() not in able:
                raise ValueError(
                    f"{name} = {asked!r} asks for shares of a class, which exposure {self.exposure!r} cannot; take "
                    f"{' or '.join(able)}, or {name} = {plain[name]!r}"
                )
        if self.mix != "none" and self.use == ["virtual"]:
            raise ValueError(f"mix = {self.mix!r} mixes images, and virtual outliers are none; name another source in "
                             "use, or take mix = 'none'")  # fmt: skip
        weight = self.label_mixup.weight
        if self.target == "parents" and "label_mixup" in self.use and not isinstance(weight, str) and weight <= 0:
            raise ValueError(
                f"target = 'parents' needs label mixups of two classes or more, but label_mixup.weight = {weight:g}"
            )
