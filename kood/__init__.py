"""kood: image classifiers that know what they do not know.

    Detector    a classifier, a score of its outputs, and a calibrated decision
    run         a recipe, from its images to its report and its SavedModel
    heads       margin heads, Keras layers
    losses      what outliers are exposed by
    scores      out-of-distribution scores
    metrics     how well scores tell images apart
    diffusion   the label-mixup diffusion model: schedule, samplers, label_mixup

Each is loaded when it is first used, and so are `conformal`, `errors` (what `UserError` is of), `intervals` and
`recipe`; `import kood` loads neither Keras nor TensorFlow.

Example:
    ```python
    import numpy as np
    import kood

    inside, outside = np.array([0.1, 0.4, 0.2]), np.array([0.9, 0.3])
    scores = np.concatenate([inside, outside])
    kood.metrics.auroc(scores, is_ood=[False, False, False, True, True])
    ```
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PLACES = {"Detector": "kood.detector", "run": "kood.pipeline"}
_ROOMS = ("conformal", "diffusion", "errors", "heads", "intervals", "losses", "metrics", "recipe", "scores")

__all__ = ["Detector", "diffusion", "heads", "losses", "metrics", "run", "scores"]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"kood.{name}")
    raise AttributeError(f"module 'kood' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES, *_ROOMS})
