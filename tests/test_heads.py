"""The heads against NumPy float64, at hard values, and against pytorch-metric-learning."""

import inspect
import math

import keras
import numpy as np
import pytest
from keras import ops

from kood import heads
from kood.scorer import linear_weights

pytestmark = pytest.mark.backend  # Run once under each Keras backend.

CLASSES, WIDTH = 5, 7
EVERY = sorted(heads.__all__)
ANGULAR = [name for name in EVERY if issubclass(getattr(heads, name), heads.AngularHead)]
POLICIES = ["float32", "mixed_float16", "mixed_bfloat16"]


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


def made(name, prototypes=None, **config):
    """A built head; an angular one on given prototypes, each of them all the sub-centres of its class."""
    classes = CLASSES if prototypes is None else prototypes.shape[1]
    head = getattr(heads, name)(classes, **config)
    head.build((None, WIDTH if prototypes is None else prototypes.shape[0]))
    if prototypes is not None:
        head.prototypes.assign(np.repeat(prototypes, head.sub_centers, axis=1))
    return head


def numbers(tensor):
    return np.asarray(ops.convert_to_numpy(tensor), np.float64)


def gradient(function, x):
    """Gradient of the sum of `function(x)`, on whichever backend runs."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        x = tf.convert_to_tensor(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = ops.sum(function(x))
        return numbers(tape.gradient(total, x))
    if backend == "jax":
        import jax

        def total(value):
            with keras.StatelessScope():  # AdaCos' scale must not leave the trace
                return ops.sum(function(value))

        return numbers(jax.jit(jax.grad(total))(ops.convert_to_tensor(x)))
    x = ops.convert_to_tensor(x).detach().requires_grad_()
    ops.sum(function(x)).backward()
    return numbers(x.grad)


def compiled(function):
    """`function` as the backend compiles it, with an unknown number of rows where it knows such a thing."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, input_signature=[tf.TensorSpec((None, WIDTH)), tf.TensorSpec((None, CLASSES))])
    if backend == "jax":
        import jax

        return jax.jit(function)
    return function


def answer(head, features, labels=None):
    """Logits without training; in one piece on JAX, which is slow to compile operation by operation."""
    if keras.backend.backend() == "jax":
        import jax

        return numbers(jax.jit(lambda x: head(x, labels))(ops.convert_to_tensor(features)))
    return numbers(head(features, labels))


def cosines64(features, prototypes):
    features, prototypes = np.float64(features), np.float64(prototypes)
    length = np.linalg.norm(features, axis=1, keepdims=True)
    features = features / np.where(length > 0, length, 1)
    return np.clip(features @ (prototypes / np.linalg.norm(prototypes, axis=0)), -1, 1)


def own_cosines64(head, features):
    """Largest cosine with a prototype of each class."""
    cosines = cosines64(features, numbers(head.prototypes))
    return cosines.reshape(len(features), head.num_classes, -1).max(axis=-1)


def target64(name, cosine, margin):
    """The margin as the papers write it, by angles."""
    theta = np.arccos(cosine)
    if name in ("CosFace", "AdaFace"):  # Before its first batch every length is an average one to AdaFace.
        return cosine - margin
    if name in ("ArcFace", "SubCenterArcFace", "CurricularFace"):
        return np.where(theta <= np.pi - margin, np.cos(theta + margin), cosine - margin * np.sin(margin))
    if name == "SphereFace":
        piece = np.floor(theta * margin / np.pi)
        return (-1.0) ** piece * np.cos(margin * theta) - 2 * piece
    return cosine


def logits64(name, features, prototypes, labels, *, margin, scale):
    cosine = cosines64(features, prototypes)
    return scale * (cosine + labels * (target64(name, cosine, margin) - cosine))


MARGINS = [
    ("ArcFace", 0.5),
    ("ArcFace", 0.0),
    ("ArcFace", 2.0),
    ("SubCenterArcFace", 0.5),
    ("CosFace", 0.35),
    ("AdaFace", 0.4),
    ("SphereFace", 1.0),
    ("SphereFace", 1.35),
    ("SphereFace", 2.0),
    ("SphereFace", 3.7),
    ("SphereFace", 4.0),
]
#: And those that change other classes than the target besides.
ON_TARGET = [*MARGINS, ("CurricularFace", 0.5)]
#: What a backend computes at these it computes at the others too.
FURTHER = [("ArcFace", 0.0), ("SphereFace", 1.0), ("SphereFace", 2.0), ("SphereFace", 3.7)]


def each(pairs):
    return [pytest.param(*one, marks=pytest.mark.one_backend if one in FURTHER else ()) for one in pairs]


def on_circle(angles):
    """Two prototypes in a plane of D dimensions and features at given angles from the first."""
    prototypes = np.zeros((WIDTH, 3), "float32")
    prototypes[0, 0] = prototypes[1, 1] = prototypes[2, 2] = 1
    features = np.zeros((len(angles), WIDTH), "float32")
    features[:, 0], features[:, 1] = np.cos(angles), np.sin(angles)
    return features, prototypes, np.eye(3, dtype="float32")[np.zeros(len(angles), int)]


@pytest.mark.parametrize(("name", "margin"), each(MARGINS))
def test_margin_matches_float64_on_random_features(name, margin):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, WIDTH)).astype("float32")
    prototypes = rng.normal(size=(WIDTH, CLASSES)).astype("float32")
    labels = np.eye(CLASSES)[rng.integers(CLASSES, size=200)]
    head = made(name, prototypes, margin=margin, scale=30)
    expected = logits64(name, features, prototypes, labels, margin=margin, scale=30)
    np.testing.assert_allclose(answer(head, features, labels), expected, atol=1e-4)
    np.testing.assert_allclose(answer(head, features, labels.argmax(1)), expected, atol=1e-4)


