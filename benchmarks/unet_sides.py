"""The sides of `unet_throughput.py`: what one process does when asked for a round."""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

__all__ = ["serve"]

CLASSES, STEPS, RATE, MOMENTUM, CLIP, DROPPED = 10, 1000, 1e-3, 0.999, 1.0, 0.1
BETAS, EPSILON = (0.9, 0.999), 1e-7


def serve(arguments: argparse.Namespace) -> None:
    """Prepares a side, says so, and answers each line of the input with the speed of one round."""
    make = {"torch": backend, "tensorflow": backend, "jax": backend, "diffusers": diffusers}[arguments.worker]
    facts, sides = make(arguments)
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        images = sides[line.strip()]()
        print(json.dumps({"speed": images / (time.perf_counter() - start)}), flush=True)


def image_set(arguments: argparse.Namespace):
    """Random pixels: their content does not matter for speed."""
    from kood.data import ImageSet

    rng, count = np.random.default_rng(0), 2048
    pixels = rng.integers(0, 256, (count, arguments.size, arguments.size, 3)).astype("uint8")
    return ImageSet(pixels, rng.integers(0, CLASSES, count), tuple(map(str, range(CLASSES))))


def batches(images, arguments: argparse.Namespace):
    """Endless (image in [-1, 1], one-hot label, class) for the loops written by hand."""
    rng, eye = np.random.default_rng(1), np.eye(CLASSES, dtype="float32")
    while True:
        rows = rng.integers(0, len(images), arguments.batch)
        yield images.images[rows].astype("float32") / 127.5 - 1.0, eye[images.labels[rows]], images.labels[rows]


def kood_unet(arguments: argparse.Namespace):
    """The network of all of kood's sides: two levels, attention at both."""
    from kood import training
    from kood.nets import denoisers

    side, shape = arguments.size // arguments.patch, (arguments.size, arguments.size, 3)
    with training.precision(arguments.precision):
        return denoisers.unet(
            shape, CLASSES, width=arguments.width, multipliers=tuple(arguments.multipliers),
            attention=(side, side // 2), patch=arguments.patch,
        )  # fmt: skip


def backend(arguments: argparse.Namespace) -> tuple[dict, dict[str, Callable[[], int]]]:
    """kood's own training and sampling, and the bare loop, on the backend of this process."""
    from kood import training
    from kood.backends import compiled, resides
    from kood.data.batches import labelled_batches
    from kood.diffusion import samplers
    from kood.diffusion.denoiser import Denoiser
    from kood.diffusion.label_mixup import noise_predictor

    images, steps, batch = image_set(arguments), arguments.steps, arguments.batch
    model = Denoiser(kood_unet(arguments), num_steps=STEPS, prediction="v", label_dropout=DROPPED, name="denoiser")
    model.compile(
        training.optimizer(10**6, learning_rate=RATE, clip_norm=CLIP, ema=MOMENTUM),
        steps_per_execution=training.steps_per_call(steps),
    )

    wanted = {"auto": "auto", "true": True, "false": False}[arguments.resident]
    held = images.images if resides(wanted, images.images.shape) else None

    def fit() -> int:
        with tempfile.TemporaryDirectory() as folder:
            training.fit(
                model,
                lambda _: labelled_batches(images, batch_size=batch, steps=steps, seed=0, resident=held is not None),
                epochs=1,
                steps_per_epoch=steps,
                folder=Path(folder),
                images=held,
            )
        return steps * batch

    network = kood_unet(arguments)
    step = {"torch": bare_torch, "tensorflow": bare_tensorflow, "jax": bare_jax}[arguments.worker](
        network, np.sqrt(model.alpha_bar).astype("float32"), np.sqrt(1.0 - model.alpha_bar).astype("float32")
    )
    stream = batches(images, arguments)

    def bare() -> int:
        for _ in range(steps):
            image, label, _ = next(stream)
            loss = step(image, label)
        float(loss)
        return steps * batch

    # One of its own: JAX's training gives away the buffers of the weights that a compiled forward pass holds.
    drawn_from = Denoiser(kood_unet(arguments), num_steps=STEPS, prediction="v", name="denoiser")
    forward = compiled(drawn_from)  # Once, as one call of `label_mixup.sample` does for all its blocks.
    condition = np.eye(CLASSES, dtype="float32")[np.arange(batch) % CLASSES]

    def sample() -> int:
        from keras import ops

        noise = np.random.default_rng(2).standard_normal((batch, arguments.size, arguments.size, 3), dtype="float32")
        denoise = noise_predictor(forward, condition)
        result = samplers.dpm_solver(
            denoise, drawn_from.alpha_bar, ops.convert_to_tensor(noise), arguments.sampling_steps, clip=None
        )
        assert np.isfinite(ops.convert_to_numpy(result)).all()
        return batch

    facts = {
        "parameters": model.network.count_params(),
        "about": f"{4 * len(arguments.multipliers) + 1} residual blocks",
    }
    return facts, {"kood": fit, "bare": bare, "sample": sample}


def bare_torch(network, signal, noise):
    """Eager torch with its own optimizer."""
    import torch

    weights = [weight.value for weight in network.trainable_weights]
    average = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, RATE, betas=BETAS, eps=EPSILON, weight_decay=0.0)
    levels = torch.tensor(signal), torch.tensor(noise)

    def step(image, label):
        image, label = torch.from_numpy(image), torch.from_numpy(label)
        t = torch.randint(0, STEPS, (len(image),))
        a, b = (level[t].reshape(-1, 1, 1, 1) for level in levels)
        epsilon = torch.randn_like(image)
        label = label * (torch.rand(len(label), 1) >= DROPPED)
        optimizer.zero_grad()
        output = network({"image": a * image + b * epsilon, "step": t / STEPS, "condition": label}, training=True)
        loss = (output - (a * epsilon - b * image)).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, CLIP)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 1.0 - MOMENTUM)
        return loss.detach()

    return step


