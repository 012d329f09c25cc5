"""Class-conditional diffusion: schedule, model, samplers, label mixup.

Example:
    ```python
    import numpy as np
    from kood.diffusion import samplers, schedule

    alpha_bar = schedule.cosine(num_steps=100)
    noise = np.random.default_rng(0).normal(size=(2, 4, 4, 1)).astype("float32")

    def denoise(x, t):  # What a network would predict of the noise.
        return 0.1 * x

    samplers.dpm_solver(denoise, alpha_bar, noise, num_steps=5)  # (2, 4, 4, 1)
    ```
"""

import importlib
from typing import Any

__all__ = ["label_mixup", "samplers", "schedule"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
