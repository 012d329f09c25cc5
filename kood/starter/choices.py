"""A choice for each setting of a first recipe, from the images and the machine."""

import math

import numpy as np

from kood.conformal import needed_images
from kood.errors import UserError
from kood.recipe.data_sections import HoldOut
from kood.recipe.training_sections import FineTuning
from kood.starter.images import Machine, Survey
from kood.starter.pretrained import Pretrained

__all__ = ["FEWEST", "FEWEST_EPOCHS", "FROZEN_EPOCHS", "MOST_EPOCHS", "TEST", "Choices", "left_out"]

#: A class with fewer images can hardly have its share of every part of the split and still be learned.
FEWEST = 8
#: Share of the images to test on, where there is no test folder.
TEST = 0.2
#: Calibration images to have at best; accept / (1 - accept) is what split conformal prediction needs at least.
CALIBRATION = 200
#: Accepted shares, in the order in which they are tried.
ACCEPT = (0.95, 0.9, 0.8, 0.5)
#: Passes over the features of a frozen network; more change little. Few images take more, for so many steps at least:
#: of eight photographs a class 90 steps named 73% of others right, 300 and 1,000 named 78%.
FROZEN_EPOCHS, FROZEN_STEPS = 30, 500
#: Folds of classes that are held out, and the fewest classes for it.
FOLDS, FEWEST_TO_HOLD_OUT = 5, 4
#: Proportions that differ by less are stretched; a larger share of an image than this is not cut off.
ALIKE, CUT = 1.1, 0.4
#: How many times as long an image takes in training as in a pass: EfficientNet-Lite0 on two CPU cores.
TRAINED = 5.5
#: Passes over its images of a network that is trained from nothing, at least and at most; where rotations are predicted
#: too, one takes as long as so many. In equal time more passes gave more.
FEWEST_EPOCHS, MOST_EPOCHS, ROTATIONS = 5, 100, 4
#: Images a second that a ResNet-8 trains on at 16 px, on a CPU core and on a GPU, roughly: for the number of epochs.
CPU_RATE, ACCELERATOR_RATE = 700.0, 20_000.0


