"""The tables of a recipe that several rooms have in common, and what they are made of."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from kood import registry

__all__ = [
    "Augmentations", "Columns", "ImageShape", "ImageSource", "Positive", "Rate", "Sampling", "Section", "Share",
    "by_name",
]  # fmt: skip

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[int, Field(ge=1, le=10**9)]
#: Height, width, channels.
ImageShape = Annotated[list[Annotated[int, Field(ge=1, le=1024)]], Field(min_length=3, max_length=3)]
Rate = Annotated[float, Field(gt=0.0, le=100.0)]


def _augmentations(names: list[str]) -> list[str]:
    for name in names:
        registry.find("augmentations", name)
    return names


#: Names of `kood list augmentations`.
Augmentations = Annotated[list[str], AfterValidator(_augmentations)]


class Section(BaseModel):
    """A table of the recipe: unknown keys and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def by_name(value: Any) -> Any:
    """The table that a name stands for."""
    return {"name": value} if isinstance(value, str) else value


class Columns(Section):
    """How the first line of a table calls its columns, where kood does not find them by itself.

    Attributes:
        file: The image files.
        label: The names of the classes.
        split: The part of each image.
    """

    file: str | None = None
    label: str | None = None
    split: str | None = None


class ImageSource(Section):
    """Where images come from: a data set that kood knows (`kood list datasets`) and which part of it.

    Attributes:
        source: The data set's name.
        path: A folder or file, for those that read one; `~` and `$VARIABLES` are expanded.
        root: The folder that the files of an `image_list` or a `table` are relative to.
        columns: How a `table` calls its columns.
        name: Which one, for a source that has several (`tfds`).
        classes: Which classes, by number or by name; all where not given.
        count: How many images, drawn at random with the split seed.
        split: "train", "validation" or "test", where the set has it; out-of-distribution sets take "test" by
            themselves.
        max_bad_images: How many files may be left out because they cannot be read, for sources that read image files;
            one too many stops the run before any training.
    """

    source: str
    path: str | None = None
    root: str | None = None
    columns: Columns | None = None
    name: str | None = None
    classes: list[int | str] | None = Field(default=None, min_length=1)
    count: Positive | None = None
    split: Literal["train", "validation", "test"] | None = None
    max_bad_images: Annotated[int, Field(ge=0)] | None = None


class Sampling(Section):
    """How images are drawn from the diffusion model.

    Attributes:
        guidance: Classifier-free guidance w in uncond + w (cond - uncond), above 0; 1 is none, which Ho and Salimans
            (arXiv 2207.12598) call w = 0. Another one needs `diffusion.label_dropout` above 0.
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
        if self.guidance == 0:
            raise ValueError("guidance = 0 draws every image without its classes; no guidance is 1")
        return self

    def check_steps(self, key: str, num_steps: int) -> None:
        """Refuses more sampling steps than the schedule has.

        Args:
            key: Where the recipe has this table.
            num_steps: Length of the schedule.

        Raises:
            ValueError: there are more, or more than there are below the level of an image start.
        """
        if self.sampling_steps > num_steps:
            raise ValueError(f"{key}.sampling_steps ({self.sampling_steps}) is above diffusion.num_steps ({num_steps})")
        below = round(self.level * (num_steps - 1)) + 1
        if self.start == "image" and self.sampling_steps > below:
            raise ValueError(
                f"{key}.sampling_steps ({self.sampling_steps}) is above the {below} steps of the schedule below level "
                f"{self.level}; lower it, or raise {key}.level"
            )