@pytest.mark.parametrize(("name", "margin"), each(ON_TARGET))
def test_margin_is_exact_where_features_align_with_prototypes(name, margin):
    """Where sqrt(1 - cos^2) in float32 is off by 3e-4, and a logit under s=64 by 1e-2."""
    rng = np.random.default_rng(1)
    prototypes = rng.normal(size=(512, 40)).astype("float32")
    classes = np.arange(40)
    factors = np.float32([1.0, 3.3, 1e-20, 1e20, -1.0, -0.7])[:, None, None]
    features, each = (factors * prototypes.T).reshape(-1, 512), np.tile(classes, 6)
    logits = answer(made(name, prototypes, margin=margin, scale=64), features, each)
    expected = 64 * target64(name, np.float64(np.sign(factors[:, 0])), margin)
    np.testing.assert_allclose(logits[np.arange(240), each].reshape(6, 40), expected + np.zeros(40), atol=1e-4)


@pytest.mark.parametrize(("name", "margin"), each(ON_TARGET))
def test_a_vector_without_direction_is_at_right_angles(name, margin):
    rng = np.random.default_rng(16)
    prototypes = rng.normal(size=(WIDTH, CLASSES)).astype("float32")
    prototypes[:, 1] = 0
    features = rng.normal(size=(3, WIDTH)).astype("float32")
    features[0] = 0
    classes = np.array([0, 1, 1])
    logits = answer(made(name, prototypes, margin=margin, scale=64), features, classes)
    np.testing.assert_allclose(logits[np.arange(3), classes], 64 * target64(name, 0.0, margin), atol=1e-4)


@pytest.mark.parametrize(("name", "margin"), each(ON_TARGET))
def test_margin_matches_float64_around_its_joints(name, margin):
    """The whole of [0, pi] and close to 0, to pi, and to each place where the formula changes."""
    jumps = target64(name, -1.0, margin) == target64("ArcFace", -1.0, margin)
    joints = [0.0, np.pi, np.pi - margin if jumps else np.pi / margin]
    if name == "SphereFace":
        joints += [piece * np.pi / margin for piece in range(int(margin) + 1)]
    # A step of float32 to each side of ArcFace's jump is not to be told from the jump.
    steps = [1e-2, 1e-3, 1e-5] + ([] if jumps else [1e-7, 0.0])
    angles = [joint + side * step for joint in joints for step in steps for side in (-1, 1)]
    angles = np.array([a for a in angles if 0 <= a <= np.pi] + list(np.linspace(0, 3.14, 315)))
    features, prototypes, labels = on_circle(angles)
    expected = 64 * target64(name, np.cos(angles), margin)
    if jumps:
        expected = expected[np.abs(angles - (np.pi - margin)) > 1e-6]
        features = features[np.abs(angles - (np.pi - margin)) > 1e-6]
        labels = labels[: len(features)]
    logits = answer(made(name, prototypes, margin=margin, scale=64), features, labels)
    np.testing.assert_allclose(logits[:, 0], expected, atol=1.5e-4 * max(margin, 1))


@pytest.mark.parametrize(("name", "margin"), each(ON_TARGET))
def test_margin_falls_with_the_angle_and_never_helps(name, margin):
    features, prototypes, labels = on_circle(np.linspace(0, np.pi, 2001))
    head = made(name, prototypes, margin=margin, scale=1)
    logits = answer(head, features, labels)[:, 0]
    assert np.all(np.diff(logits) <= 1e-6)
    assert np.all(logits <= answer(head, features)[:, 0] + 1e-6)


@pytest.mark.parametrize("name", ANGULAR)
def test_no_head_as_it_comes_makes_a_label_easier(name):
    features, prototypes, labels = on_circle(np.linspace(0, np.pi, 201))
    head = made(name, prototypes)
    assert np.all(answer(head, features, labels)[:, 0] <= answer(head, features)[:, 0] + 1e-5)


@pytest.mark.parametrize("multiplier", [1.35, 2.0, 2.5, 4.0])
def test_sphereface_margin_is_continuous_and_ends_where_its_pieces_do(multiplier):
    features, prototypes, labels = on_circle(np.linspace(0, np.pi, 4001))
    logits = numbers(made("SphereFace", prototypes, margin=multiplier, scale=1)(features, labels))[:, 0]
    assert np.max(np.abs(np.diff(logits))) < multiplier * np.pi / 4000 * 1.01 + 1e-6
    piece = math.floor(multiplier) if multiplier % 1 else multiplier - 1
    assert logits[-1] == pytest.approx((-1) ** piece * math.cos(multiplier * math.pi) - 2 * piece, abs=1e-5)


@pytest.mark.parametrize("name", ANGULAR)
def test_without_labels_or_with_zero_rows_there_is_no_margin(name):
    rng = np.random.default_rng(2)
    features = rng.normal(size=(6, WIDTH)).astype("float32")
    head = made(name)
    plain = answer(head, features)
    np.testing.assert_allclose(
        plain, float(ops.convert_to_numpy(head.scale)) * numbers(head.cosines(features)), atol=1e-6
    )
    np.testing.assert_allclose(answer(head, features, np.zeros((6, CLASSES))), plain, atol=1e-6)
    np.testing.assert_allclose(answer(head, features, np.full(6, -1)), plain, atol=1e-6)
    if name in dict(MARGINS):
        labels = np.eye(CLASSES)[[0, 1, 2, 3, 4, 0]]
        labels[1] = 0
        changed = np.abs(answer(head, features, labels) - plain) > 1e-6
        np.testing.assert_array_equal(changed, labels > 0)


@pytest.mark.parametrize(("name", "margin"), each(MARGINS))
def test_soft_rows_weigh_the_margin(name, margin):
    rng = np.random.default_rng(3)
    features = rng.normal(size=(50, WIDTH)).astype("float32")
    prototypes = rng.normal(size=(WIDTH, CLASSES)).astype("float32")
    labels = rng.dirichlet(np.ones(CLASSES), size=50)
    head = made(name, prototypes, margin=margin, scale=10)
    expected = logits64(name, features, prototypes, labels, margin=margin, scale=10)
    np.testing.assert_allclose(answer(head, features, labels), expected, atol=1e-4)
    if name == "CosFace":
        np.testing.assert_allclose(expected, 10 * (cosines64(features, prototypes) - labels * margin), atol=1e-12)


