"""A new threshold for a finished model, from the user's own images, without training anything."""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kood.conformal import Group, doubted, needed_images, rate_interval
from kood.data.files import PassedOver
from kood.data.paths import refuse_url
from kood.data.rules import Framing
from kood.data.sources.table import TABLES, other_columns
from kood.errors import UserError
from kood.runs import Run
from kood.serving.answers import Answer, listed
from kood.serving.client import newest_version, refuse_unnumbered
from kood.serving.extras import read_facts
from kood.serving.publishing import publish_calibrated
from kood.serving.seen import RECALIBRATED, USED, Seen, firsts
from kood.serving.served import Served
from kood.text import clean, composed, some_of

__all__ = ["Calibrated", "calibrate"]


class Calibrated(NamedTuple):
    """What a calibration gave.

    Attributes:
        version: The new SavedModel.
        told: What there is to say of it, a sentence a line.
        unread: Files that could not be read.
    """

    version: Path
    told: list[str]
    unread: list[Answer]


def calibrate(
    run: Path,
    data: Sequence[Path],
    *,
    accept: float | None = None,
    check: float = 0.2,
    by_class: bool | None = None,
) -> Calibrated:
    """Publishes the newest version of a run again with a threshold set on other in-distribution images.

    The images must be unseen: a model's scores of what it was trained on are lower than those of what it will meet, and
    a threshold set on them accepts less than it promises. Those that the version knows are left out and counted, and so
    are copies: a guarantee counts different images. Some of the others, drawn at random, are kept to see what the
    threshold does to images that it was not set on. Images of no class of the model cannot be told from such as have
    drifted, so none are refused: what is strange about them under the old threshold, or about their folders, is said.

    Args:
        run: `saved/<recipe>`, or one of its versions.
        data: Images of the known classes, as the model will meet them: files, folders and tables of files.
        accept: Share to accept, in (0, 1); as the version has it where not given.
        check: Share of the images that are kept to check on, in [0, 1).
        by_class: Whether each class that the model labels has a threshold of its own; as the version has it where not
            given.

    Raises:
        UserError: no SavedModel, a path that does not exist, too few unseen images that can be read for this share, or
            the folder is in use, or a SavedModel in a folder that is named by no number.
    """
    version = newest_version(run)
    refuse_unnumbered(version)
    folder = Run(version.parent)
    folder.on_damage = partial(print, file=sys.stderr)
    # All along: over a version that came meanwhile this would publish the classifier of the one before.
    with folder.held():
        return _calibrated(folder, newest_version(run), data, accept, check, by_class)


def _calibrated(
    folder: Run, old: Path, data: Sequence[Path], accept: float | None, check: float, by_class: bool | None
) -> Calibrated:
    """`calibrate`, in a folder that is held."""
    facts = read_facts(old)
    attached = "attached" in facts
    accept = float(facts["accept"]) if accept is None else accept
    _refuse(data, accept, check)
    passed = PassedOver()
    files, seen = listed(data, passed), Seen(old, facts)
    read, unread, digests = seen.ask(files)
    left_out, unseen = seen.count(digests, USED), ~seen.among(digests, USED)
    new = unseen & firsts(digests)
    said = [answer.said or {} for answer, one in zip(read, new, strict=True) if one]
    labels = np.array([one["label"] for one in said], np.int64)
    # Of what it cannot judge the graph answers a score that JSON can write, and no label.
    scores = np.array([one["ood_score"] if one["label"] >= 0 else np.inf for one in said], np.float64)
    copies = int(np.sum(unseen & ~new))
    order = np.random.default_rng(0).permutation(len(scores))
    kept = round(check * len(scores))
    held, used = order[:kept], order[kept:]
    if len(used) < needed_images(accept):
        known = f", {sum(left_out.values())} of these are images that {_uses(left_out, attached)}" if left_out else ""
        known += f", {copies} are copies of others" if copies else ""
        raise UserError(
            f"--accept {accept} needs at least {needed_images(accept)} images to be guaranteed; of {len(files)} files "
            f"{len(read)} could be read{known} and {kept} are kept to check on; give more images that the model has "
            "not seen, a lower --accept or a lower --check"
            + (f" (the first that could not be read: {unread[0].error})" if unread else "")
        )
    told = [*passed.notes()]
    if left_out:
        told.append(f"Left out: {sum(left_out.values()):,} images that {_uses(left_out, attached)}")
    if copies:
        told.append(f"Left out: {copies:,} copies of others, which say nothing new")
    if unjudged := int(np.sum(labels < 0)):
        told.append(f"Flagged whatever the threshold: {unjudged:,} images whose probabilities or score are no numbers")
    near = [row for row in seen.near() if new[row]]
    # The classifier has seen these no more than others.
    if again := int(np.sum(seen.among(digests, (RECALIBRATED,)) & new)):
        told.append(f"Again among them: {again:,} images that an earlier calibration was given")
    height, width, channels = facts["image_shape"]
    served = Served(
        facts["score"], (height, width, channels), facts["class_names"], accept, scores[used],
        undecodable=facts["undecodable"], labels=labels[used],
        by_class=facts["by_class"] if by_class is None else by_class,
        seen=seen.with_more(RECALIBRATED, digests[new][used]), framing=Framing.read(facts),
    )  # fmt: skip
    told += _thresholds(served, facts["threshold"])
    accepted = None
    if kept:
        hits = int(np.sum(~served.decision.flagged(scores[held], labels[held])))
        low, high = rate_interval(hits, kept)
        accepted = {"images": kept, "rate": hits / kept, "interval": [low, high]}
        told.append(f"Of {kept:,} others it accepts {hits / kept:.1%} (95% interval {low:.1%} to {high:.1%})")
    doubts = _near(near, read, int(np.sum(new))), _strange(said, facts), _unnamed(data, files, served.names)
    told += [f"Warning: {doubt}" for doubt in doubts if doubt]
    version = old.parent / str(folder.next_version())
    publish_calibrated(old, version, served, {"accepted": accepted, "calibrated_from": old.name})
    return Calibrated(version, [*told, f"Written: {version} ({old} stays)"], unread)


