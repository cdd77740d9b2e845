"""The client as a file: how it is served, how large it is, and what its package holds."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gevent.pywsgi import WSGIServer

import gmultisocket
from gmultisocket import Socket
from gmultisocket.browser import answer
from gmultisocket.contrib.wsgi import mount
from tests.browser.agents import MODULE
from tests.browser.minify import BUILT, SOURCE, build, header
from tests.cases import every_case
from tests.faults.process import needs
from tests.transport.wspeers import RawPeer

FOLDER = MODULE.parent
SCRIPT = MODULE.read_bytes()
#: What a page downloads, in bytes.
MAX_COMPRESSED = 4_096


def ask(address: str, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Return the status, headers and body of the answer to a request."""
    with RawPeer(address) as peer:
        more = (f"{name.replace('_', '-')}: {value}" for name, value in headers.items())
        lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", *more]
        peer.send("\r\n".join([*lines, "", ""]).encode())
        head = peer.read_head().decode()
        body = peer.read_rest()
    status, *fields = head.split("\r\n")
    named = (field.split(": ", 1) for field in fields)
    return int(status.split()[1]), {name.lower(): value for name, value in named}, body


@contextmanager
def mounted(path: str, options: Any = None) -> Iterator[str]:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"the application"]

    with Socket() as sock:
        server = WSGIServer(("127.0.0.1", 0), mount(sock, path, app, options), log=None, error_log=None)
        server.start()
        try:
            yield f"ws://127.0.0.1:{server.server_port}{path}"
        finally:
            server.stop()


@contextmanager
def listening(path: str, options: Any = None) -> Iterator[str]:
    with Socket() as sock:
        yield sock.listen(f"ws://127.0.0.1:0{path}", options).address


@pytest.mark.parametrize("serving", [mounted, listening])
def test_the_client_is_served_below_the_path(serving: Any) -> None:
    with every_case() as case:
        for path in ("/", "/ws", "/a/b/"):
            with case(path), serving(path) as address:
                where = path.rstrip("/") + "/gmultisocket.js"
                status, headers, body = ask(address, where)
                assert (status, body) == (200, SCRIPT)
                assert headers["content-type"] == "text/javascript; charset=utf-8"
                assert headers["cache-control"] == "no-cache"
                assert headers["access-control-allow-origin"] == "*"
                assert headers["x-content-type-options"] == "nosniff"
                assert int(headers["content-length"]) == len(SCRIPT)
                status, compressed, body = ask(address, where + "?v=1", Accept_Encoding="br, gzip")
                assert (status, gzip.decompress(body)) == (200, SCRIPT)
                assert compressed["content-encoding"] == "gzip"
                assert compressed["vary"] == "Accept-Encoding"
                for tags in (headers["etag"], f'"other", {headers["etag"]}'):
                    status, again, body = ask(address, where, If_None_Match=tags)
                    assert (status, again["etag"], body) == (304, headers["etag"], b"")
                assert ask(address, where, If_None_Match='"other"')[0] == 200


@pytest.mark.parametrize("serving", [mounted, listening])
def test_the_client_is_not_served_where_that_is_turned_off(serving: Any) -> None:
    with serving("/ws", {"transport.ws.listener.serve_client": False}) as address:
        status, _, body = ask(address, "/ws/gmultisocket.js")
        assert body == b"the application" if serving is mounted else status == 404


def test_a_head_request_gets_the_headers_only_and_other_methods_are_refused() -> None:
    with mounted("/ws") as address:
        status, headers, body = ask(address, "/ws/gmultisocket.js", "HEAD")
        assert (status, headers["content-length"], body) == (200, str(len(SCRIPT)), b"")
        assert ask(address, "/ws/gmultisocket.js", "POST")[0] == 405


def test_the_answer_depends_on_the_script_alone() -> None:
    status, headers, body = answer("GET", "", "")
    assert (status, body) == (200, SCRIPT)
    assert answer("GET", "", "") == (status, headers, body)
    assert answer("HEAD", "", "gzip").body == b""