@pytest.mark.parametrize("name", ANGULAR)
def test_cosines_match_float64_at_any_length(name):
    rng = np.random.default_rng(4)
    features = rng.normal(size=(8, WIDTH)).astype("float32")
    features *= np.float32([[1], [1e-25], [1e25], [1e-3], [0], [1], [3e37], [1e-10]])
    head = made(name)
    cosines = head.cosines(features)
    assert keras.backend.standardize_dtype(cosines.dtype) == "float32"
    expected = own_cosines64(head, features)
    np.testing.assert_allclose(numbers(cosines), expected, atol=3e-7)
    assert np.abs(numbers(cosines)).max() <= 1


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("policy", POLICIES)
def test_logits_are_float32_under_every_policy(name, policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        half = keras.config.dtype_policy().compute_dtype
        rng = np.random.default_rng(5)
        # Values that half precision holds, so that only the head could lose digits.
        features = ops.cast(ops.convert_to_tensor(rng.integers(-8, 8, size=(6, WIDTH)).astype("float32")), half)
        labels = rng.dirichlet(np.ones(CLASSES), size=6).astype("float32")
        head = getattr(heads, name)(CLASSES)

        class Network(keras.layers.Layer):
            """Calls the head, and `cosines`, from inside a layer of the policy, as a classifier does."""

            def __init__(self):
                super().__init__()
                self.head = head

            def call(self, x):
                cosines = self.head.cosines(x) if hasattr(self.head, "cosines") else self.head(x)
                return self.head(x), self.head(x, labels), cosines

        nested = Network()(features)
        direct = head(ops.cast(features, "float32")), head(ops.cast(features, "float32"), labels)
        for tensor in nested:
            assert keras.backend.standardize_dtype(tensor.dtype) == "float32"
        for inside, outside in zip(nested, direct, strict=False):
            np.testing.assert_allclose(numbers(inside), numbers(outside), atol=1e-5)
        assert all(keras.backend.standardize_dtype(w.dtype) == "float32" for w in head.weights)
        if name in ANGULAR:
            expected = own_cosines64(head, numbers(features))
            np.testing.assert_allclose(numbers(nested[2]), expected, atol=3e-7)
    finally:
        keras.config.set_dtype_policy(before)


@pytest.mark.one_backend  # Keras's policies, and the casts are those of the test above.
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("policy", POLICIES)
def test_no_policy_rounds_float32_features_or_labels(name, policy):
    rng = np.random.default_rng(17)
    features = rng.normal(size=(6, WIDTH)).astype("float32")
    labels = rng.dirichlet(np.ones(CLASSES), size=6).astype("float32")
    plain = made(name)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        heads_under_policy = [
            made(name),
            made(name, dtype=policy),
            type(plain).from_config(plain.get_config()),
        ]
    finally:
        keras.config.set_dtype_policy(before)
    for head in heads_under_policy:
        if not head.built:
            head.build((None, WIDTH))
        head.set_weights([ops.convert_to_numpy(w) for w in plain.weights])
        np.testing.assert_array_equal(answer(head, features, labels), answer(plain, features, labels))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", ["float32", "float16", pytest.param("bfloat16", marks=pytest.mark.one_backend)])
def test_gradients_are_finite_at_hard_features(name, dtype):
    # At its usual temperature the true gradient of the square is past what float16 holds.
    head = made(name, temperature=1.0) if name in ("CIDER", "T2FNorm") else made(name)
    prototypes = np.eye(CLASSES, WIDTH, dtype="float32")
    if name in ANGULAR:
        prototypes = numbers(head.prototypes).T[:: head.sub_centers].astype("float32")
    features = np.concatenate([prototypes, -prototypes, 0 * prototypes, 1e-3 * prototypes])
    features[-1, 0] += 1e-4
    classes = np.tile(np.arange(CLASSES), 4)
    rows = np.eye(CLASSES, dtype="float32")[classes]
    each = (None, classes, rows, 0.7 * rows + 0.3 * rows[:, ::-1], 0 * rows)

    def squares(*labels):
        return lambda many: ops.stack([ops.square(head(many[at], its, training=True)) for at, its in enumerate(labels)])

    def finite(*labels):
        return np.isfinite(gradient(squares(*labels), ops.cast(np.stack([features] * len(labels)), dtype))).all()

    if keras.backend.backend() == "torch":  # Which has no gradient by a scale that is moved again in the same graph.
        assert all(map(finite, each))
    else:  # Of all in one graph, each by features of its own.
        assert finite(*each)


@pytest.mark.parametrize(("name", "margin"), each(MARGINS))
def test_gradient_matches_differences_of_float64(name, margin):
    rng = np.random.default_rng(6)
    features = rng.normal(size=(40, WIDTH)).astype("float32")
    prototypes = rng.normal(size=(WIDTH, CLASSES)).astype("float32")
    # Some rows a hair off their prototype, where a wrong sine would show most.
    labels = np.eye(CLASSES, dtype="float32")[rng.integers(CLASSES, size=40)]
    features[:10] = prototypes.T[labels[:10].argmax(1)] + 0.003 * features[:10]
    head = made(name, prototypes, margin=margin, scale=2)
    weight = rng.normal(size=(40, CLASSES)).astype("float32")
    found = gradient(lambda x: ops.multiply(head(x, labels), weight), features)

    def total(x):
        return (weight * logits64(name, x, prototypes, labels, margin=margin, scale=2)).sum(1)

    expected = np.stack(
        [(total(features + step) - total(features - step)) / 2e-6 for step in 1e-6 * np.eye(WIDTH)], axis=1
    )
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize(("name", "margin"), each(ON_TARGET))
def test_gradient_is_zero_exactly_at_the_prototype(name, margin):
    """The peak: the true gradient of a smooth margin, and the middle of the cone of a kinked one."""
    rng = np.random.default_rng(7)
    prototypes = rng.normal(size=(WIDTH, CLASSES)).astype("float32")
    head = made(name, prototypes, margin=margin, scale=10)
    rows = np.eye(CLASSES, dtype="float32")
    for sign in (1, -1):
        found = gradient(lambda x: ops.multiply(head(x, rows), rows), sign * prototypes.T)
        np.testing.assert_allclose(found, 0, atol=1e-4)


@pytest.mark.parametrize("name", EVERY)
def test_a_zero_feature_still_learns(name):
    head = made(name)
    rows = np.eye(CLASSES, dtype="float32")
    found = gradient(lambda x: ops.multiply(head(x, rows), rows), np.zeros((CLASSES, WIDTH), "float32"))
    assert np.isfinite(found).all() and np.abs(found).max() > 0


@pytest.mark.parametrize("name", EVERY)
def test_config_round_trip(name):
    others = {
        "margin": 1.25,
        "scale": 7,
        "sub_centers": 2,
        "momentum": 0.5,
        "h": 0.25,
        "temperature": 3,
        "dispersion_weight": 2,
    }
    asked = inspect.signature(getattr(heads, name).__init__).parameters
    takes = [p for p in asked if p not in ("self", "num_classes", "kwargs")]
    head = made(name, **{key: others[key] for key in takes})
    assert {key: head.get_config()[key] for key in takes} == {key: others[key] for key in takes}
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(head))
    assert type(twin) is type(head) and twin.get_config() == head.get_config()
    assert getattr(heads, name).from_config(head.get_config()).get_config() == head.get_config()
    assert keras.saving.get_registered_name(type(head)) == f"kood>{name}"


