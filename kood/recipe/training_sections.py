"""The tables of a recipe that say how the classifier is trained."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from kood.section import Augmentations, Positive, Rate, Section, Share, by_name

__all__ = ["Auxiliary", "FineTuning", "Train"]

#: How much a class counts beside the others.
Weight = Annotated[float, Field(gt=0.0, le=1e6)]
Precision = Literal["float32", "mixed_bfloat16", "mixed_float16"]


class Auxiliary(Section):
    """What the classifier learns beside its classes.

    Attributes:
        name: "rotation": by how much an image is turned, 0, 90, 180 or 270 degrees (arXiv 1906.12340); every
            in-distribution image of a batch then passes in all four, outliers as they stand. "none": nothing.
        weight: Of its cross-entropy, the mean over the four.
    """

    name: Literal["none", "rotation"] = "none"
    weight: Annotated[float, Field(gt=0.0, le=1000.0)] = 0.5


_AUXILIARY = {"anyOf": [{"type": "string"}, Auxiliary.model_json_schema()]}


class Train(Section):
    """How the classifier is trained.

    Attributes:
        epochs: Passes over the training images.
        batch_size: In-distribution rows in a batch.
        optimizer: "adamw" or "sgd" (Nesterov momentum 0.9).
        learning_rate: Peak of the cosine-decayed rate.
        warmup: Share of the steps in which the rate rises linearly to its peak.
        weight_decay: Decoupled weight decay. Under "sgd" 0.005 is what 0.0005 is where it is added to the gradient, as
            torch's SGD does: there momentum 0.9 makes ten times as much of it.
        augment: Augmentations of the classifier's rows, outliers included, where they differ from `data.augment`.
        auxiliary: What it learns besides, by name or as a table: "rotation", { name = "rotation", weight = 0.5 }:
            how much an image is turned (arXiv 1906.12340). Each in-distribution image of a batch passes in four
            rotations, outliers as they stand, so a step takes up to four times as long. For square images; under
            `classifier.train = "last"` in the second part.
        class_weight: How much the images of each class count in the cross-entropy: "balanced" for n / (K n_c), with n_c
            of the n training images in class c, so that a rare class counts as much as a frequent one; or a table
            {class name = weight} of all K classes, which is scaled so that the mean over the training images is 1. Not
            given, all images count alike. Exposure to outliers is left as it is.
        clip_norm: Global norm to which gradients are clipped; not given, they are not.
        ema: Decay of the weights' moving average; not given, there is none. Statistics of batches and what a head
            keeps (AdaCos' scale, CIDER's prototypes) are not averaged. The average begins with the first weights, so of
            n steps it leaves about ema^n of them; where that is more than 5%, a warning says so.
        precision: Arithmetic of the network in training. Heads, losses and scores are float32 always, and so is the
            network when it is measured and served.
        steps_per_execution: Training steps run in one call of the compiled function; on several devices under
            TensorFlow always one.
        devices: How many share the work of the classifier, the diffusion model and its samples, each an equal run of a
            batch's rows: a number, over all processes, or "auto" for all accelerators, else one. The number of devices
            changes results by rounding alone, as another machine does; a run may go on with another number.
        resident: Whether the classifier and the diffusion model keep their training images on the device, so that a
            step waits for no pixels: "auto" on an accelerator, true on a CPU too; never with several devices, more than
            2 GiB of images, `outliers.mix`, or augmentations other than flip and crop. It decides no result.
    """

    epochs: Positive = 30
    batch_size: Positive = 64
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Rate = 2e-3
    warmup: Share = 0.0
    weight_decay: Annotated[float, Field(ge=0.0, le=1.0)] = 1e-4
    augment: Augmentations | None = None
    auxiliary: Annotated[Auxiliary, BeforeValidator(by_name), WithJsonSchema(_AUXILIARY)] = Auxiliary()
    class_weight: Literal["balanced"] | Annotated[dict[str, Weight], Field(min_length=1)] | None = None
    clip_norm: Rate | None = None
    ema: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    precision: Precision = "float32"
    steps_per_execution: Annotated[int, Field(ge=1, le=10_000)] = 1
    devices: Literal["auto"] | Annotated[int, Field(ge=1, le=100_000)] = "auto"
    resident: Literal["auto"] | bool = "auto"


class FineTuning(Section):
    """The second part of `classifier.train = "last"`, on pixels; what is not given is as in `train`.

    Attributes:
        epochs: Passes over the training images; 0 leaves the classifier as the first part made it.
        batch_size: In-distribution rows in a batch.
        learning_rate: Peak of the cosine-decayed rate of the head; the backbone's is `classifier.backbone_rate` of it.
        warmup: Share of the steps in which the rate rises linearly to its peak.
        optimizer: "adamw" or "sgd".
        weight_decay: Decoupled weight decay.
        augment: Augmentations of all rows.
        clip_norm: Global norm to which gradients are clipped.
        ema: Decay of the weights' moving average.
    """

    epochs: Annotated[int, Field(ge=0, le=10**9)] = 4
    batch_size: Positive = 32
    learning_rate: Rate = 2e-4
    warmup: Share = 0.1
    optimizer: Literal["adamw", "sgd"] | None = None
    weight_decay: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    augment: Augmentations | None = None
    clip_norm: Rate | None = None
    ema: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