def _refuse(data: Sequence[Path], accept: float, check: float) -> None:
    """Refuses what needs no look at an image."""
    if not 0 < accept < 1:
        raise UserError(f"--accept {accept}: write a share between 0 and 1, such as 0.95")
    if not 0 <= check < 1:
        raise UserError(f"--check {check}: write a share from 0 to below 1, such as 0.2")
    missing = next((path for path in data if not path.exists()), None)
    if missing is not None:
        refuse_url(missing, "--data ")
        raise UserError(f"--data {missing}: does not exist; give images of the known classes, or folders of them")


def _thresholds(served: Served, was: float | None) -> list[str]:
    """The thresholds and what they promise, a sentence each; `was` is the one threshold before, if there was one."""
    groups, names = served.decision.groups, served.names
    promise = f"one like them is accepted with probability at least {served.accept:g}"
    if len(groups) == 1:
        before = "" if was is None else f" (was {was:.6g})"
        images = f"set on {len(served.calibration):,} images: {promise}"
        return [f"Threshold: {groups[0].threshold:.6g}{before}, {images}"]
    told = [
        f"Threshold of {some_of(clean(names[k]) for k in group.classes)}: {group.threshold:.6g}, "
        f"set on {group.images:,} images"
        for group in groups
    ]
    shares = any(len(group.classes) > 1 for group in groups)
    together = " (of classes that share a threshold, for all of them together)" if shares else ""
    return [*told, f"Whichever class it is labelled as, {promise}{together}"]


def _near(rows: Sequence[int], read: Sequence[Answer], images: int) -> str:
    """What is doubtful about images that are near copies of what the version was made of, in words; or ""."""
    if not rows:
        return ""
    return (
        f"{len(rows):,} of the {images:,} images are near copies of some that the model was made of, such as "
        f"{some_of((clean(str(read[row].file)) for row in rows), 3)}; a threshold set on what it has seen accepts less "
        "than it promises, so take them out"
    )


def _strange(said: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
    """What is strange about images by what the old version says of them, see `kood.conformal.doubted`."""
    groups = [Group(**group) for group in facts["groups"]]
    scores, p_values, flags, labels = (
        np.array([one[key] for one in said]) for key in ("ood_score", "p_value", "is_ood", "label")
    )
    return doubted(scores, p_values, flags, labels, groups, float(facts["accept"]))


def _unnamed(data: Sequence[Path], files: Sequence[str], class_names: Sequence[str]) -> str:
    """Sub-folders of images that lie in none named as a class, and labels of tables likewise, in words; or ""."""

    def plain(name: str) -> str:
        return " ".join(composed(name).split()).casefold()

    names = set(map(plain, class_names))
    inside: dict[str, bool] = {}
    for folder in filter(Path.is_dir, data):
        for file in files:
            parent = Path(file).parent
            if parent.is_relative_to(folder) and parent != folder:
                parts = parent.relative_to(folder).parts
                inside[str(Path(*parts))] = any(plain(part) in names for part in parts)
    labels: dict[str, bool] = {}
    for path in (path for path in data if path.is_file() and path.suffix.lower() in TABLES):
        judged: list[dict[str, bool]] = []
        for is_label, values in other_columns(str(path)):
            # kood's own labels are numbers of classes; in another column they number anything.
            found = {one: plain(one) in names or (is_label and _numbers(one, class_names)) for one in values}
            if found and (is_label or 2 * sum(found.values()) > len(found)):
                judged.append(found)
        # Names say more than numbers, and of several columns, as of a class and what is above it, one has to fit.
        judged.sort(key=lambda found: (any(not one.isdecimal() for one in found), sum(found.values()) / len(found)))
        labels |= judged[-1] if judged else {}
    told = []
    for kind, found in (
        ("sub-folders of images", inside),
        ("labels of images", labels),
    ):
        others = [name for name, known in found.items() if not known]
        which = "none" if len(others) == len(found) else f"not all ({some_of(map(clean, others))})"
        told += [f"Of {len(found):,} {kind} {which} are named as a class of the model"] if others else []
    if not told:
        return ""
    classes = some_of(map(clean, class_names))
    return f"{'. '.join(told)}; its classes are {classes}: make sure that the images are of these"


def _numbers(label: str, class_names: Sequence[str]) -> bool:
    return label.isdecimal() and int(label) < len(class_names)


def _uses(left_out: dict[str, int], attached: bool) -> str:
    """What a model's own images were used for, in words."""
    said = {"trained": "fitted"} if attached else {}
    uses = " and ".join(f"{said.get(use, use)} on ({count})" for use, count in left_out.items())
    return f"the {'score' if attached else 'model'} was {uses}"