@pytest.mark.parametrize("name", ["Softmax", "SphereFace", "CosFace", "ArcFace", "AdaCos"])
def test_a_file_from_when_all_heads_were_one_module_loads(name):
    head = made(name)
    config = keras.saving.serialize_keras_object(head)
    assert config["module"] != "kood.heads"
    again = keras.saving.deserialize_keras_object({**config, "module": "kood.heads"})
    assert type(again) is type(head) and again.get_config() == head.get_config()


@pytest.mark.parametrize("name", EVERY)
def test_saved_model_answers_the_same(name, tmp_path):
    rng = np.random.default_rng(8)
    features = rng.normal(size=(4, WIDTH)).astype("float32")
    inputs = keras.Input((WIDTH,))
    head = getattr(heads, name)(CLASSES)
    model = keras.Model(inputs, head(inputs))
    head(features, np.array([0, 1, 2, 3]), training=True)  # AdaCos moves its scale
    assert model.output_shape == (None, CLASSES)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(numbers(again(features)), numbers(model(features)))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("training", [False, True])
def test_compiled_with_an_unknown_batch(name, training):
    rng = np.random.default_rng(9)
    head, twin = made(name), made(name)
    twin.set_weights([ops.convert_to_numpy(w) for w in head.weights])

    if keras.backend.backend() == "jax":

        def function(x, y):
            trainable = [w.value for w in head.trainable_variables]
            fixed = [w.value for w in head.non_trainable_variables]
            return head.stateless_call(trainable, fixed, x, y, training=training)[0]

    else:

        def function(x, y):
            return head(x, y, training=training)

    run = compiled(function)
    features = rng.normal(size=(6, WIDTH)).astype("float32")
    labels = rng.dirichlet(np.ones(CLASSES), size=6).astype("float32")
    labels[2] = 0
    result = run(ops.convert_to_tensor(features), ops.convert_to_tensor(labels))
    np.testing.assert_allclose(numbers(result), numbers(twin(features, labels, training=training)), atol=1e-5)
    single = run(ops.convert_to_tensor(features[:1]), ops.convert_to_tensor(labels[:1]))
    assert tuple(single.shape) == (1, CLASSES)


