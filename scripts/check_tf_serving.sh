#!/usr/bin/env bash
# Checks runs against a real TF Serving: starts one by Docker or by the binary, asks it over REST and gRPC about an image, and
# compares with what the SavedModel says here.
#
#   scripts/check_tf_serving.sh saved/NAME IMAGE
#
# Exit code: 0 the same answers; 1 they differ, or the server does not answer; 2 wrong use; 3 there is no TF Serving here.
set -euo pipefail

if [ $# -ne 2 ] || [ ! -d "$1" ] || [ ! -f "$2" ]; then
    echo "usage: $0 saved/NAME IMAGE" >&2
    exit 2
fi
run=$(cd "$1" && pwd) image=$2 name=$(basename "$(cd "$1" && pwd)")
rest=${REST_PORT:-18501} grpc=${GRPC_PORT:-18500}
work=$(mktemp -d)
stop=true
trap 'eval "$stop"; rm -rf "$work"' EXIT

if command -v tensorflow_model_server >"$work/binary"; then
    echo "TF Serving: $(tensorflow_model_server --version | head -n 1)"
    tensorflow_model_server --port="$grpc" --rest_api_port="$rest" --model_name="$name" --model_base_path="$run" \
        >"$work/log" 2>&1 &
    stop="kill $! 2>/dev/null || true"
elif command -v docker >"$work/binary" && docker info >"$work/docker" 2>&1; then
    container="kood-check-$$"
    echo "TF Serving: Docker image tensorflow/serving:latest"
    docker run --rm --name "$container" -p "$grpc:8500" -p "$rest:8501" -v "$run:/models/$name:ro" \
        -e MODEL_NAME="$name" tensorflow/serving:latest >"$work/log" 2>&1 &
    stop="docker stop $container >/dev/null 2>&1 || true"
else
    echo "There is no TF Serving here: neither tensorflow_model_server nor a running Docker. Nothing was checked." >&2
    exit 3
fi

for attempt in $(seq 60); do
    if curl -fs "http://localhost:$rest/v1/models/$name" >"$work/status" && grep -q AVAILABLE "$work/status"; then
        break
    fi
    if [ "$attempt" = 60 ]; then
        echo "TF Serving did not load $run within a minute; its last words:" >&2
        tail -n 20 "$work/log" >&2
        exit 1
    fi
    sleep 1
done

kood predict "$run" "$image" --json >"$work/here"
kood predict "$run" "$image" --json --url "http://localhost:$rest" >"$work/rest"
kood predict "$run" "$image" --json --url "grpc://localhost:$grpc" >"$work/grpc"
python - "$work" <<'PYTHON'
import json
import math
import pathlib
import sys

here, rest, grpc = (json.loads(pathlib.Path(sys.argv[1], name).read_text()) for name in ("here", "rest", "grpc"))
for name, other in (("REST", rest), ("gRPC", grpc)):
    for key, value in here.items():
        if isinstance(value, float):
            same = math.isclose(value, other[key], rel_tol=1e-4, abs_tol=1e-5)
        else:
            same = value == other[key]
        if not same:
            sys.exit(f"{name}: {key} is {other[key]}, here {value}")
    print(f"{name}: the same answer: {other}")
PYTHON
