"""The whole audit of an outlier set, from arrays to the mapping that report.json holds."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kood.audit.content import mixed_content, pure_content
from kood.audit.diversity import copies, duplicates, histograms, memorised, nearest, spread
from kood.audit.fidelity import frechet_distance, kernel_distance
from kood.audit.verdicts import MIRROR, judge_content, judge_diversity, judge_fidelity, warnings
from kood.data import large
from kood.intervals import auroc_interval
from kood.metrics import auroc

__all__ = ["FAILS_ABOVE", "Judged", "audit", "shortcut_test", "with_shortcut"]

UNIT = "root mean square difference in grey levels of 0..255"
#: The test fails where the whole interval of the AUROC lies above this. Generators are not perfect, so a little above
#: .5 is ordinary: on CIFAR-10 at 16 px, detectors that had seen no outliers had .60 and those exposed to real ones .57
#: to .59, while those exposed to synthetic ones, which lost on every real OOD set, had .74 to .89.
FAILS_ABOVE = 0.65

MEANING = {
    "failed": (
        "The detector has learnt to spot generated images instead of images between classes; expect it to do worse on "
        "real outliers."
    ),
    "undecided": (
        "The test cannot tell: with this few images, the detector may or may not have learnt to spot generated images. "
        "Sample more pure-label images."
    ),
    "slight": (
        "The detector finds generated images of a class a little stranger than real ones, as is ordinary for an "
        "imperfect generator; it does not live by that difference."
    ),
    "passed": "The detector does not care that an image is generated: it looks at what the image shows.",
    "reversed": (
        "The detector finds generated images of a class more ordinary than real ones. It has not learnt to spot "
        "generated images; the samples are cleaner or simpler than real images are."
    ),
}


class Judged(NamedTuple):
    """Images and what the judge, a classifier of the in-distribution classes, makes of them.

    Attributes:
        images: uint8 (N, H, W, C).
        posteriors: (N, K), rows summing to 1.
        features: (N, D), from the layer that the feature space is named after.
        labels: (N,) their classes, or those that they were made under; of mixtures the shares (N, K) of these. None
            where these are no mixtures, as under a label turned away from: then nothing is asked of their classes.
    """

    images: np.ndarray
    posteriors: np.ndarray
    features: np.ndarray
    labels: np.ndarray | None = None


def audit(
    pure: Judged,
    held_out: Judged,
    train: Judged,
    mixed: Judged | None = None,
    *,
    class_names: Sequence[str],
    feature_space: str,
    augment: Sequence[str] = (),
    seed: int = 0,
    most: int = 2000,
) -> dict[str, Any]:
    """Audits an outlier set: what a loss curve hides of it.

    The judge must not have been exposed to the outliers. Each question has real images beside it: held-out ID images
    where the samples stand, so that a figure of an imperfect judge or of a small set can be read.

    Args:
        pure: Samples of the generator under the label of one class each, at least 2; of the classes as often as
            `held_out`, else what is hard in a class counts as generated.
        held_out: Real ID images that neither the generator nor the judge was trained on, at least 3.
        train: What the generator was trained on, at least 2.
        mixed: Samples under mixtures of classes, at least 2; or None.
        feature_space: What the features are, in words, for instance "penultimate features of resnet8 trained on the
            in-distribution training images".
        augment: Augmentations, by name, of the images that the generator was trained on. Under "flip" a mirrored copy
            of a training image is as near as a copy; copies under others are not seen, and that is said.
        seed: Of the draws below and of the subsets of KID.
        most: How many images of each set are searched for neighbours; larger sets are drawn from.

    Returns:
        Python numbers, strings, lists and mappings only, ready for JSON:
        "feature_space", "seed", "class_names";
        "content": "pure" and "held_out" (see `pure_content`), "mixtures" (see `mixed_content`) or None, "verdict"
        ("shown", "weak", "unjudged"), "mixtures_verdict" ("both", "one", "other", or None), "sentences";
        "diversity": "unit", "sets" (for "pure", "held_out" and, where given, "mixtures": "n" images, "copies" that
        equal a training image, "duplicates" that equal another of the set; of the "searched" ones "to_training" and
        "among", see `spread`, "memorised" and "near_duplicates" {"count", "share"}, "nearer" the share nearer to a
        training image than 99% of the held-out images), "near" (the distance that makes a near duplicate: the 1st
        percentile among as many held-out images), "histogram" of the distances to the training images (see
        `histograms`), "verdict" ("new", "memorised", "repeated"), "sentences";
        "fidelity": "feature_space", "dimensions", "sets" (for "pure", "train" and, where given, "mixtures": "fid",
        "kid", "kid_standard_error" against the "n_held_out" held-out images, from "n" images each), "sentences";
        "shortcut": None (see `with_shortcut`); "warnings": sentences.
    """
    sets = {"pure": pure, "held_out": held_out, **({} if mixed is None else {"mixtures": mixed})}
    content = {
        "pure": pure_content(pure.posteriors, pure.labels),
        "held_out": pure_content(held_out.posteriors, held_out.labels),
        "mixtures": None if mixed is None or mixed.labels is None else mixed_content(mixed.posteriors, mixed.labels),
    }
    rng = np.random.default_rng(seed)
    # Arrays, of deferred images too: a search reads all of them again and again.
    images = {name: np.asarray(one.images) for name, one in sets.items()}
    diversity = _diversity(images, np.asarray(train.images), rng, most, MIRROR in augment)
    fidelity = _fidelity({name: one.features for name, one in sets.items()}, train.features, rng, seed)
    result = {
        "feature_space": feature_space,
        "seed": seed,
        "class_names": [str(name) for name in class_names],
        "content": {**content, **judge_content(content)},
        "diversity": {**diversity, **judge_diversity(diversity, augment)},
        "fidelity": {"feature_space": feature_space, **fidelity, **judge_fidelity(fidelity)},
        "shortcut": None,
    }
    return {**result, "warnings": warnings(result)}


def with_shortcut(audited: Mapping[str, Any], scores_id, scores_pure, *, score: str) -> dict[str, Any]:
    """An audit with the shortcut test of one detector, and the warning that may follow from it.

    The rest of the audit depends on the outlier set alone; this part on the detector trained with it.

    Args:
        audited: From `audit`; left as it is.
        scores_id: (N,) the detector's scores of real held-out ID images, higher = more OOD.
        scores_pure: (M,) its scores of pure-label samples.

    Returns:
        The audit with "shortcut" as `shortcut_test` gives it.

    Raises:
        ValueError: Fewer than two scores on a side, or NaN.
    """
    result = {**audited, "shortcut": shortcut_test(scores_id, scores_pure, score=score)}
    return {**result, "warnings": warnings(result)}


def shortcut_test(scores_id, scores_pure, *, score: str, level: float = 0.95) -> dict[str, Any]:
    """Scores pure-label samples as if they were OOD: a detector of content cannot tell them from real ID images.

    The samples were made under the label of one class, so they belong inside the distribution. An AUROC of about .5 is
    right. Well above, the detector separates generated from real images: exposed to generated outliers it
    has taken the shortcut of learning that mark, which no real outlier bears.

    Args:
        scores_id: (N,) the detector's scores of real held-out ID images, higher = more OOD.
        scores_pure: (M,) its scores of pure-label samples, of the classes as often as these.

    Returns:
        "score", "auroc", "interval" [low, high], "level", "n_id", "n_pure", "fails_above", "verdict" and
        "sentence". The verdict is "failed" where low > `FAILS_ABOVE`; else "undecided" where high > `FAILS_ABOVE`; else
        "slight" where low > .5, "reversed" where high < .5, and "passed" where .5 is inside. The sentence says what
        the verdict means to someone who has never seen an AUROC.

    Raises:
        ValueError: As `kood.intervals.auroc_interval`, which the interval is from.
    """
    low, high = auroc_interval(scores_id, [scores_pure], level)
    is_ood = np.repeat([False, True], [len(scores_id), len(scores_pure)])
    if low > FAILS_ABOVE:
        verdict = "failed"
    elif high > FAILS_ABOVE:
        verdict = "undecided"
    else:
        verdict = "slight" if low > 0.5 else "reversed" if high < 0.5 else "passed"
    return {
        "score": score,
        "auroc": auroc(np.concatenate([scores_id, scores_pure]), is_ood),
        "interval": [low, high],
        "level": level,
        "n_id": len(scores_id),
        "n_pure": len(scores_pure),
        "fails_above": FAILS_ABOVE,
        "verdict": verdict,
        "sentence": MEANING[verdict],
    }


def _drawn(rng: np.random.Generator, count: int, most: int) -> np.ndarray:
    return np.sort(rng.permutation(count)[:most])


def _to_training(images: np.ndarray, train, mirrored: bool) -> np.ndarray:
    """The distances (N, 2) of images to the nearest two training images, each image as it is or, if that is nearer,
    mirrored."""
    found = nearest(images, train, neighbours=2)[0]
    if mirrored:
        turned = nearest(images[:, :, ::-1], train, neighbours=2)[0]
        found = np.where(turned[:, :1] < found[:, :1], turned, found)
    return found


def _diversity(
    sets: dict[str, np.ndarray], train, rng: np.random.Generator, most: int, mirrored: bool
) -> dict[str, Any]:
    searched = {name: _drawn(rng, len(images), most) for name, images in sets.items()}
    to_training = {
        name: _to_training(large.rows_of(sets[name], rows), train, mirrored) for name, rows in searched.items()
    }
    # Among more images the nearest is nearer: distances within a set compare between sets of one size only.
    size = min(map(len, searched.values()))
    among = {
        name: nearest(large.rows_of(sets[name], rows[_drawn(rng, len(rows), size)]))[0][:, 0]
        for name, rows in searched.items()
    }
    yardstick = spread(to_training["held_out"][:, 0])["p01"]
    near = spread(among["held_out"])["p01"]
    figures = {}
    for name, images in sets.items():
        distances = to_training[name]
        figures[name] = {
            "n": len(images),
            "copies": copies(images, train),
            "duplicates": duplicates(images),
            "searched": len(distances),
            "to_training": spread(distances[:, 0]),
            "memorised": _counted(memorised(distances)),
            "nearer": float(np.mean(distances[:, 0] < yardstick)),
            "among": spread(among[name]),
            "near_duplicates": _counted(among[name] < near),
        }
    drawn = histograms({name: distances[:, 0] for name, distances in to_training.items()})
    return {"unit": UNIT, "sets": figures, "near": near, "histogram": drawn}


def _counted(which: np.ndarray) -> dict[str, Any]:
    return {"count": int(which.sum()), "share": float(which.mean())}


def _fidelity(sets: dict[str, np.ndarray], train, rng: np.random.Generator, seed: int) -> dict[str, Any]:
    against = np.asarray(sets["held_out"])
    compared = {"train": train, **{name: rows for name, rows in sets.items() if name != "held_out"}}
    # FID falls with the number of images: equally many of each.
    size = min(map(len, compared.values()))
    figures = {}
    for name, rows in compared.items():
        some = np.asarray(rows)[_drawn(rng, len(rows), size)]
        kid, error = kernel_distance(some, against, seed=seed)
        fid = frechet_distance(some, against)
        figures[name] = {"fid": fid, "kid": kid, "kid_standard_error": error, "n": size}
    dimensions = int(np.prod(against.shape[1:]))
    return {"dimensions": dimensions, "n_held_out": len(against), "sets": figures}
