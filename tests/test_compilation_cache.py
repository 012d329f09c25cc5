"""Where JAX keeps what it has compiled for an accelerator."""

import keras
import pytest

pytestmark = [
    pytest.mark.backend,
    pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX's own cache"),
]


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """cache(...) -> the folder that JAX is told of, on a machine with so many accelerators."""
    import jax

    from kood.backends import jax_devices

    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def found(accelerators=1, given=None):
        monkeypatch.setattr(jax_devices, "accelerators", lambda: accelerators)
        jax.config.update("jax_compilation_cache_dir", given)
        jax_devices.keep_programs()
        return jax.config.jax_compilation_cache_dir

    yield found
    jax.config.update("jax_compilation_cache_dir", before)


def test_programs_of_an_accelerator_are_kept_in_the_user_s_folder(cache, tmp_path, monkeypatch):
    assert cache() == str(tmp_path / "cache" / "kood" / "jax") and (tmp_path / "cache" / "kood" / "jax").is_dir()
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")  # Which the specification says to ignore.
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache() == str(tmp_path / "home" / ".cache" / "kood" / "jax")


def test_a_folder_that_is_named_stays_and_a_cpu_has_none(cache, tmp_path):
    assert cache(given=str(tmp_path / "mine")) == str(tmp_path / "mine")
    assert cache(accelerators=0) is None
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_written_is_no_error(cache, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder would be")
    assert cache() is None