def test_what_a_page_downloads_is_small_and_needs_nothing() -> None:
    _, headers, body = answer("GET", "", "gzip")
    assert int(dict(headers)["Content-Length"]) == len(body) <= MAX_COMPRESSED
    assert len(gzip.compress(SCRIPT, 9)) <= MAX_COMPRESSED
    for script in (SCRIPT, SOURCE.read_bytes()):
        assert not re.findall(rb"\bimport\b|require\(", script)


def test_what_is_served_is_made_from_this_source() -> None:
    first, _, rest = BUILT.read_bytes().partition(b"\n")
    assert first + b"\n" == header(), "python3 -m tests.browser.minify"
    assert rest


@needs("npm --version")
def test_what_is_served_is_what_the_minifier_makes() -> None:
    try:
        built = build()
    except subprocess.CalledProcessError as error:
        if b"npm error" not in error.stderr:
            raise
        pytest.skip(f"npm cannot get terser here: {error.stderr.decode()}")
    assert BUILT.read_bytes() == built, "python3 -m tests.browser.minify"


def test_the_package_is_of_the_version_of_the_library() -> None:
    package = json.loads((FOLDER / "package.json").read_text())
    assert package["version"] == gmultisocket.__version__
    assert package["license"] == "MIT"
    assert "dependencies" not in package


@needs("npm --version")
def test_npm_packs_the_module_its_types_and_what_describes_them(tmp_path: Path) -> None:
    done = subprocess.run(
        ["npm", "pack", "--dry-run", "--json", "--offline", str(FOLDER)], cwd=tmp_path,
        capture_output=True, text=True, timeout=50,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (package,) = json.loads(done.stdout)
    files = {each["path"] for each in package["files"]}
    assert files == {"README.md", "gmultisocket.d.ts", "gmultisocket.js", "gmultisocket.min.js", "package.json"}


_USE = """
import {Client, Message, RequestError, type Subscription, type Channel} from "./gmultisocket.js";

const client = new Client(async () => new URL("/ws", "https://example.org"), {minDelay: 100});
const seen: string[] = [];
const subscription: Subscription = client.subscribe("a.>", (message: Message) => { seen.push(message.text()); });
const other: Client = new Client("/ws");
async function use(): Promise<number> {
  await subscription.ready;
  const feed = client.subscribe("b", null, {recover: false, channel: "events"});
  for await (const message of feed) return message.json<{n: number}>().n;
  try {
    const answer: Message = await client.request({a: [1]}, {timeout: 100, signal: new AbortController().signal});
    return answer.content.length;
  } catch (error) {
    if (error instanceof RequestError && error.kind === "gone") return 1;
    throw error;
  }
}
const channel: Channel = client.channel("chat");
const sent: boolean = channel.send(new Uint8Array(3));
client.addEventListener("gap", event => { const reason: "overflow" | "history" | "gone" = event.reason; void reason; });
client.addEventListener("close", ({code, retry}) => { const all: number = code + (retry ?? 0); void all; });
// @ts-expect-error: it has no such event
client.addEventListener("open", event => event.reason);
// @ts-expect-error: a pattern is text
client.subscribe(7);
// @ts-expect-error: it is not for the page to set
client.state = "open";
void [use, sent, other];
"""


@needs("tsc --version")
def test_the_types_hold_under_strict(tmp_path: Path) -> None:
    (tmp_path / "gmultisocket.d.ts").write_text((FOLDER / "gmultisocket.d.ts").read_text())
    (tmp_path / "gmultisocket.js").write_bytes(SOURCE.read_bytes())
    (tmp_path / "use.ts").write_text(_USE)
    options = {
        "strict": True, "noEmit": True, "target": "es2022", "module": "nodenext", "lib": ["es2022", "dom"], "types": [],
    }  # fmt: skip
    (tmp_path / "tsconfig.json").write_text(json.dumps({"compilerOptions": options, "files": ["use.ts"]}))
    done = subprocess.run(["tsc", "-p", "."], cwd=tmp_path, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stdout