class Choices:
    """What a recipe for a folder's images says, as it has it, and why: made for a machine and so many minutes.

    Args:
        minutes: About how long it may take.
        network: The pretrained network whose features are learned from; None where a backbone is trained from nothing.
        per_image: Seconds of an image in it, where that was measured.

    Attributes:
        classes: The classes to learn; `dropped` those that cannot be, by what they have.
        images: How many images the classes have, without those of a test or validation part.
        image_shape: (H, W, C), H and W whole fours; `why_shape` its reason.
        resize: How images of other proportions are brought to the shape; `why_resize` its reason.
        validation: Share of the training images, as `calibration` is.
        accept: Share of in-distribution images that the threshold accepts; `why_split` the reason of both.
        outliers: How many of each kind.
        width: The U-Net's; `backbone`, `epochs` and `batch_size` are the classifier's.
        rotation: Whether a network that is trained from nothing learns to predict rotations too.
        folds: How many times classes are held out; 0 where there are too few.
        passing: Seconds that all images take through the pretrained network; None where it is not known.
        tuning: Seconds that the network takes to be fine-tuned on the training images, likewise.
        takes: About how many minutes the run takes.

    Raises:
        UserError: fewer than two classes have images enough, or near copies in other parts leave too few.
    """

    def __init__(
        self,
        found: Survey,
        machine: Machine,
        minutes: float,
        network: Pretrained | None = None,
        per_image: float | None = None,
    ):
        self.found, self.machine, self.minutes, self.network = found, machine, minutes, network
        self.dropped = left_out(found)
        without = {name for names in self.dropped.values() for name in names}
        self.classes = tuple(name for name in found.names if name not in without)
        if len(self.classes) < 2:
            enough = f"{FEWEST} images or more" if found.learnable == found.train else _different(found, " or more")
            enough += " and some in the test part" if found.test else ""
            raise UserError(f"{len(self.classes)} of {len(found.names)} classes have {enough}; two are needed, add "
                            "images")  # fmt: skip
        self.images = sum(count for name, count in zip(found.names, found.train, strict=True) if name not in without)
        counts = sorted(n for name, n in zip(found.names, found.learnable, strict=True) if name not in without)
        unlike = sum(counts) - self.images * found.left_out
        if unlike < FEWEST * len(self.classes):
            raise UserError(f"about {max(unlike, 0):.0f} of {self.images:,} training images are left without those "
                            "that cannot be read, copies, and near copies of images in other parts, and "
                            f"{len(self.classes)} classes need {FEWEST} each; add images, or take the copies out of "
                            "the other parts")  # fmt: skip
        learned = unlike * (1.0 if found.test else 1.0 - TEST)
        self.calibration = round(min(0.2, max(0.05, CALIBRATION / learned)), 3)
        self.validation = 0.0 if found.validation else min(0.1, self.calibration)
        trained = learned * (1 - self.validation - self.calibration)
        self.folds = FOLDS if network is not None and len(self.classes) >= FEWEST_TO_HOLD_OUT else 0
        # A fold has to do with what is left of these without its classes, at worst the largest.
        left = 1.0 - sum(counts[-HoldOut().held(len(counts)) :]) / sum(counts) * (self.folds > 0)
        # Half as many again as are needed: rounding class by class takes some.
        sure = (one for one in ACCEPT if left * self.calibration * learned >= 1.5 * one / (1 - one))
        self.accept = next(sure, ACCEPT[-1])
        self.why_split = f"about {self.calibration * learned:.0f} images set the threshold"
        if self.folds and self.accept < ACCEPT[0]:
            self.why_split += f", {left * self.calibration * learned:.0f} or more in a fold"
        if self.accept < ACCEPT[0]:
            needed = needed_images(ACCEPT[0])
            self.why_split += f"; {self.accept:.0%} leaves room, {ACCEPT[0]:.0%} needs {needed} at least"
        self.image_shape, self.why_shape = _image_shape(found, machine, network)
        self.resize, self.why_resize = _resize(found, self.image_shape)
        side = math.sqrt(self.image_shape[0] * self.image_shape[1])
        self.backbone, self.width = _backbone(side, trained, machine), 96 if machine.accelerator else 64
        # Rounding class by class may take some images, and a batch has to have its rows.
        rows = ((64, 640), (32, 40), (16, 20))
        fits = (size for size, enough in rows if trained >= enough and left * trained >= 1.25 * size)
        self.batch_size = next(fits, 8)
        self.rotation, self.passing, self.tuning = False, None, None
        if network is None:
            self.outliers = int(min(5000, max(200, trained // 5)))
            rate = ACCELERATOR_RATE if machine.accelerator else CPU_RATE * machine.cores
            # A third of the time: exposed and, to compare with, unexposed. The rest is measuring and writing.
            epochs = minutes * 60 / 3 * rate * (16 / side) ** 2 / trained
            self.rotation = self.image_shape[0] == self.image_shape[1] and epochs >= ROTATIONS * MOST_EPOCHS
            epochs /= ROTATIONS if self.rotation else 1
        else:
            self.outliers = int(min(2000, max(200, trained // 2)))
            epochs = max(FROZEN_EPOCHS, math.ceil(FROZEN_STEPS * self.batch_size / trained))
            if per_image is not None:
                # The images, three kinds of proxies of the validation images, and the outliers.
                passed = self.images + sum(found.test) + 4 * (sum(found.validation) or self.validation * learned)
                self.passing = (passed + self.outliers) * per_image
                self.tuning = FineTuning().epochs * trained * TRAINED * per_image
        self.epochs = int(min(MOST_EPOCHS, max(FEWEST_EPOCHS, epochs)))
        self.takes = _taken(minutes, epochs if network is None else None, self.passing)


def _taken(minutes: float, epochs: float | None, passing: float | None) -> float:
    """The minutes of a run, whose time so many epochs would fill, or whose images pass a network in so many seconds."""
    if passing is not None:  # And what is trained, measured and published.
        return math.ceil(1.3 * passing / 60 + 1)
    if epochs is None:
        return minutes
    if epochs > MOST_EPOCHS:  # A minute of them goes to starting and publishing.
        return min(minutes, math.ceil(minutes * MOST_EPOCHS / epochs + 1))
    return math.ceil(minutes * FEWEST_EPOCHS / epochs) if epochs < FEWEST_EPOCHS else minutes


def left_out(found: Survey) -> dict[str, list[str]]:
    """The classes that a run could not learn or not test: {what they have: their names}, without what none has."""
    few = [name for name, count in zip(found.names, found.train, strict=True) if count < FEWEST]
    copied = [name for name, n in zip(found.names, found.learnable, strict=True) if n < FEWEST and name not in few]
    tested = zip(found.names, found.test or found.train, strict=True)
    untested = [name for name, count in tested if not count and name not in few + copied]
    reasons = {
        f"fewer than {FEWEST} images": few,
        f"fewer than {_different(found)}": copied,
        "no images in the test part": untested,
    }
    return {reason: names for reason, names in reasons.items() if names}


def _different(found: Survey, more: str = "") -> str:
    """The images that a class has to have, in words."""
    own = " and no other part has" if found.test or found.validation else ""
    return f"{FEWEST} different images{more} that can be read{own}"


def _resize(found: Survey, shape: tuple[int, int, int]) -> tuple[str, str]:
    """How images are brought to a shape: by how much of each would be cut off."""
    height, width = found.shapes[:, 0].astype(float), found.shapes[:, 1].astype(float)
    # How far the proportions are from those of the shape, 1 where they are the same.
    off = np.exp(np.abs(np.log(height / width * shape[1] / shape[0])))
    most = float(np.quantile(off, 0.95))
    if most <= ALIKE:
        return "stretch", "nearly all images have these proportions"
    lost = 1.0 - 1.0 / float(np.median(off))
    if lost <= CUT:
        half = f"{lost:.0%} or less" if lost >= 0.005 else "nothing"
        return "crop", f"the middle is kept: half lose {half}, 1 in 20 loses {1 - 1 / most:.0%} or more"
    return "pad", f"half of the images would lose {lost:.0%} or more, so nothing is cut off"


def _image_shape(
    found: Survey, machine: Machine, network: Pretrained | None
) -> tuple[tuple[int, int, int], str]:  # fmt: skip
    if network is not None:
        why = "the only size that the network takes" if network.fixed else "what such networks are usually given"
        if network.channels < 3 and not found.grey:
            why += ", and in grey"
        return (*network.size, min(1 if found.grey else 3, network.channels)), why
    median = np.median(found.shapes, axis=0)
    most = 64 if machine.accelerator else 32
    scale = min(1.0, most / float(median.max()))
    sides = [max(8, int(side * scale) // 4 * 4) for side in median]
    if 0.8 <= median[1] / median[0] <= 1.25:
        sides = [max(8, int(median.min() * scale) // 4 * 4)] * 2
    why = f"the median image has {median[0]:.0f}x{median[1]:.0f} pixels"
    if scale < 1:
        why += f"; more than {most} a side takes {'more than one GPU' if machine.accelerator else 'a GPU'}"
    return (sides[0], sides[1], 1 if found.grey else 3), why


def _backbone(side: float, trained: float, machine: Machine) -> str:
    if side <= 12:
        return "small_cnn"
    if machine.accelerator:
        return "resnet18" if trained > 20_000 and side >= 24 else "resnet20"
    return "resnet8"
