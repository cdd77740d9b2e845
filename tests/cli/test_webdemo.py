"""The live page of the demo, in a real Chromium."""

from __future__ import annotations

from gmultisocket.testing import wait_until
from tests.browser.chromium import chromium
from tests.cli.command import PATIENCE, address_of, end, interrupt, run, start
from tests.faults.process import needs


@needs("chromium --version")
def test_the_page_shows_the_peers_of_the_demo() -> None:
    pipes = {"Pub feed": 35, "Push jobs": 10, "Rep answers": 5}
    pipes |= {"Sub subscribers": 35, "Pull workers": 10, "Req askers": 5}

    def shown() -> dict[str, int]:
        """The number of pipes that each row shows."""
        rows = [row.split("\t") for row in page.text("#groups").splitlines()]
        number = rows[0].index("Pipes") if rows else 0
        return {row[0]: int(row[number]) for row in rows if row[0] in pipes}

    # The first peers leave 20 s after they came, so the browser must be there before.
    with chromium() as browser, browser.tab() as page, start("demo", "--web", "--peers", "50") as process:
        page.open(address_of(process))
        wait_until(lambda: shown() == pipes, PATIENCE)
        assert interrupt(process) == (0, "", "")
        assert not page.complaints


def test_a_port_that_is_taken_is_an_error() -> None:
    with start("demo", "--web", "--peers", "1") as process:
        port = address_of(process).rstrip("/").rpartition(":")[2]
        _, err = run("demo", "--web", port, status=1)
        assert err == f"gmultisocket: 127.0.0.1:{port}: another program has the port\n"
        assert interrupt(process)[0] == 0


def test_a_wrong_port_is_a_wrong_argument() -> None:
    with start("demo", "--web", "65536") as process:
        assert "a port is at most 65535" in end(process, 2)[1]
