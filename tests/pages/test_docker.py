"""The image of examples/deploy. Its commands are run here, and the image is built where an engine is there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.contrib.gunicorns import PATIENCE, ROOT, running
from tests.faults.process import needs

FILE = ROOT / "examples/deploy/Dockerfile"
INSTRUCTIONS = re.findall(r"^([A-Z]+) (.*)$", FILE.read_text().replace("\\\n", ""), re.MULTILINE)


def the(instruction: str) -> str:
    """Return what the last instruction of a kind says."""
    return [said for name, said in INSTRUCTIONS if name == instruction][-1]


def test_what_it_copies_is_there_and_what_it_installs_was_built() -> None:
    sources = [shlex.split(said)[0] for name, said in INSTRUCTIONS if name == "COPY" and "--from" not in said]
    assert sources == [".", "examples/gunicorn_fanout"]
    assert all((ROOT / source).is_dir() for source in sources)
    building, installing, _ = [shlex.split(said) for name, said in INSTRUCTIONS if name == "RUN"]
    assert building[-2:] == [".", "gunicorn[gevent]"] and installing[-2:] == ["gmultisocket", "gunicorn[gevent]"]
    assert building[building.index("--wheel-dir") + 1] == installing[installing.index("--find-links") + 1]


def test_its_command_serves_and_its_health_check_sees_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, _, value = the("ENV").partition("=")
    monkeypatch.setenv(name, value.replace("/tmp", str(tmp_path)))
    command = json.loads(the("CMD"))
    assert command[0] == "gunicorn" and command[-2:] == ["--bind", "0.0.0.0:8000"]
    arguments = [word.replace("/srv/app", f"{ROOT}/examples/gunicorn_fanout") for word in command[1:-2]]
    # One worker, and not two: when it has answered, it is also ready to be told to stop.
    with running(tmp_path, *arguments, "--workers", "1", app="") as server:
        url = server.address.replace("ws:", "http:").removesuffix("ws")
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            assert b"<title>Fan-out</title>" in answer.read()
        kind, _, check = the("HEALTHCHECK").partition(" ")
        program, flag, code = json.loads(check)
        assert (kind, program, flag) == ("CMD", "python3", "-c") and "http://127.0.0.1:8000/" in code
        healthy = [sys.executable, flag, code.replace("http://127.0.0.1:8000/", url)]
        assert subprocess.run(healthy, timeout=PATIENCE).returncode == 0
        server.stop()
        server.wait_ended()
    assert subprocess.run(healthy, timeout=PATIENCE, stderr=subprocess.DEVNULL).returncode == 1


@needs("docker info")
@pytest.mark.timeout(600)
def test_the_image_is_built() -> None:
    """It downloads an image and what the application needs, so it takes a minute."""
    subprocess.run(["docker", "build", "-q", "-f", str(FILE), str(ROOT)], check=True, timeout=600)
