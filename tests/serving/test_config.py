"""What TF Serving is started with, read back by its own protos."""

import pytest
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from kood.errors import UserError
from kood.serving.config import write_serving_config


def run(folder):
    (folder / "3").mkdir(parents=True)
    (folder / "3" / "saved_model.pb").write_bytes(b"")
    return folder


def test_the_files_say_what_was_asked(tmp_path):
    runs = [run(tmp_path / "saved here" / "one"), run(tmp_path / "two") / "3"]
    written = write_serving_config(runs, tmp_path / "out", max_batch=16, wait_microseconds=500)
    assert {file.name for file in written.files} == {path.name for path in (tmp_path / "out").iterdir()}
    for name, paths in (
        ("models.config", ["/models/one", "/models/two"]),
        ("models.local.config", [str(tmp_path / "saved here" / "one"), str(tmp_path / "two")]),
    ):
        config = model_server_config_pb2.ModelServerConfig()
        text_format.Parse((tmp_path / "out" / name).read_text(), config)
        assert [(m.name, m.base_path, m.model_platform) for m in config.model_config_list.config] == [
            ("one", paths[0], "tensorflow"), ("two", paths[1], "tensorflow"),
        ]  # fmt: skip
    batching = (tmp_path / "out" / "batching.config").read_text()
    assert "max_batch_size { value: 16 }" in batching and "batch_timeout_micros { value: 500 }" in batching
    compose = yaml.safe_load((tmp_path / "out" / "compose.yaml").read_text())
    assert f"{tmp_path}/saved here/one:/models/one:ro" in compose["services"]["serving"]["volumes"]
    assert f"-v '{tmp_path}/saved here/one:/models/one:ro'" in written.docker
    assert str(tmp_path / "out" / "models.local.config") in written.binary


def test_names_that_cannot_be_served_are_refused(tmp_path):
    with pytest.raises(UserError, match="rename the folder 'a b'"):
        write_serving_config([run(tmp_path / "a b")], tmp_path / "out")
    with pytest.raises(UserError, match="the same name one"):
        write_serving_config([run(tmp_path / "x" / "one"), run(tmp_path / "y" / "one")], tmp_path / "out")
    with pytest.raises(UserError, match="no SavedModel"):
        write_serving_config([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
