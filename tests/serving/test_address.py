"""Servers behind passwords and proxies: what is used, what is told, and what is never shown."""

import base64
import http.server
import json
import threading
from concurrent import futures

import grpc
import pytest

from kood import cli
from kood.errors import UserError
from kood.process import through_proxy
from kood.serving.address import Address
from kood.serving.client import GrpcModel, RestModel
from kood.text import masked

ROW = {
    "label": 0, "class_name": "a", "ood_score": 0.0, "p_value": 1.0, "is_ood": False, "probabilities": [1.0],
    "decoded": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "no_proxy", "no_grpc_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def rest():
    """A server that keeps what it is asked with, and answers as `rest.answer` says."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):  # noqa: N802
            self.rfile.read(int(self.headers["Content-Length"]))
            server.asked.append((self.path, self.headers.get("Authorization")))
            code, headers, body = server.answer
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.answer = [], (200, {}, json.dumps({"predictions": [ROW]}).encode())
        server.place = f"127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def basic(user, password):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def test_rest_uses_user_and_password(rest):
    RestModel(f"http://us%40er:se%3Acr%2Fet%C3%BC@{rest.place}/behind/", "m").ask([b"x"])
    RestModel(f"http://{rest.place}", "m", 3).ask([b"x"])
    assert rest.asked == [
        ("/behind/v1/models/m:predict", basic("us@er", "se:cr/etü")), ("/v1/models/m/versions/3:predict", None),
    ]  # fmt: skip


@pytest.mark.keras
def test_grpc_uses_user_and_password():
    asked = []

    class Any(grpc.GenericRpcHandler):
        def service(self, details):
            asked.append(dict(details.invocation_metadata).get("authorization"))

    server = grpc.server(futures.ThreadPoolExecutor(1), handlers=[Any()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with pytest.raises(UserError, match=f"^grpc://127.0.0.1:{port} answers UNIMPLEMENTED"):
        GrpcModel(f"grpc://user:se%20cret@127.0.0.1:{port}", "m", timeout=10.0).ask([b"x"])
    server.stop(0)
    assert asked == [basic("user", "se cret")]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((401, {}, b"<html>no</html>"), "user and password are not taken"),
        ((503, {}, b"out of order"), "out of order"),
        ((301, {"Location": "https://other:hidden@there/x"}, b""), r"sends on to https://\*\*\*@there/x; give --url"),
        ((200, {}, b"no json"), "answers what kood's models do not"),
    ],
)
def test_what_a_server_says_is_told_without_the_password(rest, answer, told):
    rest.answer = answer
    with pytest.raises(UserError, match=told) as caught:
        RestModel(f"http://user:secret@{rest.place}", "m").ask([b"x"])
    assert "secret" not in str(caught.value) and "hidden" not in str(caught.value)
    assert caught.value.__suppress_context__
    assert len(rest.asked) == 1  # Sent on, it would arrive elsewhere without its images.


@pytest.mark.parametrize(
    "url",
    [
        "http://user:se#cret@host:8501",
        "http://user:12#cret@host:8501",
        "http://user:sec/ret@host",
        "http://user:sec?ret@host",
        "http://user:sec ret@host",
        "http://user:sec[ret@host",
        "http://user:secret@host:port",
        "http://host:8501?token=secret",
        "user:secret@host:8501",
        "ftp://user:secret@host",
        "grpc://user:secret@host",
        "http://user:secret@",
    ],
)
def test_an_address_that_is_none_is_refused_without_its_password(url):
    with pytest.raises(UserError, match="^--url ") as caught:
        Address.of(url)
    for part in ("secret", "sec", "cret", "user:", "12"):
        assert part not in str(caught.value).partition(";")[0]


def test_the_command_prints_no_password(rest, tmp_path, monkeypatch, capsys):
    (tmp_path / "a.png").write_bytes(
        base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")
    )
    monkeypatch.setattr("kood.cli.stop_on_signals", lambda: None)
    for url, code in ((f"http://user:secret@{rest.place}", 0), ("http://user:secret@127.0.0.1:9", 1)):
        monkeypatch.setattr("sys.argv", ["kood", "predict", "m", str(tmp_path / "a.png"), "--url", url])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert (ended.value.code or 0) == code
        shown = "".join(capsys.readouterr())
        assert url.rpartition("@")[2] in shown and "secret" not in shown and "user" not in shown


@pytest.mark.parametrize("proxy", ["http://user:secret@127.0.0.1:9", "user:secret@127.0.0.1:9", "socks9://127.0.0.1:9"])
def test_a_proxy_that_fails_is_named_without_its_password(proxy, rest, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(UserError, match=r"through the proxy 127.0.0.1:9 of HTTP_PROXY; if 127.0.0.1") as caught:
        RestModel(f"http://{rest.place}", "m", timeout=5.0).ask([b"x"])
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
    RestModel(f"http://{rest.place}", "m", timeout=5.0).ask([b"x"])


@pytest.mark.keras
@pytest.mark.parametrize("proxy", ["http://user:secret@127.0.0.1:9", "http://user:sec#ret@127.0.0.1:9"])
def test_a_proxy_that_fails_grpc_is_named(proxy, monkeypatch):
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(UserError, match=r"through the proxy 127.0.0.1:9 of https_proxy") as caught:
        GrpcModel("grpc://example.test:8500", "m", timeout=5.0).ask([b"x"])
    assert "sec" not in str(caught.value).replace("seconds", "")
    monkeypatch.setenv("no_grpc_proxy", ".test")
    assert through_proxy("grpc://example.test:8500") == ""


def test_no_text_shows_the_password_of_an_address():
    assert masked("x http://user:p@ss@host:1/a and grpc://u@h") == "x http://***@host:1/a and grpc://***@h"
    assert masked("mail me@home, ratio 1://2") == "mail me@home, ratio 1://2"
