"""What TF Serving is started with, read back by its own protos."""

import csv
import shlex
import shutil

import pytest
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from kood.errors import UserError
from kood.serving.config import write_serving_config
from kood.serving.extras import WARM_UP_ROWS


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
    compose = yaml.safe_load((tmp_path / "out" / "compose.yaml").read_text())
    assert {
        "type": "bind", "source": f"{tmp_path}/saved here/one", "target": "/models/one", "read_only": True,
    } in compose["services"]["serving"]["volumes"]  # fmt: skip
    assert mounted(written.docker) == {
        "/models/one": f"{tmp_path}/saved here/one", "/models/two": f"{tmp_path}/two", "/config": f"{tmp_path}/out",
    }  # fmt: skip
    assert f"--model_config_file={tmp_path / 'out' / 'models.local.config'}" in shlex.split(written.binary)


def test_requests_are_joined_only_where_it_is_asked_for(tmp_path):
    """Those that are joined fail together, for a file of one of them or two sizes of pixels."""
    written = write_serving_config([run(tmp_path / "one")], tmp_path / "out")
    assert not any("batching" in file.name or "batching" in file.read_text() for file in written.files)
    assert "batching" not in written.docker + written.binary
    joined = write_serving_config([run(tmp_path / "two")], tmp_path / "joined", max_batch=2)
    compose = yaml.safe_load((tmp_path / "joined" / "compose.yaml").read_text())["services"]["serving"]["command"]
    for words in (shlex.split(joined.docker), shlex.split(joined.binary), compose):
        assert "--enable_batching" in words and any(w.startswith("--batching_parameters_file=") for w in words)


@pytest.mark.parametrize("max_batch", [2, 16, 64, 10_000])
def test_a_request_larger_than_a_batch_is_taken_in_parts(tmp_path, max_batch):
    """TF Serving loads no model whose warm-up requests are larger than its batches, unless it may split them."""
    write_serving_config([run(tmp_path / "one")], tmp_path / "out", max_batch=max_batch, wait_microseconds=500)
    lines = (tmp_path / "out" / "batching.config").read_text().splitlines()
    given = dict(line.removesuffix(" }").split(" { value: ") for line in lines)
    assert given["enable_large_batch_splitting"] == "true" and given["batch_timeout_micros"] == "500"
    assert int(given["max_execution_batch_size"]) == max_batch
    most = 4096  # Of `kood predict --batch`.
    assert int(given["max_batch_size"]) >= max(most, max_batch, *WARM_UP_ROWS)
    assert int(given["max_enqueued_batches"]) * max_batch >= most


def mounted(command):
    """{target: source} of a `docker run`, read as a shell and docker read it."""
    words = shlex.split(command)
    values = [next(csv.reader([words[i + 1]])) for i, word in enumerate(words) if word == "--mount"]
    fields = [dict(field.partition("=")[::2] for field in value) for value in values]
    assert all(one["type"] == "bind" and "readonly" in one for one in fields)
    return {one["target"]: one["source"] for one in fields}


STRANGE = """it's: "a, b" $HOME ünï `x` \\"""


def test_commands_and_files_survive_any_path(tmp_path):
    base, out = run(tmp_path / STRANGE / "one"), tmp_path / "out" / STRANGE
    written = write_serving_config([base], out, max_batch=8)
    assert mounted(written.docker) == {"/models/one": str(base), "/config": str(out)}
    assert shlex.split(written.compose) == ["docker", "compose", "-f", str(out / "compose.yaml"), "up"]
    binary = shlex.split(written.binary)
    assert f"--model_config_file={out}/models.local.config" in binary
    assert f"--batching_parameters_file={out}/batching.config" in binary
    volumes = yaml.safe_load((out / "compose.yaml").read_text(encoding="utf-8"))["services"]["serving"]["volumes"]
    # Compose replaces variables after it has read the file, and "$$" by "$".
    assert [one["source"].replace("$$", "$") for one in volumes] == [str(base), str(out)]
    config = model_server_config_pb2.ModelServerConfig()
    text_format.Parse((out / "models.local.config").read_text(encoding="utf-8"), config)
    assert [m.base_path for m in config.model_config_list.config] == [str(base)]


@pytest.mark.parametrize("to", ["file", "file/under"])
def test_a_file_is_no_place_for_the_files(tmp_path, to):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"^--to .*: .*file is a file; name a folder"):
        write_serving_config([tmp_path / "none"], tmp_path / to)


def test_names_that_cannot_be_served_are_refused(tmp_path):
    with pytest.raises(UserError, match="rename the folder 'a b'"):
        write_serving_config([run(tmp_path / "a b")], tmp_path / "out")
    with pytest.raises(UserError, match="the same name one"):
        write_serving_config([run(tmp_path / "x" / "one"), run(tmp_path / "y" / "one")], tmp_path / "out")
    with pytest.raises(UserError, match="no SavedModel"):
        write_serving_config([tmp_path], tmp_path / "out")
    # TF Serving would take the folder around the first for the run, and of the second another version.
    named = (run(tmp_path / "two") / "3").rename(tmp_path / "exported")
    with pytest.raises(UserError, match=r"exported: the folder of a version is named by a number; .*exported/1$"):
        write_serving_config([named], tmp_path / "out")
    shutil.copytree(run(tmp_path / "three") / "3", tmp_path / "three" / "20")
    with pytest.raises(UserError, match=r"three/3: TF Serving serves the newest version, 20; give .*three$"):
        write_serving_config([tmp_path / "three" / "3"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