@pytest.mark.one_backend  # In kood's own step every head learns: see test_training_steps.py.
@pytest.mark.parametrize("name", ["ArcFace", "AdaCos"])  # Without a state and with one.
def test_fit_lowers_the_loss(name):
    """Labels enter symbolically, under the backend's own compiled training step."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(10)
    classes = rng.integers(CLASSES, size=64)
    rows = np.eye(CLASSES, dtype="float32")[classes]
    features = (rng.normal(size=(CLASSES, WIDTH))[classes] + 0.1 * rng.normal(size=(64, WIDTH))).astype("float32")
    x, y = keras.Input((WIDTH,)), keras.Input((CLASSES,))
    head = getattr(heads, name)(CLASSES)
    model = keras.Model([x, y], head(keras.layers.Dense(WIDTH)(x), y))
    model.compile(keras.optimizers.Adam(0.05), keras.losses.CategoricalCrossentropy(from_logits=True))
    history = model.fit([features, rows], rows, epochs=6, batch_size=24, verbose=0).history["loss"]
    assert np.isfinite(history).all() and history[-1] < history[0]
    if name == "AdaCos":
        scale = float(ops.convert_to_numpy(head.scale))
        assert scale != pytest.approx(math.sqrt(2) * math.log(CLASSES - 1), rel=1e-3)


@pytest.mark.parametrize("name", [n for n in ANGULAR if n != "CIDER"])  # Which has a temperature instead.
def test_automatic_scale(name):
    head = made(name)
    assert float(ops.convert_to_numpy(head.scale)) == pytest.approx(math.sqrt(2) * math.log(CLASSES - 1), rel=1e-6)


@pytest.mark.parametrize("name", [n for n in ANGULAR if n not in ("AdaCos", "CIDER")])
def test_scale_is_a_number_or_automatic(name):
    head = getattr(heads, name)
    assert head(CLASSES, scale=64).scale == 64
    assert head(CLASSES).get_config()["scale"] == "auto"
    assert head(2, scale=4).scale == 4
    for scale in (0, -1, float("nan"), float("inf"), "large"):
        with pytest.raises(ValueError, match="scale"):
            head(CLASSES, scale=scale)
    with pytest.raises(ValueError, match="at least 3 classes"):
        head(2)


def test_defaults_are_the_papers():
    assert heads.ArcFace(9).margin == 0.5
    assert heads.CosFace(9).margin == 0.35
    assert heads.SphereFace(9).margin == 4
    curricular, ada, sub = heads.CurricularFace(9), heads.AdaFace(9), heads.SubCenterArcFace(9)
    assert (sub.margin, sub.sub_centers) == (0.5, 3)
    assert (curricular.margin, curricular.momentum) == (0.5, 0.99)
    assert (ada.margin, ada.h, ada.momentum) == (0.4, 0.333, 0.99)
    assert heads.LogitNorm(9).temperature == 0.04
    assert heads.T2FNorm(9).temperature == 0.1
    cider = heads.CIDER(9)
    assert (cider.temperature, cider.momentum, cider.dispersion_weight) == (0.1, 0.95, 0.5)


@pytest.mark.parametrize(
    ("name", "margin"),
    [
        *(
            (name, margin)
            for name in ("ArcFace", "SubCenterArcFace", "CurricularFace", "AdaFace")
            for margin in (28.6, math.pi, -0.1, float("nan"))
        ),
        ("CosFace", -0.1),
        ("SphereFace", 0.5),
    ],
)
def test_impossible_margins_are_refused(name, margin):
    with pytest.raises(ValueError, match="margin"):
        getattr(heads, name)(CLASSES, margin=margin)


@pytest.mark.parametrize(
    ("name", "option", "wrong"),
    [
        ("SubCenterArcFace", "sub_centers", [0, -1, 1.5, True]),
        ("CurricularFace", "momentum", [1.0, -0.1, float("nan")]),
        ("AdaFace", "momentum", [1.0, -0.1, float("nan")]),
        ("AdaFace", "h", [0, -1, float("nan"), float("inf")]),
        ("LogitNorm", "temperature", [0, -1, float("nan"), float("inf")]),
        ("T2FNorm", "temperature", [0, -1, float("nan"), float("inf")]),
        ("CIDER", "temperature", [0, -1, float("nan"), float("inf")]),
        ("CIDER", "momentum", [1.0, -0.1, float("nan")]),
        ("CIDER", "dispersion_weight", [-0.1, float("nan")]),
    ],
)
def test_other_impossible_options_are_refused(name, option, wrong):
    for value in wrong:
        with pytest.raises(ValueError, match=option):
            getattr(heads, name)(CLASSES, **{option: value})


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("classes", [1, 0, -3, 2.5, True])
def test_impossible_numbers_of_classes_are_refused(name, classes):
    with pytest.raises(ValueError, match="num_classes"):
        getattr(heads, name)(classes)


@pytest.mark.parametrize("name", [*ANGULAR, "LogitNorm", "T2FNorm"])
def test_labels_of_another_shape_are_refused(name):
    features = np.ones((4, WIDTH), "float32")
    for labels in (
        np.ones((4, CLASSES + 1), "float32"),
        np.ones((4, 1), "int32"),
        np.ones((4, 2, 2), "float32"),
    ):
        with pytest.raises(ValueError, match="labels must be"):
            made(name)(features, labels)


@pytest.mark.parametrize("labels", [np.array([1]), [1, 2, 3], np.eye(CLASSES, dtype="float32")[:1]])
def test_another_number_of_labels_is_refused(labels):
    features, head = np.ones((4, WIDTH), "float32"), made("CosFace")
    for given in (labels, ops.convert_to_tensor(labels)):
        with pytest.raises(ValueError, match=f"There are 4 features but {len(labels)} labels"):
            head(features, labels=given)


def test_softmax_is_linear_and_ignores_labels():
    rng = np.random.default_rng(11)
    features = rng.normal(size=(4, WIDTH)).astype("float32")
    head = made("Softmax")
    head.bias.assign(np.arange(CLASSES))
    expected = features @ numbers(head.kernel) + np.arange(CLASSES)
    np.testing.assert_allclose(answer(head, features), expected, atol=1e-5)
    np.testing.assert_allclose(numbers(head(features, np.arange(4), training=True)), expected, atol=1e-5)


# LogitNorm


def logit_norm64(features, head, temperature):
    logits = np.float64(features) @ numbers(head.kernel) + numbers(head.bias)
    length = np.linalg.norm(logits, axis=1, keepdims=True)
    return logits, logits / np.where(length > 0, temperature * length, 1)


@pytest.mark.parametrize("temperature", [0.01, 0.04, 1.0, 20.0])
@pytest.mark.parametrize("classes", [2, CLASSES])
def test_logit_norm_matches_float64(classes, temperature):
    rng = np.random.default_rng(18)
    head = heads.LogitNorm(classes, temperature=temperature)
    head.build((None, WIDTH))
    features = rng.normal(size=(9, WIDTH)).astype("float32")
    features *= np.float32([[1], [1e-20], [1e20], [0], [1e-3], [1], [1], [30], [1e3]])
    labels = rng.dirichlet(np.ones(classes), size=9).astype("float32")
    labels[5], labels[6] = 0, np.eye(classes)[1]
    plain, normalized = logit_norm64(features, head, temperature)
    np.testing.assert_allclose(answer(head, features), plain, rtol=2e-5, atol=1e-5)
    expected = np.where(labels.any(axis=1, keepdims=True), normalized, plain)
    np.testing.assert_allclose(answer(head, features, labels), expected, rtol=2e-5, atol=2e-5 / temperature)
    numbered = np.array([0, 1, 0, 1, 0, -1, 1, 0, 1])
    np.testing.assert_allclose(answer(head, features, numbered), expected, rtol=2e-5, atol=2e-5 / temperature)
    lengths = np.linalg.norm(answer(head, features, labels), axis=1)[[0, 1, 2, 4, 6, 7, 8]]
    np.testing.assert_allclose(lengths, 1 / temperature, rtol=1e-5)


def test_the_gradient_of_logit_norm_is_at_right_angles_to_the_logits():
    """So that no step makes them longer; and it matches differences of float64."""
    rng = np.random.default_rng(19)
    head = heads.LogitNorm(WIDTH, temperature=0.5)
    head.build((None, WIDTH))
    head.kernel.assign(np.eye(WIDTH))
    features = rng.normal(size=(20, WIDTH)).astype("float32")
    labels = np.eye(WIDTH, dtype="float32")[rng.integers(WIDTH, size=20)]
    found = gradient(lambda x: ops.multiply(-ops.log_softmax(head(x, labels)), labels), features)

    def loss(x):
        logits = logit_norm64(x, head, 0.5)[1]
        return (labels * (np.logaddexp.reduce(logits, axis=1, keepdims=True) - logits)).sum(axis=1)

    steps = 1e-6 * np.eye(WIDTH)
    expected = np.stack([(loss(features + step) - loss(features - step)) / 2e-6 for step in steps], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose((found * features).sum(axis=1), 0, atol=1e-5)
    assert np.abs(found).max() > 0.1


@pytest.mark.parametrize("name", EVERY)
def test_no_rows_have_no_logits_and_teach_nothing(name):
    head = made(name)
    features, labels = np.ones((3, WIDTH), "float32"), np.arange(3)
    head(features, labels, training=True)
    before = [numbers(weight) for weight in head.weights]
    for rows in (None, labels[:0], np.zeros((0, CLASSES), "float32")):
        found = numbers(head(features[:0], rows, training=True))
        assert found.shape == (0, CLASSES)
    for weight, kept in zip(head.weights, before, strict=True):
        np.testing.assert_allclose(numbers(weight), kept, rtol=1e-6, atol=1e-7)


# T2FNorm


def t2f_norm64(features, kernel, bias, temperature):
    """Plain logits and those of features of one length, the kernel as the optimizer sees it."""
    features = np.float64(features)
    length = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.where(length > 0, length, 1)
    return features @ kernel / temperature + bias, unit @ kernel / temperature + bias


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0, 20.0])
@pytest.mark.parametrize("classes", [2, CLASSES])
def test_t2f_norm_matches_float64(classes, temperature):
    rng = np.random.default_rng(23)
    head = heads.T2FNorm(classes, temperature=temperature)
    head.build((None, WIDTH))
    stored, bias = (rng.normal(size=shape).astype("float32") for shape in ((WIDTH, classes), (classes,)))
    head.set_weights([stored, bias])
    features = rng.normal(size=(9, WIDTH)).astype("float32")
    features *= np.float32([[1], [1e-20], [1e20], [0], [1e-3], [1], [1], [30], [1e3]])
    labels = rng.dirichlet(np.ones(classes), size=9).astype("float32")
    labels[5], labels[6] = 0, np.eye(classes)[1]
    plain, normalized = t2f_norm64(features, np.float64(stored), bias, temperature)
    error = {"rtol": 2e-5, "atol": 2e-5 / temperature}
    np.testing.assert_allclose(answer(head, features), plain, **error)
    expected = np.where(labels.any(axis=1, keepdims=True), normalized, plain)
    np.testing.assert_allclose(answer(head, features, labels), expected, **error)
    numbered = np.array([0, 1, 0, 1, 0, -1, 1, 0, 1])
    np.testing.assert_allclose(answer(head, features, numbered), expected, **error)
    # What the head lends to the scores that rework its logits gives the logits that it answers.
    lent = linear_weights(head)
    np.testing.assert_allclose(features @ lent["kernel"] + lent["bias"], plain, **error)


def test_the_gradient_of_t2f_norm_is_at_right_angles_to_the_features():
    """So that no step makes them longer; and it matches differences of float64."""
    rng = np.random.default_rng(24)
    head = heads.T2FNorm(CLASSES, temperature=0.5)
    head.build((None, WIDTH))
    head.linear.bias.assign(np.arange(CLASSES))
    features = rng.normal(size=(20, WIDTH)).astype("float32")
    labels = np.eye(CLASSES, dtype="float32")[rng.integers(CLASSES, size=20)]
    found = gradient(lambda x: ops.multiply(-ops.log_softmax(head(x, labels)), labels), features)

    def loss(x):
        logits = t2f_norm64(x, numbers(head.linear.kernel), np.arange(CLASSES), 0.5)[1]
        return (labels * (np.logaddexp.reduce(logits, axis=1, keepdims=True) - logits)).sum(axis=1)

    steps = 1e-6 * np.eye(WIDTH)
    expected = np.stack([(loss(features + step) - loss(features - step)) / 2e-6 for step in steps], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose((found * features).sum(axis=1), 0, atol=1e-5)
    assert np.abs(found).max() > 0.1


@pytest.mark.parametrize("name", EVERY)
def test_labels_that_are_no_classes_are_refused(name):
    head, features = made(name), np.ones((3, WIDTH), "float32")
    ways = [lambda labels: head(features, labels), lambda labels: head(features, labels=labels.tolist())]
    if hasattr(head, "dispersion"):
        ways.append(lambda labels: head.dispersion(features, labels))
    for way in ways:
        with pytest.raises(ValueError, match=f"below {CLASSES}.* {CLASSES}"):
            way(np.arange(CLASSES - 2, CLASSES + 1, dtype="uint8"))
        with pytest.raises(ValueError, match="integers.* float64"):
            way(np.array([0.0, 1.9, 2.0]))
        way(np.array([0, -3, CLASSES - 1]))


# CIDER


def moved64(prototypes, features, labels, momentum):
    """The prototypes (D, K) after the rows of a batch, one row after another."""
    moved = np.float64(prototypes) / np.linalg.norm(prototypes, axis=0)
    for row, label in zip(np.float64(features), labels, strict=True):
        if label.any():
            k = label.argmax()
            moved[:, k] = momentum * moved[:, k] + (1 - momentum) * row / np.linalg.norm(row)
    return moved / np.linalg.norm(moved, axis=0)


def dispersion64(moved, temperature):
    alike = np.exp(moved.T @ moved / temperature)
    np.fill_diagonal(alike, 0)
    return np.log(alike.sum(axis=1) / (len(alike) - 1)).mean()


def cider_batch(rows=12):
    rng = np.random.default_rng(25)
    features, labels = rng.normal(size=(rows, WIDTH)), rng.dirichlet(np.ones(CLASSES), size=rows)
    labels[[1, 5]] = 0
    return features.astype("float32"), labels.astype("float32")


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.95])
def test_cider_matches_float64(momentum):
    features, labels = cider_batch()
    head = made("CIDER", temperature=0.2, momentum=momentum, dispersion_weight=0.5)
    before = numbers(head.prototypes)
    moved = moved64(before, features, labels, momentum)
    found = float(ops.convert_to_numpy(head.dispersion(features, labels)))
    assert found == pytest.approx(0.5 * dispersion64(moved, 0.2), rel=1e-5)
    np.testing.assert_array_equal(numbers(head.prototypes), before)
    logits = numbers(head(features, labels, training=True))
    np.testing.assert_allclose(numbers(head.prototypes), moved, atol=1e-6)
    np.testing.assert_allclose(logits, cosines64(features, moved) / 0.2, atol=1e-5)
    head(features, labels)
    head(features, training=True)
    np.testing.assert_allclose(numbers(head.prototypes), moved, atol=1e-6)


def test_ciders_prototypes_are_close_to_those_normalized_after_every_row():
    rng = np.random.default_rng(26)
    head = made("CIDER")
    labels = np.eye(CLASSES, dtype="float32")[rng.integers(CLASSES, size=64)]
    features = (numbers(head.prototypes).T[labels.argmax(1)] + 0.3 * rng.normal(size=(64, WIDTH))).astype("float32")
    each = numbers(head.prototypes) / np.linalg.norm(numbers(head.prototypes), axis=0)
    for row, label in zip(features, labels, strict=True):
        each = moved64(each, row[None], label[None], 0.95)
    head(features, labels, training=True)
    assert (numbers(head.prototypes) * each).sum(axis=0).min() > 0.99


def test_the_gradient_of_ciders_dispersion_reaches_the_labelled_features():
    features, labels = cider_batch()
    head = made("CIDER", temperature=0.5, momentum=0.5)
    before = numbers(head.prototypes)
    found = gradient(lambda x: head.dispersion(x, labels), features)
    expected = np.zeros_like(found)
    for place in np.ndindex(*features.shape):
        step = np.zeros(features.shape)
        step[place] = 1e-6
        up, down = (dispersion64(moved64(before, features + side * step, labels, 0.5), 0.5) for side in (1, -1))
        expected[place] = 0.5 * (up - down) / 2e-6
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found).max() > 1e-3 and (found[[1, 5]] == 0).all()
    assert not head.trainable_variables


# NormFace and sub-centres


def test_normface_is_scaled_cosines_whatever_the_labels():
    rng = np.random.default_rng(20)
    features = rng.normal(size=(6, WIDTH)).astype("float32")
    head = made("NormFace", scale=12)
    expected = 12 * cosines64(features, numbers(head.prototypes))
    for labels in (None, np.arange(6) % CLASSES, np.zeros((6, CLASSES), "float32"), np.full((6, CLASSES), 0.2)):
        np.testing.assert_allclose(answer(head, features, labels), expected, atol=1e-5)
    np.testing.assert_allclose(numbers(heads.NormFace(2, scale=12)(features)).shape, (6, 2))


@pytest.mark.parametrize("classes", [2, CLASSES])
@pytest.mark.parametrize("sub_centers", [1, 2, 3])
def test_sub_centers_match_float64(classes, sub_centers):
    rng = np.random.default_rng(21)
    head = heads.SubCenterArcFace(classes, margin=0.5, scale=30, sub_centers=sub_centers)
    head.build((None, WIDTH))
    prototypes = rng.normal(size=(WIDTH, classes * sub_centers)).astype("float32")
    head.prototypes.assign(prototypes)
    features = rng.normal(size=(60, WIDTH)).astype("float32")
    features[:4], features[4:8], features[8] = 2 * prototypes.T[0], -prototypes.T[-1], 0
    labels = rng.dirichlet(np.ones(classes), size=60).astype("float32")
    labels[:20] = np.eye(classes)[rng.integers(classes, size=20)]
    labels[20:25] = 0
    nearest = np.stack(
        [cosines64(features, prototypes[:, k * sub_centers :][:, :sub_centers]).max(axis=1) for k in range(classes)], 1
    )
    np.testing.assert_allclose(numbers(head.cosines(features)), nearest, atol=1e-6)
    np.testing.assert_allclose(answer(head, features), 30 * nearest, atol=1e-4)
    expected = 30 * (nearest + labels * (target64("ArcFace", nearest, 0.5) - nearest))
    # Off the target sines come from the cosine, good to 3e-4 where vectors align.
    soft = np.arange(60)[:, None] < 9
    np.testing.assert_allclose(np.where(soft, 0, answer(head, features, labels) - expected), 0, atol=1e-4)
    np.testing.assert_allclose(answer(head, features, labels), expected, atol=5e-3)


def test_only_the_nearest_sub_centers_learn():
    rng = np.random.default_rng(22)
    x, y = keras.Input((WIDTH,)), keras.Input((CLASSES,))
    head = heads.SubCenterArcFace(CLASSES, scale=4)
    model = keras.Model([x, y], head(x, y))
    before = numbers(head.prototypes)
    features = rng.normal(size=(1, WIDTH)).astype("float32")
    rows = np.eye(CLASSES, dtype="float32")[[1]]
    model.compile(keras.optimizers.SGD(1.0), keras.losses.CategoricalCrossentropy(from_logits=True))
    model.fit([features, rows], rows, verbose=0)
    moved = np.abs(numbers(head.prototypes) - before).max(axis=0).reshape(CLASSES, 3) > 0
    nearest = cosines64(features, before).reshape(CLASSES, 3).argmax(axis=1)
    np.testing.assert_array_equal(moved, np.arange(3) == nearest[:, None])


# AdaCos


def adacos64(scale, cosine, labels):
    """The paper's update for the rows that have a label."""
    taking_part = labels.any(axis=1)
    cosine, target = cosine[taking_part], labels[taking_part].argmax(axis=1)
    rows = np.arange(len(target))
    others = np.exp(scale * cosine)
    others[rows, target] = 0
    b = others.sum(axis=1).mean()
    return np.log(b) / np.cos(min(np.pi / 4, np.median(np.arccos(cosine[rows, target]))))


