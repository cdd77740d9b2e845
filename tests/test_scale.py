"""Many peers at once, in one process."""

from __future__ import annotations

import gevent
import pytest

from gmultisocket import Socket

CLIENTS = 20_000
EACH = 3


@pytest.mark.timeout(240)
def test_twenty_thousand_clients_in_one_process_ask_are_answered_and_hear_what_is_sent_to_all() -> None:
    with Socket({"connector.listener.backlog": CLIENTS}) as server:
        address = server.listen("inproc://scale").address

        def answer() -> None:
            for message in server:
                server.send_to(message.source, message.content[::-1])

        answering = gevent.spawn(answer)
        clients = [Socket() for _ in range(CLIENTS)]
        try:
            for client in clients:
                client.dial(address)
            server.wait_pipes(CLIENTS, timeout=60)

            def ask(number: int, client: Socket) -> int:
                right = 0
                for turn in range(EACH):
                    question = b"%d of %d" % (turn, number)
                    client.send(question)
                    right += client.recv(timeout=120) == question[::-1]
                return right

            asking = [gevent.spawn(ask, number, client) for number, client in enumerate(clients)]
            gevent.joinall(asking, raise_error=True)
            assert sum(greenlet.value or 0 for greenlet in asking) == CLIENTS * EACH

            for turn in range(EACH):
                assert server.send_all(b"news %d" % turn) == CLIENTS
            expected = [b"news %d" % turn for turn in range(EACH)]
            assert all([client.recv(timeout=60) for _ in range(EACH)] == expected for client in clients)
        finally:
            for client in clients:
                client.close()
    gevent.joinall([answering], timeout=10, raise_error=True)
    assert answering.ready()
