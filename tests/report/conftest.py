"""Made-up results, generated with a seed: no figure here was measured."""

import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rich.console import Console

DATASETS = {
    "digits 6-9": {"kind": "near", "images": 540},
    "letters": {"kind": "near", "images": 300},
    "photo patches": {"kind": "far", "images": 400},
    "uniform": {"kind": "far", "images": 400},
}
SCORES = ("msp", "energy", "max_cosine", "mahalanobis")
METRICS = ("auroc", "aupr_in", "aupr_out", "average_precision", "fpr_at_ood_tpr", "fpr_at_id_tpr")


def words(svg: bytes) -> list[str]:
    """What is written on a figure, in the order of drawing."""
    return [found.strip() for found in re.findall(r"<!--(.*?)-->", svg.decode(), re.DOTALL)]


def make_cell(seed: int = 0, **overrides: Any) -> dict[str, Any]:
    """One run's result in the shape that evaluation hands over."""
    rng = np.random.default_rng([seed, *map(ord, str(overrides))])
    scores: dict[str, Any] = {}
    for score in SCORES:
        of_score: dict[str, Any] = {}
        for name in DATASETS:
            high, low = rng.uniform(0.9, 1.0), rng.uniform(0.0, 0.3)
            of_score[name] = {
                metric: float(low if metric.startswith("fpr") else high) + float(rng.uniform(-0.02, 0.0)) * 0.5
                for metric in METRICS
            }
        for kind in ("near", "far"):
            names = [name for name, dataset in DATASETS.items() if dataset["kind"] == kind]
            of_score[kind] = {m: sum(of_score[name][m] for name in names) / len(names) for m in METRICS}
        scores[score] = of_score
    return {
        "recipe": "digits",
        "cell": overrides and {key.replace("__", "."): value for key, value in overrides.items()} | {"seed": seed},
        "backend": "tensorflow",
        "kood": "0.1.0",
        "quick": False,
        "seeds": [seed],
        "id": {"accuracy": float(rng.uniform(0.97, 1.0)), "images": 324},
        "datasets": {name: dict(dataset) for name, dataset in DATASETS.items()},
        "scores": scores,
        "headline_score": "msp",
        "validation": {"msp": 0.981, "energy": 0.973, "max_cosine": 0.964, "mahalanobis": 0.942},
        "threshold": {
            "score": "msp",
            "value": 0.41237,
            "accept": 0.95,
            "accepted_id_test": 0.9444,
            "calibration_images": 109,
        },
        "warnings": [],
        "stages": {
            "diffusion": {"seconds": 13.42, "cached": True},
            "outliers": {"seconds": 0.71, "cached": False},
            "classifier": {"seconds": 125.4, "cached": False},
        },
        "environment": {"device": "CPU", "keras": "3.15.1", "tensorflow": "2.21.0", "python": "3.11.9"},
    }


@pytest.fixture
def cell() -> dict[str, Any]:
    """The result of a plain run."""
    return make_cell()


@pytest.fixture
def new_cell() -> Callable[..., dict[str, Any]]:
    """Makes results: `new_cell(seed, head__name="arcface")`."""
    return make_cell


@pytest.fixture
def matrix() -> dict[str, Any]:
    """A matrix of two heads, three kinds of outliers and three seeds, with two failed cells."""
    cells = [
        make_cell(seed, head__name=head, outliers__kind=kind)
        for kind in ("label_mixup", "pixel_mixup", "noise")
        for head in ("softmax", "arcface")
        for seed in (0, 1, 2)
    ]
    return {
        "recipe": "digits",
        "backend": "tensorflow",
        "kood": "0.1.0",
        "quick": False,
        "cells": cells,
        "failed": [
            {"cell": {"head.name": "sphereface", "outliers.kind": "noise", "seed": 0}, "error": "loss became NaN"},
            {"cell": {"head.name": "sphereface", "outliers.kind": "noise", "seed": 1}, "error": "out of memory"},
        ],
    }


@pytest.fixture
def id_and_ood_scores() -> dict[str, np.ndarray]:
    """Headline scores of the ID test images and of each dataset."""
    rng = np.random.default_rng(7)
    shift = {"digits 6-9": 1.6, "letters": 2.2, "photo patches": 3.5, "uniform": 5.0}
    scores = {name: rng.normal(shift[name], 1.0, dataset["images"]) for name, dataset in DATASETS.items()}
    return {"id": rng.normal(-1.0, 0.9, 324), **scores}


@pytest.fixture
def histories() -> dict[str, dict[str, list[float]]]:
    """Training histories of two stages, one of them long."""
    rng = np.random.default_rng(3)
    steps = np.arange(3000)
    noisy = 0.05 + np.exp(-steps / 300) * 3 + rng.normal(0, 0.01, 3000) ** 2
    epochs = np.arange(30)
    return {
        "diffusion": {"loss": noisy.tolist()},
        "classifier": {
            "loss": (0.1 + np.exp(-epochs / 5)).tolist(),
            "cross_entropy": (0.06 + np.exp(-epochs / 5)).tolist(),
            "outlier_exposure": (0.04 + np.exp(-epochs / 9) / 3).tolist(),
            "accuracy": (1 - 0.9 * np.exp(-epochs / 3)).tolist(),
        },
    }


def printed(show: Callable[[Console], None], width: int = 80, **options: Any) -> str:
    """What `show` prints, as plain text unless the options say that it is a terminal."""
    stream = io.StringIO()
    show(Console(file=stream, width=width, **options))
    return stream.getvalue()


@pytest.fixture
def capture() -> Callable[..., str]:
    """See `printed`."""
    return printed
