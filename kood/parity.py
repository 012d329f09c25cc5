"""Whether a graph, written out and read back, answers as the Keras model does."""

from collections.abc import Mapping

import numpy as np

from kood.conformal import Calibration
from kood.decision import UNKNOWN
from kood.errors import UserError

__all__ = ["agreed", "disagreements"]


def agreed(
    got: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    calibration: Calibration,
    tolerance: float,
    *,
    who: str,
    undone: str,
) -> dict[str, float]:
    """The largest differences of answers that agree, see `disagreements`, and "images", how many were compared.

    Args:
        got: As for `disagreements`, and so are the next three.
        expected: See there.
        calibration: See there.
        tolerance: See there.
        who: What answers, which begins the message.
        undone: What becomes of it, which ends the message.

    Raises:
        UserError: they do not agree.
    """
    differences, wrong = disagreements(got, expected, calibration, tolerance)
    if wrong:
        raise UserError(
            f"{who} does not answer as the Keras model does ({', '.join(wrong)}; largest differences {differences}); "
            f"it was not {undone}",
            exit_code=1,
        )
    return {**differences, "images": len(expected["label"])}


def disagreements(
    got: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], calibration: Calibration, tolerance: float
) -> tuple[dict[str, float], list[str]]:
    """Compares the answers for the same images.

    A tie between two classes, or a score on the threshold, may fall either way within the tolerance; that of scores is
    relative to the largest of them, at least 1.

    Args:
        got: {"probabilities": (N, K), "label", "ood_score", "is_ood", "p_value": (N,)}.
        expected: {"probabilities", "label", "ood_score"} of the Keras model; where its label is -1, as of an image with
            NaN, `UNKNOWN` is expected.
        calibration: What decides.
        tolerance: Largest difference that float32 arithmetic elsewhere explains.

    Returns:
        {"probabilities" and "ood_score": largest absolute difference}, and the outputs that disagree.
    """
    known = expected["label"] >= 0
    unjudged = {name for name in got.keys() & UNKNOWN.keys() if np.any(got[name][~known] != UNKNOWN[name])}
    got, expected = ({name: values[known] for name, values in of.items()} for of in (got, expected))
    differences = {
        name: float(np.max(np.abs(got[name] - expected[name]), initial=0.0)) for name in ("probabilities", "ood_score")
    }
    label, scores = expected["label"], expected["ood_score"]
    spread = float(np.max(np.abs(scores), initial=1.0))
    top = np.sort(expected["probabilities"], axis=1)
    clear = top[:, -1] - top[:, -2] > tolerance if top.shape[1] > 1 else np.full(len(top), True)
    sure = clear & (np.abs(scores - calibration.thresholds[label]) > tolerance * spread)
    # By its own scores: by another's, a calibration score that is all but equal may fall on the other side.
    p_values = calibration.p_values(got["ood_score"], got["label"])
    wrong = {
        # Of NaN the comparison is false, and NaN is no answer that agrees.
        "probabilities": not differences["probabilities"] <= tolerance,
        "ood_score": not differences["ood_score"] <= tolerance * spread,
        "label": np.any(got["label"][clear] != label[clear]),
        "is_ood": np.any(got["is_ood"][sure] != calibration.flagged(scores, label)[sure]),
        "p_value": np.any(np.abs(got["p_value"] - p_values) > 1e-5),
    }
    return differences, [name for name, value in wrong.items() if value or name in unjudged]
