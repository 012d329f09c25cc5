"""Networks of the diffusion model: a noised image, its step and a label vector to a prediction of the image's shape.

Both networks are functional `keras.Model`s that take a dict

    {"image":     (B, H, W, C) float, the noised image,
     "step":      (B,) float in [0, 1], the step t over the number of steps T (not the index, so that a network does not
                  depend on T),
     "condition": (B, num_classes) float label vector: one-hot, soft, or all-zero for "no label"}

and return (B, H, W, C) float32. What the output means (noise, velocity) is up to whoever trains the network. The label
vector is multiplied by an embedding matrix, so a mixture of labels is one more vector, halfway between theirs. The
output layer starts at zero: an untrained network predicts 0 everywhere.

Built for speed on a CPU: 3x3 convolutions stand only in the residual blocks, at constant width. All else that mixes
channels (changes of resolution, skip connections, attention) is a matrix product, and normalisation, its affine weights
and the conditioning are folded into one multiplication and one addition per pixel.
"""

import math

import keras
from keras import layers

from kood.nets import layers as own
from kood.nets.backbones.parts import check_positive, checked_image_shape

__all__ = ["mlp", "unet"]


def mlp(
    image_shape: tuple[int, int, int], num_classes: int, width: int = 256, depth: int = 3, embedding: int = 64
) -> keras.Model:
    """Residual multilayer perceptron on the flattened image, for images of about 8 px.

    `depth` blocks `h + Dense(silu((1 + s) * Dense(h) + b))`, with s and b computed from step and label (FiLM, Perez et
    al., arXiv 1709.07871). Nothing is normalised, and the head reads h as it stands: noise is predicted at the scale of
    the input, and a normalisation before the head, which loses that scale, made worse samples of 8 px digits in the
    same number of training steps. 643,136 parameters at (8, 8, 1) with 10 classes.

    Args:
        image_shape: (H, W, C).
        num_classes: Length K of the label vector.
        width: Width of the blocks.
        depth: Number of blocks.
        embedding: Length of the step embedding and of the label embedding; even.

    Returns:
        A model as described at the top of this file.

    Raises:
        ValueError: A size is not positive, or `embedding` is odd.
    """
    inputs, context = _inputs(image_shape, num_classes, embedding, context=2 * embedding)
    check_positive(width=width, depth=depth)
    h = layers.Dense(width, name="stem")(layers.Flatten(data_format="channels_last")(inputs["image"]))
    for i in range(depth):
        modulation = layers.Dense(2 * width, name=f"block{i}_modulation")(context)
        x = own.Modulation(name=f"block{i}_film")(layers.Dense(width, name=f"block{i}_dense0")(h), modulation)
        x = layers.Dense(width, name=f"block{i}_dense1")(layers.Activation("silu")(x))
        h = layers.Add(name=f"block{i}_sum")([h, x])
    h = layers.Dense(math.prod(image_shape), kernel_initializer="zeros", dtype="float32", name="head")(h)
    return keras.Model(inputs, layers.Reshape(image_shape, dtype="float32", name="prediction")(h), name="mlp")


