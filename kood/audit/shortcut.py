"""The shortcut test: does the detector flag images for being generated, instead of for lying between classes?"""

from typing import Any

import numpy as np

from kood.intervals import auroc_interval
from kood.metrics import auroc

__all__ = ["FAILS_ABOVE", "shortcut_test"]

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
