"""TensorFlow operations that tf2onnx cannot convert, or converts so that NaN gets through; importing registers them."""

import numpy as np
import tf2onnx.onnx_opset  # noqa: F401  Its own come first, or they would replace these.
from onnx import TensorProto
from tf2onnx.handler import tf_op

__all__: list[str] = []


@tf_op("SelectV2")
class Select:
    """One of two values. tf2onnx adds them times 1 and 0, and 0 times NaN is NaN."""

    @classmethod
    def version_9(cls, ctx, node, **kwargs):
        """`Where` selects as TensorFlow does; ONNX Runtime has it for numbers."""
        if ctx.get_dtype(node.output[0]) == TensorProto.BOOL:
            for place in (1, 2):
                ctx.insert_new_node_on_input(node, "Cast", node.input[place], input_index=place, to=TensorProto.INT32)
            ctx.insert_new_node_on_output("Cast", node.output[0], to=TensorProto.BOOL)
        node.type = "Where"


@tf_op("Log1p")
class Log1p:
    """ln(1 + x) to the last digits: x ln(u) / (u - 1), u = 1 + x rounded; x where u is 1 (Kahan)."""

    @classmethod
    def version_9(cls, ctx, node, **kwargs):
        """Writes the formula."""

        def formula(make, x):
            grown = make("Add", x, 1.0)
            rest = make("Sub", grown, 1.0)
            return make("Equal", rest, 0.0), x, make("Div", make("Mul", x, make("Log", grown)), rest)

        _replace(ctx, node, formula)


@tf_op("Expm1")
class Expm1:
    """exp(x) - 1 to the last digits: x (u - 1) / ln(u), u = exp(x) rounded; x where u is 1, u - 1 beyond 1 (Kahan)."""

    @classmethod
    def version_9(cls, ctx, node, **kwargs):
        """Writes the formula."""

        def formula(make, x):
            power = make("Exp", x)
            rest = make("Sub", power, 1.0)
            small = make("Div", make("Mul", x, rest), make("Log", power))
            return make("Equal", rest, 0.0), x, make("Where", make("Greater", make("Abs", x), 1.0), rest, small)

        _replace(ctx, node, formula)


@tf_op("Erfc")
class Erfc:
    """1 - erf(x), what TensorFlow makes of a GELU: near 1 its digits are float32's, far out they are those of 1."""

    @classmethod
    def version_9(cls, ctx, node, **kwargs):
        """Writes the formula."""
        _replace(ctx, node, lambda make, x: make("Sub", 1.0, make("Erf", x)))


def _replace(ctx, node, formula):
    """Puts what a formula answers in the place of an operation: a tensor, or `Where` of three."""

    def tensors(values):
        return [
            value if isinstance(value, str) else ctx.make_consts([value], np.float32)[0].output[0] for value in values
        ]

    def make(kind, *values):
        return ctx.make_node(kind, tensors(values)).output[0]

    (x,), outputs = node.input, node.output
    shapes, dtypes = node.output_shapes, node.output_dtypes
    ctx.remove_node(node.name)
    found = formula(make, x)
    kind, inputs = ("Where", tensors(found)) if isinstance(found, tuple) else ("Identity", [found])
    ctx.make_node(kind, inputs, outputs=outputs, name=node.name, shapes=shapes, dtypes=dtypes)
