"""The SavedModel in runtimes that are not TensorFlow's Python: a C program on TensorFlow's own loader, and OpenVINO."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from kood.serving.publishing import write_single_signature
from tests.serving.models import pixels, published

#: Without a state and with one.
MODELS = [("Softmax", "energy"), ("CosFace", "mahalanobis")]


@pytest.fixture(scope="module", params=MODELS, ids=lambda of: of[1])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "run"
    published(folder, head=request.param[0], score=request.param[1])
    return folder


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler here")
    wheel = Path(tf.sysconfig.get_lib())
    libraries = [next(wheel.glob(f"{name}.so*"), None) for name in ("libtensorflow_cc", "libtensorflow_framework")]
    if not all(libraries) or not (wheel / "include" / "tensorflow" / "c" / "c_api.h").exists():
        pytest.skip("this TensorFlow comes without its C interface")
    built = tmp_path_factory.mktemp("native") / "answer"
    subprocess.run(
        [compiler, "-O1", "-Wall", "-Werror", str(Path(__file__).parent / "native" / "answer.c"), "-o", str(built),
         f"-I{wheel / 'include'}", *map(str, libraries), f"-Wl,-rpath,{wheel}", "-Wl,--allow-shlib-undefined"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return built


def answered(run, images):
    signature = tf.saved_model.load(str(run / "1")).signatures["serving_default"]
    return {name: value.numpy() for name, value in signature(images=tf.constant(images)).items()}


@pytest.mark.slow
@pytest.mark.parametrize("size", [(8, 8), (21, 13)])
def test_a_c_program_gets_the_same_answers(run, program, size):
    images = pixels(5, size=size)
    graph = saved_model_pb2.SavedModel.FromString((run / "1" / "saved_model.pb").read_bytes())
    signature = graph.meta_graphs[0].signature_def["serving_default"]
    names = sorted(signature.outputs)
    result = subprocess.run(
        [program, run / "1", signature.inputs["images"].name, *map(str, images.shape),
         *(signature.outputs[name].name for name in names)],
        input=images.tobytes(), capture_output=True, check=True,
    )  # fmt: skip
    lines = dict(zip(names, result.stdout.decode().splitlines(), strict=True))
    expected = answered(run, images)
    assert lines["class_name"].split() == b" ".join(expected["class_name"]).decode().split()
    for name in ("label", "is_ood"):
        assert [int(word) for word in lines[name].split()] == expected[name].astype(int).tolist()
    for name in ("probabilities", "ood_score", "p_value"):
        found = np.float64(lines[name].split())
        np.testing.assert_allclose(found, expected[name].ravel(), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_openvino_gets_the_same_answers(run, tmp_path):
    openvino = pytest.importorskip("openvino")
    write_single_signature(run / "1", tmp_path / "one")
    core = openvino.Core()
    # It would take bfloat16 where the processor has it.
    compiled = core.compile_model(core.read_model(str(tmp_path / "one")), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    expected, images = answered(run, pixels(20)), (pixels(20) / np.float32(127.5) - np.float32(1)).astype("float32")
    for rows in (20, 1):
        found = {port.any_name: value for port, value in compiled([images[:rows]]).items()}
        assert found.keys() == expected.keys()
        assert [str(name) for name in found["class_name"]] == [n.decode() for n in expected["class_name"][:rows]]
        np.testing.assert_array_equal(found["label"], expected["label"][:rows])
        np.testing.assert_array_equal(found["is_ood"].astype(bool), expected["is_ood"][:rows])
        for name in ("probabilities", "ood_score", "p_value"):
            np.testing.assert_allclose(found[name], expected[name][:rows], rtol=1e-4, atol=1e-5)