@pytest.mark.parametrize("rows", [1, 2, 7, 8])
@pytest.mark.parametrize("kind", ["random", "aligned", "opposite"])
def test_adacos_scale_follows_the_rule(rows, kind):
    rng = np.random.default_rng(rows)
    head = made("AdaCos")
    for _ in range(3):
        labels = rng.dirichlet(np.ones(CLASSES), size=rows).astype("float32")
        prototypes = numbers(head.prototypes)
        features = {
            "random": rng.normal(size=(rows, WIDTH)),
            "aligned": prototypes.T[labels.argmax(1)] + 0.1 * rng.normal(size=(rows, WIDTH)),
            "opposite": -prototypes.T[labels.argmax(1)],
        }[kind].astype("float32")
        before = float(ops.convert_to_numpy(head.scale))
        expected = adacos64(before, cosines64(features, prototypes), labels)
        logits = numbers(head(features, labels, training=True))
        assert float(ops.convert_to_numpy(head.scale)) == pytest.approx(expected, rel=1e-5)
        np.testing.assert_allclose(logits, expected * cosines64(features, prototypes), atol=1e-5)


def test_adacos_outliers_take_no_part():
    rng = np.random.default_rng(12)
    features = rng.normal(size=(9, WIDTH)).astype("float32")
    labels = np.eye(CLASSES, dtype="float32")[rng.integers(CLASSES, size=9)]
    labels[[1, 4, 5, 6]] = 0
    mixed, alone = made("AdaCos"), made("AdaCos")
    alone.set_weights([ops.convert_to_numpy(w) for w in mixed.weights])
    mixed(features, labels, training=True)
    keep = labels.any(axis=1)
    alone(features[keep], labels[keep].argmax(1), training=True)
    assert float(ops.convert_to_numpy(mixed.scale)) == pytest.approx(float(ops.convert_to_numpy(alone.scale)), rel=1e-6)