def unet(
    image_shape: tuple[int, int, int],
    num_classes: int,
    width: int = 32,
    multipliers: tuple[int, ...] = (1, 2, 2),
    blocks: int = 2,
    *,
    attention: tuple[int, ...] = (8,),
    patch: int = 1,
    dropout: float = 0.0,
    embedding: int = 64,
    recompute: bool = False,
) -> keras.Model:
    """U-Net of residual blocks with self-attention at low resolution.

    `patch` folds patch x patch pixels into channels before anything else, so the first level works on maps of
    H / patch x W / patch. Level i has width * multipliers[i] channels and half the resolution of the level before it.
    Going down, each level has `blocks` residual blocks, and their outputs are kept; one more block stands at the
    bottom; going up, each of the blocks sees the kept output of its counterpart. Attention follows the last block of a
    level, down and up. A residual block is
    norm, SiLU, convolution, norm with scale and shift from step and label, SiLU, dropout, convolution (zero at the
    start), plus its input (Dhariwal & Nichol, arXiv 2105.05233; Karras et al., arXiv 2206.00364). Resolution changes by
    folding 2 x 2 pixels into channels and a matrix product, and the other way round. For 16 px colour images with 10
    classes, width=80, multipliers=(1, 2), attention=(8, 4) and patch=2 make 4,038,812 parameters.

    Args:
        image_shape: (H, W, C); H and W multiples of `patch * 2 ** (len(multipliers) - 1)`.
        num_classes: Length K of the label vector.
        width: Channels of the first level, times its multiplier.
        multipliers: Channels of each level, in units of `width`.
        blocks: Residual blocks of a level, down and up.
        attention: Resolutions with self-attention, as the smaller side of the map inside the network. With
            image 16 px and patch=2 the maps are 8, 4, 2.
        patch: Side of the squares of pixels folded into channels; 1 for none.
        dropout: Dropout rate inside the residual blocks, in [0, 1).
        embedding: Length of the step embedding and of the label embedding; even.
        recompute: Keep of each residual block its input alone and compute the rest again on the way back (gradient
            checkpointing, Chen et al., arXiv 1604.06174): less memory in training for about a third more time.

    Returns:
        A model as described at the top of this file.

    Raises:
        ValueError: A size is not positive, `embedding` is odd, `dropout` is out of range, or the image cannot be
            halved as often as asked (the message says which multiple is needed).
    """
    check_positive(width=width, blocks=blocks, patch=patch)
    multipliers, attention = tuple(multipliers), tuple(attention)
    if not multipliers or min(multipliers) < 1:
        raise ValueError(f"multipliers must be a list of positive integers, got {multipliers}")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
    channels = [width * multiplier for multiplier in multipliers]
    inputs, context = _inputs(image_shape, num_classes, embedding, context=4 * width)
    height, breadth, colours = image_shape
    multiple = patch * 2 ** (len(channels) - 1)
    if height % multiple or breadth % multiple:
        raise ValueError(
            f"unet with patch={patch} and {len(channels)} levels needs a height and width that are multiples of "
            f"{multiple}, got {height}x{breadth}: use fewer multipliers or a smaller patch"
        )
    sides = [min(height, breadth) // patch // 2**i for i in range(len(channels))]

    def block(h, name):
        return own.ResidualBlock(h.shape[-1], dropout=dropout, recompute=recompute, name=name)(h, context)

    h = own.SpaceToDepth(patch, name="patches")(inputs["image"]) if patch > 1 else inputs["image"]
    h = own.Convolution(channels[0], name="stem")(h)
    kept = []
    for level, (width_here, side) in enumerate(zip(channels, sides, strict=True)):
        if level:
            h = layers.Dense(width_here, name=f"down{level}")(own.SpaceToDepth(2, name=f"down{level}_fold")(h))
        for i in range(blocks):
            h = block(h, f"down{level}_block{i}")
            if i == blocks - 1 and side in attention:
                h = _attention_block(h, f"down{level}")
            kept.append(h)
    h = block(h, "bottom_block")
    for level, (width_here, side) in reversed(list(enumerate(zip(channels, sides, strict=True)))):
        for i in range(blocks):
            name = f"up{level}_block{i}"
            h = layers.Dense(width_here, name=f"{name}_merge")(layers.Concatenate()([h, kept.pop()]))
            h = block(h, name)
            if i == blocks - 1 and side in attention:
                h = _attention_block(h, f"up{level}")
        if level:
            h = layers.Dense(4 * channels[level - 1], name=f"up{level}")(h)
            h = own.DepthToSpace(2, name=f"up{level}_unfold")(h)
    h = layers.Activation("silu")(own.ModulatedGroupNorm(own.group_count(channels[0]), name="head_norm")(h))
    h = own.Convolution(colours * patch**2, name="head", kernel_initializer="zeros", dtype="float32")(h)
    if patch > 1:
        h = own.DepthToSpace(patch, dtype="float32", name="prediction")(h)
    return keras.Model(inputs, h, name="unet")


def _inputs(
    image_shape: tuple[int, int, int], num_classes: int, embedding: int, context: int
) -> tuple[dict[str, keras.KerasTensor], keras.KerasTensor]:
    """The three inputs, and what the blocks learn of step and label: a vector (B, context)."""
    shape = checked_image_shape(image_shape, num_classes=num_classes, embedding=embedding)
    if embedding % 2:
        raise ValueError(f"embedding must be even, got {embedding}")
    inputs = {
        "image": keras.Input(shape, name="image"),
        "step": keras.Input((), name="step"),
        "condition": keras.Input((num_classes,), name="condition"),
    }
    step = own.StepEmbedding(embedding, dtype="float32", name="step_embedding")(inputs["step"])
    normal = keras.initializers.RandomNormal(stddev=1.0)
    label = layers.Dense(embedding, use_bias=False, kernel_initializer=normal, name="label_embedding")
    both = layers.Concatenate()([step, label(inputs["condition"])])
    return inputs, layers.Dense(context, activation="silu", name="context")(both)


def _attention_block(h: keras.KerasTensor, name: str) -> keras.KerasTensor:
    channels = h.shape[-1]
    heads = next(n for n in range(max(channels // 64, 1), 0, -1) if channels % n == 0)
    x = own.ModulatedGroupNorm(own.group_count(channels), name=f"{name}_attention_norm")(h)
    return layers.Add(name=f"{name}_attention_sum")([h, own.SelfAttention(heads, name=f"{name}_attention")(x)])
