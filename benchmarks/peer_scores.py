"""Every score against pytorch-ood on the features and logits of a classifier that exists.

    pip install pytorch-ood
    python benchmarks/peer_scores.py MODEL.keras FOLDER [--size 224]

The images of FOLDER pass the classifier once; one half fits scores, the other is scored by kood and by pytorch-ood
0.3 under the same settings. Where both answer the same quantity but for a constant factor or summand, which the table
names, that is taken off first. Fits that need several images of a class take runs of 50 images for classes, and those
of a covariance the first 50 features. Printed: the largest difference over the larger of 1 and the largest value.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from pytorch_ood import detector as peers

from kood.data.files import PassedOver, files_under
from kood.detector import Detector
from kood.scorer import Scorer

#: Features for which a covariance is determined by so few images.
FEW = 50


def main() -> None:
    """Prints a line for each score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=224)
    arguments = parser.parse_args()

    made = Detector(arguments.model, "msp", image_shape=(arguments.size, arguments.size, 3))
    files = files_under(arguments.folder, PassedOver())
    outputs = made.outputs(files)
    kernel, bias = (np.asarray(getattr(made.classifier.head, name), "float64") for name in ("kernel", "bias"))
    half = np.arange(len(files)) % 2 == 0
    fit, own = ({name: values[rows] for name, values in outputs.items()} for rows in (half, ~half))
    classes = np.arange(half.sum()) // 50
    compare(fit, own, classes, kernel, bias)


def compare(fit: dict, own: dict, classes: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> None:
    """Fits on the outputs `fit`, scores the outputs `own`."""
    tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in own.items()}
    known = {name: torch.tensor(values, dtype=torch.float64) for name, values in fit.items()}
    labels, w, b = torch.tensor(classes), torch.tensor(kernel.T), torch.tensor(bias)
    logits, features = tensors["logits"], tensors["features"]
    maps, known_maps = features[:, :, None, None], known["features"][:, :, None, None]

    def head(x):
        return x.reshape(len(x), -1) @ w.T + b

    def head_single(x):
        return head(x.double()).float()

    def linear():
        layer = torch.nn.Linear(*w.shape[::-1])
        with torch.no_grad():
            layer.weight.copy_(w)
            layer.bias.copy_(b)
        return layer

    single, known_single = features.float(), known["features"].float()
    few, known_few = features[:, :FEW], known["features"][:, :FEW]
    known_features, known_logits = known["features"], known["logits"]
    table: dict[str, Callable] = {
        "msp": lambda: peers.MaxSoftmax.score(logits),
        "max_logit": lambda: peers.MaxLogit.score(logits),
        "energy": lambda: peers.EnergyBased.score(logits),
        "entropy": lambda: peers.Entropy.score(logits),
        "gen:smallest=1e-07": lambda: peers.GEN.score(logits),
        "ash": lambda: peers.ASH(None, head, percentile=0.9).predict_feature_maps(maps),
        "scale": lambda: peers.SCALE(None, head, percentile=0.85).predict_feature_maps(maps),
        "react": lambda: peers.ReAct(None, head).fit_feature_maps(known_maps, labels).predict_feature_maps(maps),
        "dice": lambda: peers.DICE(None, w, b, 0.9).fit_features(known_features, labels).predict_features(features),
        "fdbd": lambda: peers.fDBD(None, linear()).fit_features(known_single).predict_features(single),
        "knn": lambda: peers.KNN(None).fit_features(known_features, labels).predict_features(features),
        "nnguide:k=10,share=1": (
            lambda: peers.NNGuide(None, head_single).fit_features(known_single, labels).predict_features(single)
        ),
        "vim:dim=200": (
            lambda: peers.ViM(None, 200, w, b).fit_features(known_features, labels).predict_features(features)
        ),
        "klmatching": lambda: peers.KLMatching(None).fit_logits(known_logits, labels).predict_logits(logits),
        "nci:alpha=0.01": lambda: peers.NCI(None, linear(), 0.01).fit_features(known_single).predict_features(single),
        "gradnorm": lambda: peers.GradNorm(linear(), lambda name: name == "weight").predict(single),
        "mahalanobis": lambda: peers.Mahalanobis(None).fit_features(known_few, labels).predict_features(few),
        "relativemahalanobis": lambda: peers.RMD(None).fit_features(known_few, labels).predict_features(few),
    }
    #: What is done to some of the peer's answers first.
    changes: dict[str, tuple[str, Callable]] = {
        "msp": ("1 +", lambda x: 1 + x),
        "mahalanobis": ("2N x", lambda x: 2 * len(classes) * x),
        "relativemahalanobis": ("N x", lambda x: len(classes) * x),
    }

    linear_head = SimpleNamespace(kernel=kernel, bias=bias)
    for name, peer in table.items():
        how, changed = changes.get(name, ("", lambda x: x))
        # Of what they make themselves; where that is single, features are.
        torch.set_default_dtype(torch.float64 if "mahalanobis" in name else torch.float32)
        try:
            width = FEW if "mahalanobis" in name else None
            mine_fit, mine_own = ({**of, "features": of["features"][:, :width]} for of in (fit, own))
            mine = np.asarray(Scorer(name).fit(mine_fit, classes, linear_head)(mine_own), "float64")
            theirs = changed(np.asarray(peer(), "float64"))
        except Exception as error:
            print(f"{name:24} {type(error).__name__}: {' '.join(str(error).split())[:100]}")
            continue
        far = np.abs(mine - theirs).max() / max(1.0, np.abs(theirs).max())
        print(f"{name:24} {how:4} {far:.1e}")


if __name__ == "__main__":
    main()