def test_adacos_scale_rests_without_a_labelled_row_without_labels_and_without_training():
    features = np.random.default_rng(13).normal(size=(4, WIDTH)).astype("float32")
    head = made("AdaCos")
    before = float(ops.convert_to_numpy(head.scale))
    head(features, np.zeros((4, CLASSES), "float32"), training=True)
    head(features, np.arange(4), training=False)
    head(features, np.arange(4))
    head(features, training=True)
    assert float(ops.convert_to_numpy(head.scale)) == before
    assert [w.name for w in head.non_trainable_variables] == ["scale"]
    assert [w.name for w in head.trainable_variables] == ["prototypes"]


def test_adacos_keeps_its_scale_where_the_rule_would_turn_it_negative():
    """Every other prototype opposite to the feature: B = 2 exp(-s) < 1, so ln B < 0."""
    prototypes = np.zeros((WIDTH, 3), "float32")
    prototypes[0] = [1, -1, -1]
    head = made("AdaCos", prototypes)
    before = float(ops.convert_to_numpy(head.scale))
    assert adacos64(before, np.array([[1.0, -1, -1]]), np.eye(3)[:1]) < 0
    head(prototypes.T[:1], np.array([0]), training=True)
    assert float(ops.convert_to_numpy(head.scale)) == before


