"""The class-conditional diffusion model as a Keras model with its own loss."""

import keras
import numpy as np
from keras import ops

import kood.nets.layers  # noqa: F401  A saved denoiser is made of these layers; this makes them known by name.
from kood.backends import TrainStep, mine, share, whole
from kood.diffusion import schedule as schedules
from kood.numbers import above_zero
from kood.numbers import whole as whole_number

__all__ = ["Denoiser"]


@keras.saving.register_keras_serializable(package="kood")
class Denoiser(TrainStep):
    """Predicts the noise in a noisy image under a label vector (DDPM, Ho et al. 2020, arXiv 2006.11239).

    With a the cumulative alpha-bar at a uniformly drawn step, x_t = sqrt(a) x + sqrt(1 - a) eps, and the loss is the
    mean squared error of the network against eps, or against the velocity v = sqrt(a) eps - sqrt(1 - a) x
    (Salimans & Ho 2022, arXiv 2202.00512). Labels are dropped at random, so that the model is also an unconditional
    one (Ho & Salimans 2022, arXiv 2207.12598): an all-zero label vector means "no class".

    With min-SNR weighting (Hang et al. 2023, arXiv 2303.09556) each row's error is multiplied by a weight of its step:
    with SNR = a / (1 - a), min(SNR, gamma) / SNR for the noise and min(SNR, gamma) / (SNR + 1) for the velocity. Both
    weigh the error of the implied clean image by min(SNR, gamma).

    Args:
        network: Model, {"image": (B, H, W, C), "step": (B,) in [0, 1), "condition": (B, K)} -> (B, H, W, C).
        schedule: Name of a function of `kood.diffusion.schedule`.
        num_steps: Length T of the schedule.
        prediction: "epsilon" or "v".
        label_dropout: Probability that a training row loses its label.
        seed: Seed of the noise, the steps and the dropped labels.
        min_snr: Gamma of the min-SNR weights, or None to weigh all rows the same.

    Raises:
        ValueError: A setting that is none of these.
    """

    def __init__(
        self,
        network,
        schedule="cosine",
        num_steps=1000,
        prediction="epsilon",
        label_dropout=0.1,
        seed=0,
        min_snr=None,
        **kwargs,
    ):
        if schedule not in schedules.__all__:
            raise ValueError(f"schedule must be one of {', '.join(schedules.__all__)}; it is {schedule!r}")
        if prediction not in ("epsilon", "v"):
            raise ValueError(f"prediction must be 'epsilon' or 'v'; it is {prediction!r}")
        if not 0 <= label_dropout <= 1:
            raise ValueError(f"label_dropout must be from 0 to 1; it is {label_dropout!r}")
        if min_snr is not None:
            above_zero("min_snr", min_snr)
        super().__init__(**kwargs)
        self.network = network
        self.schedule = schedule
        self.num_steps = whole_number("num_steps", num_steps)
        self.prediction = prediction
        self.label_dropout = label_dropout
        self.seed = seed
        self.min_snr = min_snr
        self.alpha_bar = getattr(schedules, schedule)(self.num_steps)
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.watch("noise_error")
        self.built = True

    @property
    def image_shape(self):
        """(H, W, C) of the images."""
        return tuple(self.network.output_shape[1:])

    def call(self, inputs, training=False):
        """The noise in an image.

        Args:
            inputs: {"image": noisy images (B, H, W, C), "step": integer (B,) indices into the schedule,
                "condition": label vectors (B, K)}.
            training: Whether layers run in training mode.

        Returns:
            The predicted noise, float32 (B, H, W, C), whatever the network predicts.
        """
        output = self._predict(inputs["image"], inputs["step"], inputs["condition"], training)
        if self.prediction == "epsilon":
            return output
        signal, noise = self._levels(inputs["step"])
        return signal * output + noise * inputs["image"]

    def loss_terms(self, batch, training=False):
        """The denoising error of one batch.

        Args:
            batch: {"image": (B, H, W, C) in [-1, 1], "label": (B, K)}.
            training: Whether layers run in training mode.

        Returns:
            {"noise_error": mean squared error, weighted where `min_snr` is given, scalar float32}, and what layers add.
        """
        image, label = ops.cast(batch["image"], "float32"), ops.cast(batch["label"], "float32")
        rows, *pixels = ops.shape(image)
        rows = whole(rows)
        step = mine(keras.random.randint((rows,), 0, self.num_steps, seed=self.seed_generator))
        epsilon = mine(keras.random.normal((rows, *pixels), seed=self.seed_generator))
        kept = mine(keras.random.uniform((rows, 1), seed=self.seed_generator)) >= self.label_dropout
        signal, noise = self._levels(step)
        target = epsilon if self.prediction == "epsilon" else signal * epsilon - noise * image
        output = self._predict(signal * image + noise * epsilon, step, label * ops.cast(kept, "float32"), training)
        error = ops.square(output - target)
        if self.min_snr is not None:
            error = ops.take(self.weights_of_steps().astype("float32"), step)[:, None, None, None] * error
        return {"noise_error": share(ops.mean(error)), **self.of_layers()}

    def weights_of_steps(self):
        """The weight of the loss at each step of the schedule, float64 (T,)."""
        if self.min_snr is None:
            return np.ones(self.num_steps)
        signal, noise = self.alpha_bar, 1.0 - self.alpha_bar
        # The formulas of the docstring, multiplied out so that no SNR is divided by.
        if self.prediction == "epsilon":
            return np.minimum(1.0, self.min_snr * noise / signal)
        return np.minimum(signal, self.min_snr * noise)

    def _predict(self, image, step, condition, training):
        inputs = {"image": image, "step": ops.cast(step, "float32") / self.num_steps, "condition": condition}
        return ops.cast(self.network(inputs, training=training), "float32")

    def _levels(self, step):
        """sqrt(a) and sqrt(1 - a) of each row, (B, 1, 1, 1)."""
        table = np.stack([np.sqrt(self.alpha_bar), np.sqrt(1.0 - self.alpha_bar)]).astype("float32")
        signal, noise = (ops.reshape(ops.take(row, step), (-1, 1, 1, 1)) for row in table)
        return signal, noise

    def get_config(self):
        """The arguments, so that `from_config` makes the same model."""
        return {
            **super().get_config(),
            "network": keras.saving.serialize_keras_object(self.network),
            "schedule": self.schedule,
            "num_steps": self.num_steps,
            "prediction": self.prediction,
            "label_dropout": self.label_dropout,
            "seed": self.seed,
            "min_snr": self.min_snr,
        }

    @classmethod
    def from_config(cls, config):
        """The model that `get_config` describes."""
        config = dict(config)
        config["network"] = keras.saving.deserialize_keras_object(config["network"])
        return cls(**config)