def bare_tensorflow(network, signal, noise):
    """A `tf.function` with the optimizer written out."""
    import tensorflow as tf

    weights = [weight.value for weight in network.trainable_weights]
    first, second = ([tf.Variable(tf.zeros_like(weight)) for weight in weights] for _ in range(2))
    average, count = [tf.Variable(weight) for weight in weights], tf.Variable(0.0)

    @tf.function
    def step(image, label):
        t = tf.random.uniform((len(image),), 0, STEPS, tf.int32)
        a, b = (tf.reshape(tf.gather(level, t), (-1, 1, 1, 1)) for level in (signal, noise))
        epsilon = tf.random.normal(tf.shape(image))
        label = label * tf.cast(tf.random.uniform((len(image), 1)) >= DROPPED, tf.float32)
        with tf.GradientTape() as tape:
            inputs = {"image": a * image + b * epsilon, "step": tf.cast(t, tf.float32) / STEPS, "condition": label}
            loss = tf.reduce_mean(tf.square(network(inputs, training=True) - (a * epsilon - b * image)))
        gradients, _ = tf.clip_by_global_norm(tape.gradient(loss, weights), CLIP)
        count.assign_add(1.0)
        rate = RATE * tf.sqrt(1.0 - BETAS[1] ** count) / (1.0 - BETAS[0] ** count)
        for weight, m, v, mean, g in zip(weights, first, second, average, gradients, strict=True):
            m.assign_add((1.0 - BETAS[0]) * (g - m))
            v.assign_add((1.0 - BETAS[1]) * (g * g - v))
            weight.assign_sub(rate * m / (tf.sqrt(v) + EPSILON))
            mean.assign_add((1.0 - MOMENTUM) * (weight - mean))
        return loss

    return lambda image, label: step(tf.constant(image), tf.constant(label))


def bare_jax(network, signal, noise):
    """A jitted pure step with the optimizer written out."""
    import jax
    import jax.numpy as jnp

    fixed = [weight.value for weight in network.non_trainable_weights]
    weights = [jnp.array(weight.value) for weight in network.trainable_weights]
    zeros = [jnp.zeros_like(weight) for weight in weights]
    state = {
        "w": weights, "m": zeros, "v": [jnp.array(z) for z in zeros], "mean": [jnp.array(w) for w in weights],
        "count": jnp.zeros(()), "key": jax.random.key(0),
    }  # fmt: skip

    def loss_of(weights, image, label, key):
        keys = jax.random.split(key, 3)
        t = jax.random.randint(keys[0], (len(image),), 0, STEPS)
        a, b = (jnp.asarray(level)[t].reshape(-1, 1, 1, 1) for level in (signal, noise))
        epsilon = jax.random.normal(keys[1], image.shape)
        label = label * (jax.random.uniform(keys[2], (len(image), 1)) >= DROPPED)
        inputs = {"image": a * image + b * epsilon, "step": t / STEPS, "condition": label}
        output, _ = network.stateless_call(weights, fixed, inputs, training=True)
        return jnp.square(output - (a * epsilon - b * image)).mean()

    def step(state, image, label):
        key, now = jax.random.split(state["key"])
        loss, gradients = jax.value_and_grad(loss_of)(state["w"], image, label, now)
        norm = jnp.sqrt(sum(jnp.square(g).sum() for g in gradients))
        gradients = [g * jnp.minimum(1.0, CLIP / norm) for g in gradients]
        count = state["count"] + 1.0
        rate = RATE * jnp.sqrt(1.0 - BETAS[1] ** count) / (1.0 - BETAS[0] ** count)
        m = [BETAS[0] * old + (1.0 - BETAS[0]) * g for old, g in zip(state["m"], gradients, strict=True)]
        v = [BETAS[1] * old + (1.0 - BETAS[1]) * g * g for old, g in zip(state["v"], gradients, strict=True)]
        w = [x - rate * a / (jnp.sqrt(b) + EPSILON) for x, a, b in zip(state["w"], m, v, strict=True)]
        mean = [MOMENTUM * old + (1.0 - MOMENTUM) * x for old, x in zip(state["mean"], w, strict=True)]
        return {"w": w, "m": m, "v": v, "mean": mean, "count": count, "key": key}, loss

    jitted = jax.jit(step, donate_argnums=0)

    def run(image, label):
        nonlocal state
        state, loss = jitted(state, image, label)
        return loss

    return run