def test_adacos_is_stable_under_a_large_scale():
    features = np.random.default_rng(14).normal(size=(6, WIDTH)).astype("float32")
    head = made("AdaCos")
    head.scale.assign(5000.0)
    cosine = cosines64(features, numbers(head.prototypes))
    labels = np.eye(CLASSES)[[0, 1, 2, 3, 4, 0]]
    head(features, labels, training=True)
    others = 5000 * np.where(labels > 0, -np.inf, cosine)
    log_b = np.logaddexp.reduce(others, axis=None) - np.log(6)
    median = np.median(np.arccos(cosine[labels > 0]))
    expected = log_b / np.cos(min(np.pi / 4, median))
    assert float(ops.convert_to_numpy(head.scale)) == pytest.approx(expected, rel=1e-5)


def test_adacos_needs_three_classes():
    with pytest.raises(ValueError, match="at least 3 classes"):
        heads.AdaCos(2)


# pytorch-metric-learning takes ArcFace's margin in degrees, and scales SphereFace by the feature's length.


@pytest.mark.one_backend  # Under each, the formula is held against float64.
@pytest.mark.parametrize(
    ("name", "margin", "theirs"),
    [
        ("ArcFace", 0.5, math.degrees(0.5)),
        ("CosFace", 0.35, 0.35),
        ("SphereFace", 4, 4),
        ("SphereFace", 2, 2),
        ("SubCenterArcFace", 0.5, math.degrees(0.5)),
        ("NormFace", 0.0, None),
    ],
)
@pytest.mark.parametrize("scale", [4.0, 64.0])
def test_loss_matches_pytorch_metric_learning(name, margin, theirs, scale):
    torch = pytest.importorskip("torch")
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    rng = np.random.default_rng(15)
    prototypes = rng.normal(size=(WIDTH, CLASSES)).astype("float32")
    classes = rng.integers(CLASSES, size=60)
    features = rng.normal(size=(60, WIDTH))
    features[:5], features[5:10] = prototypes.T, -prototypes.T
    classes[:10] = np.tile(np.arange(CLASSES), 2)
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype("float32")

    if name == "NormFace":
        head = made(name, prototypes, scale=scale)
        peer = losses.NormalizedSoftmaxLoss(CLASSES, WIDTH, temperature=1 / scale).double()
    else:
        head = made(name, prototypes, margin=margin, scale=scale)
        sizes = {"num_classes": CLASSES, "embedding_size": WIDTH}
        peer = getattr(losses, f"{name}Loss")(**sizes, margin=theirs, scale=scale).double()
    if name == "SubCenterArcFace":
        prototypes = np.concatenate([prototypes, rng.normal(size=(WIDTH, 2 * CLASSES))], 1).astype("float32")
        prototypes = prototypes.reshape(WIDTH, 3, CLASSES).swapaxes(1, 2).reshape(WIDTH, 3 * CLASSES)
        head.prototypes.assign(prototypes)
    peer.W.data = torch.tensor(prototypes, dtype=torch.float64)
    x = torch.tensor(features, dtype=torch.float64, requires_grad=True)
    peer_loss = peer(x, torch.tensor(classes))
    peer_loss.backward()

    def loss(x):
        log_probability = ops.log_softmax(head(x, classes), axis=-1)
        return -ops.sum(ops.multiply(log_probability, np.eye(CLASSES, dtype="float32")[classes])) / 60

    assert float(ops.convert_to_numpy(loss(features))) == pytest.approx(peer_loss.item(), rel=2e-6)
    # The peer's SphereFace also changes with the feature's length. And not at the prototypes themselves,
    # where its arccos has no gradient worth comparing.
    expected = x.grad.numpy() - (x.grad.numpy() * features).sum(axis=1, keepdims=True) * features
    np.testing.assert_allclose(gradient(loss, features)[10:], expected[10:], atol=2e-6 * scale)
