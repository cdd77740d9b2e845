from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path

from gmultisocket import Socket
from gmultisocket.testing import wait_until
from tests.cli.command import PATIENCE, address_of, start

#: Linux: sets and gets the size of a pipe.
F_SETPIPE_SZ = 1031


def test_an_output_that_nobody_reads_does_not_stop_heartbeats_and_signals(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, F_SETPIPE_SZ, 4096)
    options = ("-o", "socket.recv_queue_size=1", "-o", "connector.pipe.heartbeat_interval=0.05")
    try:
        with start("recv", "-l", f"ipc://{tmp_path}/r", *options, stdout=writing) as process, Socket() as sock:
            sock.dial(address_of(process))
            for _ in range(8):
                sock.send(b"x" * 10_000)
            (pipe,) = sock.pipes.values()
            # It prints and cannot go on. Its heartbeats go on.
            wait_until(lambda: len(os.read(reading, 1)) == 1, PATIENCE)
            before = pipe.counters.bytes_received
            wait_until(lambda: pipe.counters.bytes_received > before, PATIENCE)
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
    finally:
        os.close(reading)
        os.close(writing)
    assert not list(tmp_path.iterdir())


def test_a_pipe_that_is_open_for_reading_too_has_a_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    both = os.open(tmp_path / "fifo", os.O_RDWR)
    try:
        with start("recv", "-l", f"ipc://{tmp_path}/r", "-n", "2", stdout=both) as process, Socket() as sock:
            sock.dial(address_of(process))
            sock.send(b"one")
            assert os.read(both, 1) == b"o"
            sock.send(b"two")
            assert process.wait(PATIENCE) == 0
        assert os.read(both, 100) == b"ne\ntwo\n"
    finally:
        os.close(both)


def test_a_long_message_is_printed_whole_though_it_is_read_slowly(tmp_path: Path) -> None:
    content = bytes(range(256)) * 400
    with start("recv", "-l", f"ipc://{tmp_path}/r", "-n", "1", "--raw") as process, Socket() as sock:
        fcntl.fcntl(process.stdout.fileno(), F_SETPIPE_SZ, 4096)
        sock.dial(address_of(process))
        sock.send(content)
        got = b""
        while data := process.stdout.read(1000):
            got += data
        assert got == content and process.wait(PATIENCE) == 0
