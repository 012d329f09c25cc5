"""Who answers: a SavedModel here, or a TF Serving somewhere over REST or gRPC. One question, one kind of answer."""

import base64
import http.client
import io
import json
import math
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from kood.errors import UserError
from kood.files import refuse_not_utf_8
from kood.process import native_messages_held_back, through_proxy
from kood.registry import nearest
from kood.serving.address import Address
from kood.text import clean, masked

__all__ = [
    "GrpcModel", "LocalModel", "Model", "RestModel", "newest_version", "open_model", "prepared", "refuse_unnumbered",
    "saved_graph", "strange_operations", "versions",
]  # fmt: skip

SIGNATURE = "encoded_marked"

#: What is kept of an answer for one image, beside the probability of its label.
KEPT = ("label", "class_name", "ood_score", "p_value", "is_ood")
#: What else is kept where whoever answers says it.
GIVEN_UNDER = ("threshold", "version")

#: Operations that reach beyond the graph. SaveV2, RestoreV2 and their kin are those of its own checkpoint.
STRANGE = re.compile(
    r"^(Read|Write)File$|PyFunc|MatchingFiles|Reader|RecordDataset|TextLineDataset|CsvDataset|SaveDataset|LoadDataset"
    r"|Snapshot|CacheDataset|Rpc|DataService|Print|SqlDataset|DebugIdentity|Summary|FileSystem|Lookup.*Table|Initialize"
    r"Table|Compile|PyExec"
)

#: Largest gRPC message.
MESSAGE_BYTES = 512 * 2**20


class Model(Protocol):
    """Whoever answers."""

    def ask(self, files: Sequence[bytes]) -> list[dict[str, Any] | None]:
        """Answers image files, PNG, JPEG, WebP, BMP or GIF.

        Args:
            files: The bytes of each.

        Returns:
            For each {"label", "class_name", "probability", "ood_score", "p_value", "is_ood"} and, as far as the model
            says it, the "threshold" and "version" it was given under; or None where it could not be decoded. What has
            no finite score or p-value is flagged, whatever the model says.

        Raises:
            UserError: no answer came.
        """
        ...


def open_model(run: Path, url: str | None = None, timeout: float = 60.0) -> Model:
    """The model of a run.

    Args:
        run: `saved/<recipe>` or a version in it; with a URL only its name counts, and a number is a version's unless
            versions lie in it.
        url: `http://host:8501` or `grpc://host:8500` of a TF Serving that serves it, with `user:password@` before the
            host where it asks for basic authentication; None for the SavedModel itself.
        timeout: Seconds to wait for each answer of a server.

    Raises:
        UserError: there is no SavedModel, or the URL is none.
    """
    if url is None:
        return LocalModel(newest_version(run))
    address = Address.of(url)
    run = run.resolve()
    version = int(run.name) if run.name.isdecimal() and not versions(run) else None
    name = run.name if version is None else run.parent.name
    return (GrpcModel if address.scheme == "grpc" else RestModel)(url, name, version, timeout)


def newest_version(folder: Path) -> Path:
    """The SavedModel that TF Serving would take: the last of `versions`, or the folder where it is a version itself.

    Raises:
        UserError: there is none.
    """
    if (folder / "saved_model.pb").is_file():
        return folder if folder.name not in ("", "..") else folder.resolve()
    found = versions(folder)
    if not found:
        there = folder.parent.iterdir() if not folder.exists() and folder.parent.is_dir() else ()
        beside = [one.name for one in there if versions(one)]
        meant = f"; {nearest(folder.name, beside)}" if beside else ""
        raise UserError(f"{folder}: there is no SavedModel here; `kood run` writes saved/<recipe>/<integer>{meant}")
    return found[-1]


def versions(run: Path) -> list[Path]:
    """The SavedModels in a run's folder, those of an integer name, ascending."""
    inside = run.iterdir() if run.is_dir() else ()
    found = [path for path in inside if path.name.isdecimal() and (path / "saved_model.pb").is_file()]
    return sorted(found, key=lambda path: int(path.name))


def refuse_unnumbered(version: Path) -> None:
    """Raises `UserError` where the folder of a SavedModel is named by no number: that around it is no run's then."""
    if not version.name.isdecimal():
        raise UserError(f"{version}: the folder of a version is named by a number; export or move it to {version}/1")


def prepared(file: Path, *, anyhow: bool = False) -> bytes:
    """An image file as every server can take it.

    Most go as they are. What a graph does not read as training does is decoded here by the rules of `kood.data.rules`
    and goes as PNG, its transparency with it; `anyhow`, whatever it is.

    Raises:
        UserError: it cannot be read as an image.
    """
    from PIL import Image

    from kood.data.decode import decode_image

    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})", exit_code=1) from error
    try:
        if not anyhow and _as_it_is(data):
            return data
        pixels = decode_image(file)
    except UserError as error:
        raise UserError(str(error).removeprefix("path: "), exit_code=1) from error
    packed = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(packed, "PNG")
    return packed.getvalue()


