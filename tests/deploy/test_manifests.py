"""The files of deploy/: of the shape that their readers want, and hardened as they say."""

from __future__ import annotations

import http.server
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.deploy.schemas import COMPOSE, KINDS

yaml = pytest.importorskip("yaml")

DEPLOY = Path(__file__).parents[2] / "deploy"


def problems(value: Any, schema: Any, at: str = "") -> list[str]:
    """What of `value` is not as the schema says: a dict of its keys ("?" after optional ones), a list of one schema, a type, or values."""
    if isinstance(schema, dict) and "*" not in schema:
        if not isinstance(value, dict):
            return [f"{at} is no object"]
        names = {name.rstrip("?"): name for name in schema}
        wrong = [f"{at}.{key} is unknown" for key in value if key not in names]
        wrong += [f"{at}.{name} is missing" for name, full in names.items() if name not in value and not full.endswith("?")]
        return wrong + [w for key in value if key in names for w in problems(value[key], schema[names[key]], f"{at}.{key}")]
    if isinstance(schema, dict):
        return [w for key, part in value.items() for w in problems(part, schema["*"], f"{at}.{key}")]
    if isinstance(schema, list):
        return [w for n, part in enumerate(value) for w in problems(part, schema[0], f"{at}[{n}]")] if isinstance(value, list) else [f"{at} is no list"]
    if isinstance(schema, tuple) and not all(isinstance(kind, type) for kind in schema):
        return [] if value in schema else [f"{at} is {value!r}, not one of {schema}"]
    return [] if isinstance(value, schema) and (schema is bool or not isinstance(value, bool)) else [f"{at} is {value!r}"]


def kubernetes() -> dict[str, Any]:
    found = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    return {entry["kind"]: entry for entry in found}


def test_a_wrong_manifest_is_seen() -> None:
    schema = {"a": int, "b?": [str], "c?": ("x", "y"), "d?": {"*": str}}
    assert problems({"a": 1, "b": ["s"], "c": "x", "d": {"k": "v"}}, schema) == []
    assert len(problems({"e": 1, "b": [2], "c": "z", "d": {"k": 1}}, schema)) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_kubernetes_objects_have_their_shape(kind: str) -> None:
    assert problems(kubernetes()[kind], KINDS[kind]) == []


def test_the_pod_has_no_rights_and_every_probe() -> None:
    pod = kubernetes()["LeaderWorkerSet"]["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()
    assert pod["terminationGracePeriodSeconds"] > 20  # sessions have so long to end
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}


def test_the_arguments_of_the_containers_parse() -> None:
    from everface.cli import build_parser

    [container] = kubernetes()["LeaderWorkerSet"]["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]["containers"]
    assert build_parser().parse_args(container["args"]).placement == "5"
    command = re.findall(r"^CMD (\[.*\])$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)[-1]
    assert build_parser().parse_args(yaml.safe_load(command)).host == "0.0.0.0"


def test_compose_has_its_shape_and_no_rights() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert problems(compose, COMPOSE) == []
    service = compose["services"]["everface"]
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["user"] == "10001:10001"
    assert service["ports"] == ["127.0.0.1:8000:8000"]


def test_the_image_runs_without_root() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    words = [line.split()[0] for line in lines if line and line[0].isalpha() and line.split()[0].isupper()]
    assert set(words) <= {"ARG", "FROM", "RUN", "ENV", "COPY", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert words.count("FROM") == 2 and words.index("USER") < words.index("ENTRYPOINT") and "USER 10001:10001" in lines
    copied = [Path(word) for line in lines if line.startswith("COPY deploy") for word in line.split()[1:-1]]
    assert copied and all((DEPLOY.parent / path).exists() for path in copied)


def test_the_probe_asks_with_the_token() -> None:
    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            good = self.path == "/readyz" and self.headers["Authorization"] == "Bearer secret"
            self.send_response(200 if good else 503)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    try:
        server = http.server.HTTPServer(("127.0.0.1", 8000), Server)
    except OSError:
        pytest.skip("port 8000 is taken")
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for token, path, code in (("secret", "readyz", 0), ("wrong", "readyz", 1), ("secret", "healthz", 1)):
            done = subprocess.run([sys.executable, DEPLOY / "probe.py", path], env={"EVERFACE_TOKEN": token}, capture_output=True, timeout=60)
            assert done.returncode == code, (path, done.stderr)
        server.shutdown()
