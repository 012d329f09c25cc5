"""The same answers from the SavedModel, over REST and over gRPC; files that cannot be read; what is printed."""

import contextlib
import csv
import http.client
import http.server
import io
import json
import os
import shutil
import threading
import urllib.error
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from rich.console import Console

from kood.errors import UserError
from kood.serving import client, publishing
from kood.serving.answers import Answer, answers, listed, print_answers
from kood.serving.client import GrpcModel, LocalModel, RestModel, newest_version, open_model
from kood.serving.served import Served
from tests.serving.models import encoded, pixels, published
from tests.serving.server import Server

pytestmark = pytest.mark.usefixtures("loaded_once", "as_written")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "my-run"
    folder.mkdir()
    published(folder)
    return folder


@pytest.fixture(scope="module")
def server(run):
    with Server(run) as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of many kinds, and files that are none."""
    folder = tmp_path_factory.mktemp("images of [red] 漢")
    rgb = pixels(1, size=(40, 30))[0]
    Image.fromarray(rgb).save(folder / "[red] plain.png")
    Image.fromarray(rgb).convert("L").save(folder / "grey.JPG")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgb).save(folder / "turned.webp", exif=exif, lossless=True)
    Image.fromarray(rgb).rotate(-90, expand=True).save(folder / "turned by hand.png")
    Image.fromarray(rgb).save(
        folder / "moving.webp", save_all=True, append_images=[Image.fromarray(255 - rgb)], lossless=True
    )
    (folder / "sub").mkdir()
    Image.fromarray(rgb).convert("P").save(folder / "sub" / "line\nbreak.gif")
    Image.fromarray(rgb).save(folder / "sub" / "a tiff.png", "TIFF")
    (folder / "bad.png").write_bytes(b"not an image")
    (folder / "cut.jpg").write_bytes(encoded(rgb, "JPEG")[:300])
    (folder / "notes.txt").write_text("passed over")
    return folder


def models(run, server):
    return {
        "local": open_model(run),
        "rest": open_model(run, server.rest_url),
        "grpc": open_model(run, server.grpc_url),
        "version": open_model(run / "1", server.rest_url + "/"),
    }


def test_all_answer_alike(run, server, folder):
    files = listed([folder])
    assert len(files) == 9
    found = {name: list(answers(model, files, 4)) for name, model in models(run, server).items()}
    local = found.pop("local")
    by_name = {answer.file.name: answer for answer in local}
    assert {name for name, answer in by_name.items() if answer.said is None} == {"bad.png", "cut.jpg"}
    assert "bad.png cannot be read as an image (its content is no known image format)" in by_name["bad.png"].error
    assert "cut.jpg cannot be read as an image" in by_name["cut.jpg"].error
    score = {name: answer.said["ood_score"] for name, answer in by_name.items() if answer.said}
    assert score["turned.webp"] == score["turned by hand.png"] != score["[red] plain.png"]
    assert score["moving.webp"] == score["[red] plain.png"] == score["a tiff.png"]
    for others in found.values():
        for mine, other in zip(local, others, strict=True):
            assert (mine.file, mine.error, mine.said is None) == (other.file, other.error, other.said is None)
            if mine.said:
                assert {k: v for k, v in mine.said.items() if not isinstance(v, float)} == {
                    k: v for k, v in other.said.items() if not isinstance(v, float)
                }
                for name in ("probability", "ood_score", "p_value"):
                    assert mine.said[name] == pytest.approx(other.said[name], rel=1e-6)
    assert {("encoded_marked", 1)} == set(server.requests)


def test_the_server_takes_what_a_curl_would_send(run, server):
    import urllib.request

    given = pixels(2)
    expected = tf.saved_model.load(str(run / "1")).signatures["serving_default"](images=tf.constant(given))
    for body in (
        {"instances": given.tolist()},
        {"signature_name": "encoded", "instances": [{"image_bytes": {"b64": _b64(encoded(one))}} for one in given]},
        {"signature_name": "encoded", "instances": [{"b64": _b64(encoded(one))} for one in given]},
    ):
        url = f"{server.rest_url}/v1/models/my-run:predict"
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode())) as response:
            rows = json.load(response)["predictions"]
        np.testing.assert_allclose([row["ood_score"] for row in rows], expected["ood_score"], rtol=1e-6)
        assert [row["class_name"] for row in rows] == [name.decode() for name in expected["class_name"].numpy()]


def _b64(data):
    import base64

    return base64.b64encode(data).decode()


@pytest.mark.parametrize("kind", ["rest", "grpc"])
def test_what_a_server_refuses_is_told(run, server, kind):
    url = {"rest": server.rest_url, "grpc": server.grpc_url}[kind]
    with pytest.raises(UserError, match="Servable not found") as caught:
        open_model(run.with_name("another"), url).ask([b"x"])
    assert caught.value.exit_code == 1
    with pytest.raises(UserError, match="Servable not found"):
        open_model(run / "7", url).ask([b"x"])
    gone = {"rest": "http://127.0.0.1:9", "grpc": "grpc://127.0.0.1:9"}[kind]
    with pytest.raises(UserError, match=r"cannot be reached|UNAVAILABLE"):
        open_model(run, gone, 2.0).ask([b"x"])


@contextlib.contextmanager
def saying(*predictions):
    """A model behind a server that answers whatever is asked like this."""

    class Other(http.server.BaseHTTPRequestHandler):
        def do_POST(self):  # noqa: N802
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"predictions": predictions}).encode())

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        yield RestModel(f"http://127.0.0.1:{other.server_address[1]}", "x")
        other.shutdown()


def test_a_server_that_is_no_tf_serving_is_told():
    with saying({"a": 1}) as model, pytest.raises(UserError, match="answers what kood's models do not"):
        model.ask([b"x"])


#: What a server says of an image.
PLAIN = {"label": 0, "class_name": "a", "ood_score": 0.5, "p_value": 1.0, "is_ood": False, "probabilities": [1.0]}
PLAIN |= {"decoded": True, "threshold": 1.0, "version": 4}
LABELLESS = {name: value for name, value in PLAIN.items() if name != "label"}


@pytest.mark.parametrize("kind", ["rest", "grpc"])
@pytest.mark.parametrize(
    ("said", "why"),
    [
        ([PLAIN], "1 answers for 2 images"),
        ([PLAIN] * 3, "3 answers for 2 images"),
        ([PLAIN | {"label": 1}] * 2, "label 1 of 1 probabilities"),
        ([PLAIN | {"label": -0.5}] * 2, "of other kinds or shapes"),
        ([PLAIN | {"probabilities": 0.9}] * 2, "of other kinds or shapes"),
        ([LABELLESS] * 2, "there is no 'label'"),
    ],
)
def test_an_answer_that_is_not_as_asked_is_one_line_with_the_address(kind, said, why):
    columns = {name: tf.make_tensor_proto([row[name] for row in said]) for name in said[0]}
    stub = SimpleNamespace(Predict=lambda *_, **__: SimpleNamespace(outputs=columns))
    with saying(*said) as rest:
        grpc = GrpcModel("host:1", "x")
        grpc._stub = stub
        with pytest.raises(UserError, match=rf"^(http|grpc)://\S+ answers what kood's models do not \(.*{why}") as told:
            {"rest": rest, "grpc": grpc}[kind].ask([b"x", b"y"])
    assert told.value.exit_code == 1


@pytest.mark.parametrize(
    ("error", "told"), [(OSError(), "Busy"), (http.client.IncompleteRead(b""), "Busy"), (b'{"error": "a\\nb"}', "a b")]
)
def test_a_refusal_is_one_line_however_much_of_it_comes(monkeypatch, error, told):
    def read():
        if isinstance(error, bytes):
            return error
        raise error

    def refuse(*_, **__):
        refusal = urllib.error.HTTPError("http://host", 503, "Busy", http.client.HTTPMessage(), None)
        refusal.read = read
        raise refusal

    model = RestModel("http://host", "x")
    monkeypatch.setattr(model._opener, "open", refuse)
    with pytest.raises(UserError, match=rf"^http://host/v1/models/x:predict answers 503: {told}$"):
        model.ask([b"x"])


@pytest.mark.parametrize("style", ["table", "csv", "json"])
def test_what_was_answered_before_a_server_fails_is_printed(style):
    def found():
        for name in "ab":
            yield Answer(Path(name), PLAIN | {"probability": 1.0})
        yield Answer(Path("c"), None, "c cannot be read")
        raise UserError("overloaded", exit_code=1)

    console = Console(file=io.StringIO(), width=200)
    with pytest.raises(UserError, match="overloaded"):
        print_answers(found(), 9, style=style, console=console)
    lines = console.file.getvalue().splitlines()
    assert len([line for line in lines if "0.5" in line]) == 2 and "c cannot be read" in lines[-1]


@pytest.mark.parametrize("strange", [float("nan"), float("inf"), -float("inf"), None, "NaN"])
def test_an_answer_that_cannot_be_compared_is_flagged_whatever_the_server_says(strange):
    with saying(PLAIN | {"ood_score": strange}, PLAIN) as model:
        flagged, other = model.ask([b"x", b"y"])
    assert flagged["is_ood"] and not other["is_ood"] and (other["threshold"], other["version"]) == (1.0, 4)
    # What stands between may leave out under what it was decided.
    with saying({name: value for name, value in PLAIN.items() if name not in ("threshold", "version")}) as model:
        assert not model.ask([b"x"])[0].keys() & {"threshold", "version"}


@pytest.mark.parametrize("url", ["localhost:8501", "ftp://x", "http://", "grpc:8500"])
def test_what_is_no_url_is_refused(run, url):
    with pytest.raises(UserError, match=r"write http://HOST:8501"):
        open_model(run, url)


def test_a_new_version_is_taken_up_whole(run, folder, tmp_path):
    base = tmp_path / "polled"
    shutil.copytree(run, base)
    with Server(base) as server:
        assert server.warmed == 4
        model = open_model(base, server.rest_url)
        first = next(answers(model, [folder / "[red] plain.png"]))
        score = first.said["ood_score"]
        seen = []
        # A server may look at any moment: what it sees under an integer is whole or not there.
        publish, rename = publishing.publish_calibrated, type(base).rename

        def watched(path, target):
            seen.append(sorted(p.name for p in base.iterdir() if p.name.isdecimal()))
            server.poll()
            return rename(path, target)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(base), "rename", watched)
            served = Served(
                "msp", (8, 8, 3), ["a", "b c", "d e", "f"], 0.5, np.float64([score + 1, score + 2, score + 3])
            )
            publish(base / "1", base / "2", served, {})
        assert seen == [["1"]]
        server.poll()
        assert server.warmed == 8
        again = next(answers(model, [folder / "[red] plain.png"])).said
        assert again["p_value"] == 1.0 and not again["is_ood"] and again["ood_score"] == pytest.approx(score, rel=1e-6)
        assert server.requests[-1] == ("encoded_marked", 2)


def test_grpc_alone_and_the_newest_version(run, server):
    host, version = server.grpc_url.removeprefix("grpc://"), newest_version(run)
    remote = GrpcModel(host, "my-run").ask([encoded(one) for one in pixels(3)])
    for mine, other in zip(LocalModel(version).ask([encoded(one) for one in pixels(3)]), remote, strict=True):
        assert mine["label"] == other["label"] and mine["is_ood"] == other["is_ood"]


def test_files_that_are_too_many_bytes_for_a_message_go_in_several(run, server, monkeypatch):
    files = [encoded(one) for one in pixels(7)]
    monkeypatch.setattr(client, "MESSAGE_BYTES", 5 * len(files[0]))
    before = len(server.requests)
    said = open_model(run, server.grpc_url).ask(files)
    assert len(server.requests) - before > 2
    whole = LocalModel(newest_version(run)).ask(files)
    assert [one["ood_score"] for one in said] == pytest.approx([one["ood_score"] for one in whole], rel=1e-5)
    with pytest.raises(UserError, match="larger than max"):  # One that no message can hold.
        open_model(run, server.grpc_url).ask([bytes(6 * len(files[0]))])


def test_a_run_that_is_named_by_a_number_is_asked_for_by_its_name(tmp_path, monkeypatch):
    run = tmp_path / "2024"
    published(run)
    with Server(run) as server:
        monkeypatch.chdir(run / "1")
        for one in (run, run / "1", Path(), Path("..")):
            for url in (server.rest_url, server.grpc_url):
                (row,) = open_model(one, url).ask([encoded(pixels(1)[0])])
                assert row["version"] == 1


def printed(run, folder, style):
    console = Console(file=io.StringIO(), width=200, soft_wrap=True)
    files = listed([folder])
    unread = print_answers(answers(LocalModel(run / "1"), files), len(files), style=style, title="[x]", console=console)
    return unread, console.file.getvalue(), files


def test_json_has_a_line_for_each_file(run, folder):
    unread, text, files = printed(run, folder, "json")
    rows = [json.loads(line) for line in text.splitlines()]
    assert unread == 2 and [row["image"] for row in rows] == [str(file) for file in files]
    for row in rows:
        assert row.keys() == {"image", "error"} or row.keys() == {
            "image", "label", "class_name", "probability", "ood_score", "p_value", "is_ood", "threshold", "version",
        }  # fmt: skip


def test_csv_is_read_back(run, folder):
    unread, text, files = printed(run, folder, "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert unread == 2 and len(rows) == len(files)
    assert {row["is_ood"] for row in rows} <= {"true", "false", ""}
    assert sum(bool(row["error"]) for row in rows) == 2
    assert [row["image"] for row in rows] == files  # A line break in one of them.


def test_csv_writes_control_characters_out_for_a_terminal_alone():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    name = "\x1b[31m \u202f\r.png"
    for file, image in ((io.StringIO(), "\x1b[31m \u202f\\r.png"), (Terminal(), "\\x1b[31m .png")):
        print_answers([Answer(Path(name), None, "no")], 1, style="csv", console=Console(file=file))
        assert file.getvalue().splitlines()[1].startswith(f"{image},")


def test_the_table_shows_names_as_they_are(run, folder):
    unread, text, _ = printed(run, folder, "table")
    assert unread == 2 and "[red] plain.png" in text and "line break.gif" in text and "[x]" in text
    assert "bad.png cannot be read" in text and "Traceback" not in text


def test_folders_without_images_are_told(tmp_path):
    with pytest.raises(UserError, match="no images in this folder"):
        listed([tmp_path])
    (tmp_path / "@eaDir").mkdir()
    for name in ("@eaDir/1.png", "1.txt"):
        (tmp_path / name).touch()
    told = "no images in this folder; 1 folder passed over: 1 @eaDir; 1 file passed over: 1 .txt"
    with pytest.raises(UserError, match=told):
        listed([tmp_path])
    (tmp_path / "images.csv").write_text("file,label\n@eaDir/1.png,cat\n")
    assert listed([tmp_path / "images.csv"]) == [str(tmp_path / "@eaDir" / "1.png")]
    (tmp_path / "images.csv").write_text("gone.png\n")
    with pytest.raises(UserError, match=r"^line 1 of .*images.csv names .*gone.png, .*; mend the line, or put the t"):
        listed([tmp_path / "images.csv"])
    (tmp_path / "images.csv").write_text("id,image,label\n1,gone.png,\n2,@eaDir/1.png,\n")
    assert listed([tmp_path / "images.csv"]) == [str(tmp_path / name) for name in ("gone.png", "@eaDir/1.png")]
    (tmp_path / "images.csv").write_text("id,name\n1,@eaDir/1\n")
    with pytest.raises(UserError, match=r"and none is called file; call one of them so in the first line$"):
        listed([tmp_path / "images.csv"])
    with pytest.raises(UserError, match=r"^https://\*\*\*@host/1.png: URLs are not fetched; download what is there"):
        listed([Path("https://me:secret@host/1.png")])
    assert listed([tmp_path / "missing.png"]) == [str(tmp_path / "missing.png")]


def test_a_model_that_another_program_wrote(tmp_path):
    module = tf.Module()
    module.f = tf.function(lambda x: x, input_signature=[tf.TensorSpec((None,), tf.float32)])
    tf.saved_model.save(module, str(tmp_path / "1"))
    with pytest.raises(UserError, match="no signature encoded_marked"):
        open_model(tmp_path)


def write_file(_):
    with tf.control_dependencies([tf.raw_ops.WriteFile(filename="/tmp/kood-was-here", contents="x")]):
        return tf.zeros(())


def read_file(_):
    return tf.raw_ops.ReadFile(filename="/etc/hostname")


def call_python(x):
    return tf.numpy_function(lambda a: a, [x], tf.float32)


@pytest.mark.parametrize("evil", [write_file, read_file, call_python])
@pytest.mark.parametrize("within", [False, True])
def test_a_graph_that_reaches_beyond_itself_is_not_opened(tmp_path, evil, within):
    module = tf.Module()

    def body(image_bytes):
        x = tf.zeros(2)
        inner = tf.function(evil) if within else evil
        result = inner(x)
        with tf.control_dependencies([result]):
            return {"decoded": tf.ones_like(image_bytes, tf.bool)}

    module.f = tf.function(body, input_signature=[tf.TensorSpec((None,), tf.string)])
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"encoded_marked": module.f})
    with pytest.raises(UserError, match=r"its graph holds (WriteFile|ReadFile|\w*PyFunc\w*), which kood never exports"):
        open_model(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff\xff\xff", b"not a model"])
def test_a_damaged_model_is_one_message(run, tmp_path, content):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "1" / "saved_model.pb").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be (read|opened)|no signature"):
        open_model(tmp_path / "run")


def test_a_folder_that_tensorflow_cannot_name_is_to_be_renamed(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / os.fsdecode(b"caf\xe9"))
    with pytest.raises(UserError, match=r"caf\\udce9' is not UTF-8.*; rename the folder$"):
        open_model(folder)


@pytest.mark.parametrize("how", ["missing", "cut"])
def test_damaged_weights_are_one_message(run, tmp_path, how):
    shutil.copytree(run, tmp_path / "run")
    data = tmp_path / "run" / "1" / "variables" / "variables.data-00000-of-00001"
    data.unlink() if how == "missing" else data.write_bytes(data.read_bytes()[:50])
    with pytest.raises(UserError, match="cannot be opened"):
        open_model(tmp_path / "run")
