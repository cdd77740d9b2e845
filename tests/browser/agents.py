"""Runs JavaScript for tests in Node; ``chromium.py`` does so in the tabs of a Chromium."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gevent
from gevent import subprocess

__all__ = ["MODULE", "NODE", "PATIENCE", "PRELUDE", "ROOT", "Failed", "Node", "node"]

ROOT = Path(__file__).resolve().parent.parent.parent
#: As pages get it.
MODULE = ROOT / "gmultisocket/browser/gmultisocket.min.js"
#: Node 20 has a WebSocket with this flag, and needs it; from 22 on it has one anyway.
NODE = "node --experimental-websocket"
#: How long a program may take to come up, and an evaluation to end, on a busy machine, in seconds.
PATIENCE = 40

#: Makes clients that connect again at once, and records their events.
PRELUDE = """
kept.client?.close();
kept.seen = []; kept.events = [];
kept.make = (url, options) => {
  const client = kept.client = new Client(url, {minDelay: 10, maxDelay: 50, ...options});
  for (const type of ["open", "close", "gap", "refused"]) {
    client.addEventListener(type, event => kept.events.push({type, ...event, isTrusted: undefined}));
  }
  return client;
};
kept.until = async condition => { while (!condition()) await new Promise(resolve => setTimeout(resolve, 5)); };
"""

_AGENT = """
import {createInterface} from "node:readline";
import * as gmultisocket from "%s";
Object.assign(globalThis, gmultisocket, {kept: {}});
const AsyncFunction = (async () => {}).constructor;
for await (const line of createInterface({input: process.stdin})) {
  let result;
  try { result = {value: await new AsyncFunction(JSON.parse(line))()}; }
  catch (error) { result = {error: error.stack}; }
  console.log(JSON.stringify(result));
}
process.exit();
"""


class Failed(AssertionError):
    """An evaluation has raised an error."""


class Node:
    """A Node in which the names of the client's module, and an object ``kept``, are global."""

    def __init__(self, process: Any) -> None:
        self._process = process

    def evaluate(self, code: str) -> Any:
        """Return the value of the body of an async function."""
        self._process.stdin.write(json.dumps(code).encode() + b"\n")
        self._process.stdin.flush()
        with gevent.Timeout(PATIENCE, AssertionError(f"no end within {PATIENCE} s: {code}")):
            result = json.loads(self._process.stdout.readline())
        if "error" in result:
            raise Failed(result["error"])
        return result.get("value")


@contextmanager
def node() -> Iterator[Node]:
    """Run Node until the body has ended."""
    with TemporaryDirectory() as folder:
        script = Path(folder) / "agent.mjs"
        script.write_text(_AGENT % MODULE)
        process = subprocess.Popen(
            [*NODE.split(), "--no-warnings", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            yield Node(process)
        finally:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