def _as_it_is(data: bytes) -> bool:
    """Whether every graph reads a file as training does; False where Pillow cannot read it, and will say why."""
    from kood.data.decode import opened, orientation_of

    try:
        with opened(data) as image:
            upright, opaque = orientation_of(image) == 1, "transparency" not in image.info
            same = {
                "JPEG": lambda: image.mode != "CMYK" or "adobe_transform" in image.info,
                "PNG": lambda: upright and (opaque or image.mode == "P"),
                "WEBP": lambda: upright and not image.is_animated,
                "BMP": lambda: image.tile[0].args[0] == "BGR",
                "GIF": lambda: opaque and image.tile[0].extents == (0, 0, *image.size),
            }
            return same.get("JPEG" if image.format == "MPO" else image.format, lambda: False)()
    except Exception:  # Each of Pillow's formats has its own way to fail.
        return False


class LocalModel:
    """A SavedModel in this process, by its folder, without the training stack.

    Raises:
        UserError: kood did not write it, or its graph would touch files, the network or Python.
    """

    def __init__(self, version: Path):
        refuse_not_utf_8(version.parts, str(version))
        with native_messages_held_back():
            import tensorflow as tf

        # A graph is a program, and this one may be a stranger's.
        if strange := strange_operations(version):
            raise UserError(
                f"{version}: its graph holds {', '.join(strange)}, which kood never exports and which could touch "
                "files, the network or Python; it is not opened"
            )
        try:
            self._model = tf.saved_model.load(str(version))
        except (OSError, ValueError, IndexError, KeyError, tf.errors.OpError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise UserError(f"{version} cannot be opened ({reason}); run the recipe again", exit_code=1) from error
        if SIGNATURE not in self._model.signatures:
            raise UserError(f"{version}: this SavedModel has no signature {SIGNATURE}; make it again with this kood")
        self._ask = self._model.signatures[SIGNATURE]

    def ask(self, files: Sequence[bytes]) -> list[dict[str, Any] | None]:
        """As `Model.ask`."""
        import tensorflow as tf

        answer = self._ask(image_bytes=tf.constant(list(files), tf.string))
        return _rows({name: value.numpy().tolist() for name, value in answer.items()})


def saved_graph(version: Path):
    """The protobuf of a SavedModel.

    Raises:
        UserError: it cannot be read.
    """
    with native_messages_held_back():
        from google.protobuf.message import DecodeError
        from tensorflow.core.protobuf import saved_model_pb2

    graph = saved_model_pb2.SavedModel()
    try:
        graph.ParseFromString((version / "saved_model.pb").read_bytes())
    except (OSError, DecodeError) as error:
        raise UserError(f"{version / 'saved_model.pb'} cannot be read ({error}); run the recipe again") from error
    return graph


def strange_operations(version: Path) -> list[str]:
    """The operations in a SavedModel's graph that reach beyond it, by name; kood neither publishes nor opens one."""
    strange: set[str] = set()
    for meta in saved_graph(version).meta_graphs:
        nodes = [*meta.graph_def.node, *(node for f in meta.graph_def.library.function for node in f.node_def)]
        strange.update(node.op for node in nodes if STRANGE.search(node.op))
    return sorted(strange)


class RestModel:
    """A TF Serving over REST, at an address as `Address` has it; the newest version of a model where none is named."""

    def __init__(self, url: str, name: str, version: int | None = None, timeout: float = 60.0):
        which = "" if version is None else f"/versions/{version}"
        self._address = Address.of(url)
        self._url = f"{self._address.shown}/v1/models/{urllib.parse.quote(name)}{which}:predict"
        self._timeout = timeout
        self._opener = urllib.request.build_opener(_NoRedirect)

    def ask(self, files: Sequence[bytes]) -> list[dict[str, Any] | None]:
        """As `Model.ask`."""
        instances = [{"b64": base64.b64encode(data).decode()} for data in files]
        body = json.dumps({"signature_name": SIGNATURE, "instances": instances}).encode()
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})
        if self._address.authorization:
            request.add_unredirected_header("Authorization", self._address.authorization)
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                said = json.load(response)
        except urllib.error.HTTPError as error:
            raise UserError(f"{self._url} answers {error.code}: {self._refused(error)}", exit_code=1) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            why = f"{self._url} cannot be reached: {reason}"
            raise UserError(why + through_proxy(self._address.shown), exit_code=1) from None
        except ValueError as error:
            raise _no_answer(self._url, self._address, f"{error}") from None
        return _understood(lambda: _columns(said["predictions"]), len(files), self._url, self._address)

    def _refused(self, error: urllib.error.HTTPError) -> str:
        """Why a server, or a proxy before it, does not answer."""
        try:
            text = error.read().decode(errors="replace")
        except (OSError, http.client.HTTPException):  # It breaks off, or does not come.
            text = ""
        try:
            return clean(json.loads(text)["error"])
        except (ValueError, KeyError, TypeError):
            pass
        if 300 <= error.code < 400:
            return f"it sends on to {masked(error.headers.get('Location', 'nowhere'))}; give --url the address there"
        if error.code == 401:
            given = "user and password are not taken" if self._address.authorization else "it asks for a password"
            return f"{given}; write them into the address, --url http://USER:PASSWORD@HOST"
        return f"{' '.join(text.split())[:300] or error.reason}{through_proxy(self._address.shown)}"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A question that is sent on would arrive without its images."""

    def redirect_request(self, *_):
        return None


class GrpcModel:
    """A TF Serving over gRPC, as `RestModel`; the address may be `host:port` alone."""

    def __init__(self, address: str, name: str, version: int | None = None, timeout: float = 60.0):
        import grpc

        with native_messages_held_back():  # The protocol imports TensorFlow.
            from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

        sizes = [("grpc.max_send_message_length", MESSAGE_BYTES), ("grpc.max_receive_message_length", MESSAGE_BYTES)]
        self._address, self._timeout = Address.of(address if "://" in address else f"grpc://{address}"), timeout
        self._channel = grpc.insecure_channel(self._address.place, sizes)
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._request = predict_pb2.PredictRequest()
        self._request.model_spec.name = name
        self._request.model_spec.signature_name = SIGNATURE
        given = self._address.authorization
        self._metadata = [("authorization", given)] if given else None
        if version is not None:
            self._request.model_spec.version.value = version

    def ask(self, files: Sequence[bytes]) -> list[dict[str, Any] | None]:
        """As `Model.ask`."""
        import grpc
        import tensorflow as tf

        # Half, since a message is more than its files.
        if len(files) > 1 and sum(map(len, files)) > MESSAGE_BYTES // 2:
            half = len(files) // 2
            return [*self.ask(files[:half]), *self.ask(files[half:])]
        self._request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(list(files), tf.string))
        try:
            response = self._stub.Predict(self._request, timeout=self._timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            code = error.code()
            why = clean(self._address.without_secrets(str(error.details())))
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNKNOWN):
                why += through_proxy(self._address.shown)
            raise UserError(f"{self._address.shown} answers {code.name}: {why}", 1) from None
        said = response.outputs
        return _understood(
            lambda: {name: tf.make_ndarray(value).tolist() for name, value in said.items()},
            len(files), self._address.shown, self._address,
        )  # fmt: skip


def _understood(
    columns: Callable[[], dict[str, list]], count: int, url: str, address: Address
) -> list[dict[str, Any] | None]:
    """What a server says of so many images; it may be another program, or another model by this name.

    Raises:
        UserError: that is not what kood's models say, or of other images.
    """
    try:
        rows = _rows(columns())
    except KeyError as error:
        raise _no_answer(url, address, f"there is no {error}") from None
    except ValueError as error:
        raise _no_answer(url, address, f"{error}") from None
    except (TypeError, IndexError, AttributeError):
        raise _no_answer(url, address, "its outputs are of other kinds or shapes") from None
    if len(rows) != count:
        raise _no_answer(url, address, f"{len(rows):,} answers for {count:,} images")
    return rows


def _no_answer(url: str, address: Address, why: str) -> UserError:
    told = f"{url} answers what kood's models do not ({clean(why)[:300]}){through_proxy(address.shown)}"
    return UserError(told, exit_code=1)


def _columns(rows: list[dict[str, Any]]) -> dict[str, list]:
    told = (*KEPT, "probabilities", "decoded", *(name for name in GIVEN_UNDER if rows and name in rows[0]))
    return {name: [row[name] for row in rows] for name in told}


def _rows(columns: dict[str, list]) -> list[dict[str, Any] | None]:
    rows: list[dict[str, Any] | None] = []
    for place, decoded in enumerate(columns["decoded"]):
        if not decoded:
            rows.append(None)
            continue
        row = {name: columns[name][place] for name in (*KEPT, *GIVEN_UNDER) if name in columns}
        if isinstance(row["class_name"], bytes):
            row["class_name"] = row["class_name"].decode("utf-8", "replace")
        row["probability"] = _of_label(columns["probabilities"][place], row["label"])
        row["is_ood"] = row["is_ood"] or not all(_is_finite(row[name]) for name in ("ood_score", "p_value"))
        rows.append(row)
    return rows


def _of_label(probabilities: list[float], label: int) -> float:
    # Where nothing can be judged the graph says label -1, of which there is no probability but the last.
    if not -1 <= label < len(probabilities):
        raise ValueError(f"label {label} of {len(probabilities)} probabilities")
    return probabilities[label]


def _is_finite(value: Any) -> bool:
    # A server writes NaN as null, or as a word.
    return isinstance(value, int | float) and math.isfinite(value)
