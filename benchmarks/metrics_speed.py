"""What all metrics of one set of scores cost: `kood.metrics.summary` against the same figures by scikit-learn.

    python benchmarks/metrics_speed.py [--scores 1000000] [--rounds 5]

Both sides answer AUROC, AUPR with either class positive, average precision and both FPR@95, in turn, A B A B, after one
round that is not counted; half of the scores are out-of-distribution. A figure is the median over the rounds of
seconds, and the ratio kood / scikit-learn (below 1 means that kood is faster). `distinct` scores have hardly a tie,
`tied` ones take 1,000 values.
"""

import argparse
import statistics

import numpy as np
from sklearn import metrics as peer
from turns import in_turn

from kood import metrics
from kood.machine import cores, processor

LEVEL = 0.95


def by_scikit_learn(scores: np.ndarray, is_ood: np.ndarray) -> dict[str, float]:
    """The figures of `kood.metrics.summary`, each by scikit-learn's own call for it."""

    def aupr(positive: np.ndarray, values: np.ndarray) -> float:
        precision, recall, _ = peer.precision_recall_curve(positive, values)
        return peer.auc(recall, precision)

    def fpr(positive: np.ndarray, values: np.ndarray) -> float:
        false, true, _ = peer.roc_curve(positive, values, drop_intermediate=False)
        return float(false[np.argmax(true >= LEVEL)])

    return {
        "auroc": peer.roc_auc_score(is_ood, scores),
        "aupr_in": aupr(~is_ood, -scores),
        "aupr_out": aupr(is_ood, scores),
        "average_precision": peer.average_precision_score(is_ood, scores),
        "fpr_at_ood_tpr": fpr(is_ood, scores),
        "fpr_at_id_tpr": fpr(~is_ood, -scores),
    }


def compare(scores: np.ndarray, is_ood: np.ndarray, rounds: int) -> tuple[float, float, float]:
    """Median seconds of kood and of scikit-learn, and the largest difference of a figure."""
    sides = {"kood": metrics.summary, "scikit-learn": by_scikit_learn}
    found = {name: figures(scores, is_ood) for name, figures in sides.items()}
    apart = max(abs(found["kood"][name] - value) for name, value in found["scikit-learn"].items())
    calls = {name: lambda _, figures=figures: figures(scores, is_ood) for name, figures in sides.items()}
    seconds = {name: statistics.median(of) for name, of in in_turn(calls, rounds).items()}
    return seconds["kood"], seconds["scikit-learn"], apart


def main() -> None:
    """Prints one line for distinct scores and one for tied ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    is_ood = rng.random(arguments.scores) < 0.5
    distinct = rng.normal(size=arguments.scores) + is_ood
    print(f"{processor()}, {cores()} cores; {arguments.scores:,} scores, {arguments.rounds} rounds")
    for kind, scores in (("distinct", distinct), ("tied", np.rint(100 * distinct))):
        ours, theirs, apart = compare(scores, is_ood, arguments.rounds)
        both = f"kood {ours:.3f} s, scikit-learn {theirs:.3f} s, ratio {ours / theirs:.2f}"
        print(f"{kind:9} {both}; largest difference {apart:.1e}")


if __name__ == "__main__":
    main()
