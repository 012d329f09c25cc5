"""A small server that speaks TF Serving's protocol: its gRPC service over the official protos, and the REST mapping.

As the real one does, it polls a model base path, loads the highest integer version, replays its warm-up requests, and
drops older versions. It stands in for it in tests, where no binary can be had.
"""

import base64
import http.server
import json
import re
import threading
from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2, prediction_service_pb2_grpc


class Server:
    """Serves one model base path under its folder's name; a context."""

    def __init__(self, base: Path):
        self.base, self.name = base, base.name
        self.versions, self.warmed, self.requests = {}, 0, []
        self._grpc = grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", -1)])
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Service(self), self._grpc)
        self.grpc_url = f"grpc://127.0.0.1:{self._grpc.add_insecure_port('127.0.0.1:0')}"
        handler = type("Handler", (_Handler,), {"server_of_model": self})
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.rest_url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self.poll()

    def poll(self):
        """One look at the base path."""
        found = sorted(int(p.name) for p in self.base.iterdir() if p.is_dir() and p.name.isdecimal())
        newest = found[-1]
        if newest not in self.versions:
            folder = self.base / str(newest)
            model = tf.saved_model.load(str(folder))
            for record in tf.data.TFRecordDataset(str(folder / "assets.extra" / "tf_serving_warmup_requests")):
                log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
                _run(model, log.predict_log.request)
                self.warmed += 1
            self.versions = {newest: model}

    def predict(self, request):
        """The model's answer to a PredictRequest.

        Raises:
            KeyError: no such model, version or signature.
            tf.errors.InvalidArgumentError: the graph refuses its input.
        """
        if request.model_spec.name != self.name:
            raise KeyError(f"Servable not found for request: Latest({request.model_spec.name})")
        version = request.model_spec.version.value if request.model_spec.HasField("version") else max(self.versions)
        if version not in self.versions:
            raise KeyError(f"Servable not found for request: Specific({self.name}, {version})")
        signature = request.model_spec.signature_name or "serving_default"
        if signature not in self.versions[version].signatures:
            raise KeyError(f'Serving signature key "{signature}" not found.')
        self.requests.append((signature, version))
        return version, _run(self.versions[version], request)

    def __enter__(self):
        self._grpc.start()
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._grpc.stop(0)
        self._http.shutdown()
        self._http.server_close()


def _run(model, request):
    inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
    return model.signatures[request.model_spec.signature_name or "serving_default"](**inputs)


class _Service(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, server):
        self._server = server

    def Predict(self, request, context):  # noqa: N802
        try:
            version, outputs = self._server.predict(request)
        except KeyError as error:
            context.abort(grpc.StatusCode.NOT_FOUND, error.args[0])
        except tf.errors.InvalidArgumentError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.message)
        response = predict_pb2.PredictResponse()
        response.model_spec.name = self._server.name
        response.model_spec.version.value = version
        for name, value in outputs.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(value.numpy()))
        return response


class _Handler(http.server.BaseHTTPRequestHandler):
    server_of_model: Server

    def do_GET(self):  # noqa: N802
        server = self.server_of_model
        if self.path != f"/v1/models/{server.name}":
            return self._answer(404, {"error": "Could not find any versions of model"})
        states = [{"version": str(one), "state": "AVAILABLE"} for one in server.versions]
        return self._answer(200, {"model_version_status": states})

    def do_POST(self):  # noqa: N802
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        match = re.fullmatch(r"/v1/models/([^/:]+)(?:/versions/(\d+))?:predict", self.path)
        if not match:
            return self._answer(404, {"error": f"Malformed request: POST {self.path}"})
        request = predict_pb2.PredictRequest()
        request.model_spec.name = match[1]
        if match[2]:
            request.model_spec.version.value = int(match[2])
        request.model_spec.signature_name = body.get("signature_name", "")
        try:
            key, values = self._input(body)
            request.inputs[key].CopyFrom(tf.make_tensor_proto(values))
            _, outputs = self.server_of_model.predict(request)
        except KeyError as error:
            return self._answer(404, {"error": error.args[0]})
        except tf.errors.InvalidArgumentError as error:
            return self._answer(400, {"error": error.message})
        columns = {name: value.numpy().tolist() for name, value in outputs.items()}
        text = {name: [v.decode() for v in column] for name, column in columns.items() if name == "class_name"}
        rows = [
            dict(zip({**columns, **text}, row, strict=True)) for row in zip(*{**columns, **text}.values(), strict=True)
        ]
        return self._answer(200, {"predictions": rows})

    def _input(self, body):
        """Row format with one input: values, or objects that name it; `{"b64": ...}` stands for bytes."""
        rows = body["instances"]
        key = "image_bytes" if body.get("signature_name", "").startswith("encoded") else "images"
        rows = [row[key] if isinstance(row, dict) and key in row else row for row in rows]
        if all(isinstance(row, dict) and row.keys() == {"b64"} for row in rows):
            return key, [base64.b64decode(row["b64"]) for row in rows]
        return key, np.array(rows, np.uint8 if body.get("signature_name") != "normalized" else np.float32)

    def _answer(self, code, content):
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass
