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
