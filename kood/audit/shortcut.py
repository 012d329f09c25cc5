"""The shortcut test: does the detector flag images for being generated, instead of for lying between classes?"""

import math
from typing import Any

import numpy as np

from kood.metrics import auroc

__all__ = ["FAILS_ABOVE", "auroc_interval", "shortcut_test"]

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


def auroc_interval(scores_id, scores_ood, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of an AUROC by DeLong's variance, on the log-odds scale.

    With w_i the share of ID images that OOD image i outscores (ties half) and v_j the share of OOD images that
    outscore ID image j, the variance of the AUROC A is var(w) / M + var(v) / N with sample variances. The interval is
    expit(logit A -+ z sd / (A (1 - A))), which stays within 0..1. Where both variances are 0, all pairs came out
    alike (separated, or all tied) and DeLong's variance says nothing; then min(N, M) pairs without a common image are
    as many independent trials with one outcome, whose exact binomial bound replaces it: that outcome has at least
    the chance c = ((1 - level) / 2)^(1 / min(N, M)), so A lies within 1 - c of 0 or 1, or within (1 - c) / 2 of 1/2.

    It tells how another draw of as many images would vary, not how another training would.

    Args:
        scores_id: (N,) scores of ID images, N at least 2; infinities allowed.
        scores_ood: (M,) scores of OOD images, M at least 2.
        level: Coverage, in (0, 1).

    Returns:
        The lower and the upper end.

    Raises:
        ValueError: Fewer than two images on a side, NaN, or a level outside (0, 1).

    References: DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44:837; ranks as in Sun and Xu 2014, IEEE Signal
    Processing Letters 21:1389; log-odds as in Pepe 2003, The Statistical Evaluation of Medical Tests, section 5.2.
    """
    # SciPy is imported where it is used: it takes longer to load than the rest of the test to run.
    from scipy import stats

    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1; it is {level!r}.")
    id_, ood = _scores("scores_id", scores_id), _scores("scores_ood", scores_ood)
    n, m = len(id_), len(ood)
    ranks = stats.rankdata(np.concatenate([ood, id_]))
    wins = (ranks[:m] - stats.rankdata(ood)) / n
    losses = 1 - (ranks[m:] - stats.rankdata(id_)) / m
    area = float(wins.mean())
    variance = float(wins.var(ddof=1) / m + losses.var(ddof=1) / n)
    if variance == 0:
        room = 1 - ((1 - level) / 2) ** (1 / min(n, m))
        room = room / 2 if 0 < area < 1 else room
        return max(0.0, area - room), min(1.0, area + room)
    centre = math.log(area / (1 - area))
    reach = float(stats.norm.ppf((1 + level) / 2)) * math.sqrt(variance) / (area * (1 - area))
    low, high = (0.5 * (1 + math.tanh((centre + step) / 2)) for step in (-reach, reach))
    return low, high


def _scores(name: str, values) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or len(array) < 2:
        raise ValueError(f"{name} must be at least 2 scores (N,); their shape is {array.shape}.")
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must be real numbers; their dtype is {array.dtype}.")
    undefined = int(np.isnan(array).sum())
    if undefined:
        raise ValueError(f"{undefined} of {len(array)} {name} are NaN.")
    # Ranks are all that counts; infinities have theirs.
    return array.astype(np.float64)


def shortcut_test(scores_id, scores_pure, *, score: str, level: float = 0.95) -> dict[str, Any]:
    """Scores pure-label samples as if they were OOD: a detector of content cannot tell them from real ID images.

    The samples were made under the label of one class, so they belong inside the distribution. An AUROC of about .5 is
    right. Well above, the detector separates generated from real images: exposed to generated outliers it
    has taken the shortcut of learning that mark, which no real outlier bears.

    Args:
        scores_id: (N,) the detector's scores of real held-out ID images, higher = more OOD.
        scores_pure: (M,) its scores of pure-label samples.
        score: The score's name, for the report.
        level: Coverage of the interval.

    Returns:
        "score", "auroc", "interval" [low, high], "level", "n_id", "n_pure", "fails_above", "verdict" and
        "sentence". The verdict is "failed" where low > `FAILS_ABOVE`; else "undecided" where high > `FAILS_ABOVE`; else
        "slight" where low > .5, "reversed" where high < .5, and "passed" where .5 is inside. The sentence says what
        the verdict means to someone who has never seen an AUROC.

    Raises:
        ValueError: As `auroc_interval`.
    """
    low, high = auroc_interval(scores_id, scores_pure, level)
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
