"""What Keras is set to, in its own file or by a caller, decides no figure of kood's."""

import keras
import pytest

from kood.process import keras_defaults


def settings():
    config = keras.config
    return (
        config.floatx(), config.dtype_policy().name, config.image_data_format(), config.epsilon(), config.max_epochs(),
        config.max_steps_per_epoch(),
    )  # fmt: skip


PLAIN = ("float32", "float32", "channels_last", 1e-7, None, None)


@pytest.fixture
def strange():
    """Another setting of everything."""
    with keras_defaults():
        config = keras.config
        config.set_floatx("float64")
        config.set_dtype_policy("mixed_bfloat16")
        config.set_image_data_format("channels_first")
        config.set_epsilon(0.1)
        config.set_max_epochs(1)
        config.set_max_steps_per_epoch(2)
        yield settings()


def test_inside_keras_is_as_it_comes_and_outside_as_it_was(strange):
    assert all(one != plain for one, plain in zip(strange, PLAIN, strict=True))
    with keras_defaults():
        assert settings() == PLAIN
        network = keras.Sequential([keras.Input((6, 5, 3)), keras.layers.Conv2D(2, 3)])
        assert network.output_shape == (None, 4, 3, 2) and network.layers[0].compute_dtype == "float32"
    assert settings() == strange
    with pytest.raises(RuntimeError), keras_defaults():
        raise RuntimeError
    assert settings() == strange


@pytest.mark.parametrize("where", ["run", "draw", "export"])
def test_whatever_builds_or_loads_a_model_for_a_command_does_it_inside(strange, where, monkeypatch, tmp_path):
    from kood import pipeline
    from kood.pipeline import interpolate
    from kood.serving import export

    seen = []

    def look(*_, **__):
        seen.append(settings())
        raise RuntimeError

    monkeypatch.setattr(pipeline, "load", look)
    monkeypatch.setattr(interpolate, "_model_of", look)
    monkeypatch.setattr(export, "opened", look)
    call = {
        "run": lambda: pipeline.run(tmp_path),
        "draw": lambda: interpolate.draw(tmp_path, "a", "b"),
        "export": lambda: export.export(tmp_path / "a.keras", tmp_path / "folder", None, 1),
    }[where]
    with pytest.raises(RuntimeError):
        call()
    assert seen == [PLAIN] and settings() == strange