def diffusers(arguments: argparse.Namespace) -> tuple[dict, dict[str, Callable[[], int]]]:
    """UNet2DModel on torch, on either layout of memory."""
    import torch
    from diffusers import DPMSolverMultistepScheduler, UNet2DModel
    from torch.nn import functional

    from kood.diffusion import schedule

    images, batch, patch = image_set(arguments), arguments.batch, arguments.patch
    wanted = kood_unet(arguments).count_params()

    def make(layers: int, deep: int):
        return UNet2DModel(
            sample_size=arguments.size // patch,
            in_channels=3 * patch**2,
            out_channels=3 * patch**2,
            layers_per_block=layers,
            block_out_channels=(arguments.width, deep),
            down_block_types=("AttnDownBlock2D",) * 2,
            up_block_types=("AttnUpBlock2D",) * 2,
            norm_num_groups=8,
            attention_head_dim=arguments.width,
            num_class_embeds=CLASSES + 1,  # and "no label"
        )

    def parameters(net) -> int:
        return sum(weight.numel() for weight in net.parameters())

    tried = [(layers, deep) for layers in (1, 2) for deep in range(arguments.width, 2 * arguments.width + 1, 8)]
    with torch.device("meta"):
        layers, deep = min(tried, key=lambda size: abs(parameters(make(*size)) - wanted))
    alpha_bar = schedule.cosine(STEPS)
    levels = [torch.tensor(level, dtype=torch.float32) for level in (np.sqrt(alpha_bar), np.sqrt(1.0 - alpha_bar))]
    betas = 1.0 - alpha_bar / np.append(1.0, alpha_bar[:-1])
    stream = batches(images, arguments)
    sides: dict[str, Callable[[], int]] = {}
    for layout in ("NCHW", "channels_last"):
        memory = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        net = make(layers, deep).to(memory_format=memory)
        weights = list(net.parameters())
        average = [weight.detach().clone() for weight in weights]
        optimizer = torch.optim.AdamW(weights, RATE, betas=BETAS, eps=EPSILON, weight_decay=0.0)

        def train(net=net, weights=weights, average=average, optimizer=optimizer, memory=memory) -> int:
            for _ in range(arguments.steps):
                image, _, label = next(stream)
                folded = functional.pixel_unshuffle(torch.from_numpy(image).permute(0, 3, 1, 2), patch)
                folded = folded.contiguous(memory_format=memory)
                label = torch.where(torch.rand(batch) < DROPPED, CLASSES, torch.from_numpy(label))
                t = torch.randint(0, STEPS, (batch,))
                a, b = (level[t].reshape(-1, 1, 1, 1) for level in levels)
                epsilon = torch.randn_like(folded)
                optimizer.zero_grad()
                output = net(a * folded + b * epsilon, t, class_labels=label).sample
                loss = (output - (a * epsilon - b * folded)).square().mean()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(weights, CLIP)
                optimizer.step()
                with torch.no_grad():
                    torch._foreach_lerp_(average, weights, 1.0 - MOMENTUM)
            float(loss)
            return arguments.steps * batch

        def sample(net=net, memory=memory) -> int:
            scheduler = DPMSolverMultistepScheduler(
                trained_betas=betas.astype("float32"), prediction_type="v_prediction", timestep_spacing="trailing",
                final_sigmas_type="zero",
            )  # fmt: skip
            scheduler.set_timesteps(arguments.sampling_steps)
            x = torch.randn(batch, 3 * patch**2, arguments.size // patch, arguments.size // patch)
            x, label = x.contiguous(memory_format=memory), torch.arange(batch) % CLASSES
            with torch.no_grad():
                for t in scheduler.timesteps:
                    x = scheduler.step(net(x, t, class_labels=label).sample, t, x).prev_sample
            assert torch.isfinite(functional.pixel_shuffle(x, patch)).all()
            return batch

        sides |= {f"train {layout}": train, f"sample {layout}": sample}
    blocks = 4 * layers + 4  # Going down, in the middle 2, going up one more a level.
    about = f"{blocks} residual blocks, {100.0 * (parameters(net) / wanted - 1.0):+.1f}% parameters, widths "
    return {"parameters": parameters(net), "about": f"{about}{arguments.width} and {deep}"}, sides
