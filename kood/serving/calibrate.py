"""A new threshold for a finished model, from the user's own images, without training anything."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kood.conformal import needed_images, rate_interval
from kood.data.rules import ground_colour
from kood.errors import UserError
from kood.runs import Run
from kood.serving.answers import Answer, answers, listed
from kood.serving.client import LocalModel, newest_version
from kood.serving.extras import read_facts
from kood.serving.publishing import publish_calibrated
from kood.serving.served import Served

__all__ = ["Calibrated", "calibrate"]


@dataclass(frozen=True)
class Calibrated:
    """What a calibration gave.

    Attributes:
        version: The new SavedModel.
        old: The one it was made of.
        accept: Share of in-distribution images that the threshold accepts.
        threshold: The new threshold.
        old_threshold: The old one.
        calibration_images: How many it was set on.
        checked: How many others it was tried on.
        rate: Share of those that it accepts; None where there are none.
        interval: Its 95% interval.
        unread: Files that could not be read.
    """

    version: Path
    old: Path
    accept: float
    threshold: float
    old_threshold: float
    calibration_images: int
    checked: int
    rate: float | None
    interval: tuple[float, float]
    unread: list[Answer]


def calibrate(
    run: Path, data: Sequence[Path], *, accept: float | None = None, check: float = 0.2, seed: int = 0
) -> Calibrated:
    """Publishes the newest version of a run again with a threshold set on other in-distribution images.

    Some of the images, drawn at random, are kept to see what the threshold does to images that it was not set on.

    Args:
        run: `saved/<recipe>`, or one of its versions.
        data: Images of the known classes, as the model will meet them: files and folders.
        accept: Share to accept, in (0, 1); as the version has it where not given.
        check: Share of the images that are kept to check on, in [0, 1).
        seed: Which.

    Returns:
        What it gave.

    Raises:
        UserError: no SavedModel, a path that does not exist, too few images that can be read for this share, or the
            folder is in use.
    """
    old = newest_version(run)
    facts = read_facts(old)
    accept = float(facts["accept"]) if accept is None else accept
    if not 0 < accept < 1:
        raise UserError(f"--accept {accept}: write a share between 0 and 1, such as 0.95")
    if not 0 <= check < 1:
        raise UserError(f"--check {check}: write a share from 0 to below 1, such as 0.2")
    missing = next((path for path in data if not path.exists()), None)
    if missing is not None:
        raise UserError(f"--data {missing}: does not exist; give images of the known classes, or folders of them")
    files = listed(data)
    found = list(answers(LocalModel(old), files))
    unread = [answer for answer in found if answer.said is None]
    scores = np.array([answer.said["ood_score"] for answer in found if answer.said], np.float64)
    order = np.random.default_rng(seed).permutation(len(scores))
    kept = round(check * len(scores))
    held, used = scores[order[:kept]], scores[order[kept:]]
    if len(used) < needed_images(accept):
        raise UserError(
            f"--accept {accept} needs at least {needed_images(accept)} images to be guaranteed; of {len(files)} files "
            f"{len(scores)} could be read and {kept} of these are kept to check on; give more images, a lower --accept "
            "or a lower --check" + (f" (the first that could not: {unread[0].error})" if unread else "")
        )
    height, width, channels = facts["image_shape"]
    served = Served(
        facts["score"], (height, width, channels), facts["class_names"], accept, used,
        undecodable=facts.get("undecodable", "error"),
        ground=ground_colour(facts.get("ground", "black")),  # Which it was before it was a setting.
    )  # fmt: skip
    accepted = int(np.sum(held <= served.threshold))
    rate = accepted / kept if kept else None
    interval = rate_interval(accepted, kept)
    told = {"images": kept, "rate": rate, "interval": list(interval)} if kept else None
    with Run(old.parent).held() as folder:
        version = old.parent / str(folder.next_version())
        publish_calibrated(old, version, served, {"accepted": told, "calibrated_from": old.name})
    return Calibrated(
        version, old, accept, served.threshold, float(facts["threshold"]), len(used), kept, rate, interval, unread
    )
