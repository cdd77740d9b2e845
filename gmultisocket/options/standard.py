"""Every option that this library reads, under the name that it has in addresses.

The classes are only names: they give editors and type checkers the typed path to each option.

Source: Go ``options/options.go`` and the ``options.go`` of each package there, for names and defaults.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

from .checks import (
    UINT32,
    check_callable,
    check_function,
    check_headers,
    check_mode,
    check_origins,
    check_pipe_limit,
    check_ssl_context,
    check_uids,
    check_verify,
    parse_mode,
    parse_uids,
    parse_verify,
)
from .option import Option, define

if TYPE_CHECKING:
    from ssl import SSLContext

__all__ = ["connector", "protocol", "socket", "transport"]

_INT32: Final = 2**31 - 1
#: Of what has to end some time: 0 would mean "at once" to one reader and "never" to the next.
_SHORTEST: Final = 0.001


class socket:
    """``socket.*``: sending and receiving."""

    no_recv = define("socket.no_recv", bool, False, doc="Drop what arrives; receiving is an error.")
    no_send = define("socket.no_send", bool, False, doc="Sending is an error.")
    recv_queue_size = define(
        "socket.recv_queue_size", int, 64, unit="messages", minimum=0, maximum=65535,
        doc="How many received messages may wait before reading stops. 0: they wait with their pipes.",
    )
    recv_queue_bytes = define(
        "socket.recv_queue_bytes", int, 0, unit="bytes", minimum=0,
        doc="How many bytes of received contents may wait before reading stops. 0: no limit.",
    )
    send_queue_size = define(
        "socket.send_queue_size", int, 64, unit="messages", minimum=0, maximum=65535,
        doc="How many messages may wait for each pipe. 0: none; a send ends when the transport has taken the message.",
    )
    send_queue_bytes = define(
        "socket.send_queue_bytes", int, 0, unit="bytes", minimum=0,
        doc="How many bytes may wait for each pipe. 0: no limit.",
    )
    send_overflow = define(
        "socket.send_overflow", "choice", "block", choices=("block", "drop_newest", "drop_oldest", "disconnect"),
        doc="What a send does about a pipe whose queue is full.",
    )
    send_ttl = define(
        "socket.send_ttl", int, 16, minimum=0, maximum=255,
        doc="How many hops a message may make. 0 means 16.",
    )
    send_best_effort = define(
        "socket.send_best_effort", bool, False, doc="Drop a message that cannot be queued at once."
    )
    send_stop_timeout = define(
        "socket.send_stop_timeout", float, 5.0, unit="seconds", minimum=0,
        doc="How long a close waits for what is queued to leave.",
    )
    max_send_content_length = define(
        "socket.max_send_content_length", int, -1, unit="bytes", minimum=-1, maximum=UINT32,
        doc="Longer contents are refused by the sender itself, as they would cost it the connection to its peer. "
        "-1: what this socket itself would receive, its connector.pipe.max_recv_content_length. 0: no limit.",
    )
    fail_no_peers = define(
        "socket.fail_no_peers", bool, False, doc="Fail a send at once while no peer is connected, instead of waiting."
    )
    yield_messages = define(
        "socket.yield_messages", int, 1000, unit="messages", minimum=1,
        doc="After so many messages without a wait a greenlet lets others run.",
    )
    yield_bytes = define(
        "socket.yield_bytes", int, 1048576, unit="bytes", minimum=1,
        doc="After so many bytes without a wait a greenlet lets others run.",
    )


class connector:
    """``connector.*``: dialers, listeners and pipes."""

    pipe_limit = define(
        "connector.pipe_limit", int, -1, minimum=-1, checker=check_pipe_limit,
        doc="How many pipes there may be at once; dialers and listeners pause there. -1: no limit.",
    )

    class dialer:
        """``connector.dialer.*``"""

        reconnect = define("connector.dialer.reconnect", bool, True, doc="Dial again when the pipe closes.")
        min_reconnect_time = define(
            "connector.dialer.min_reconnect_time", float, 0.1, unit="seconds", minimum=_SHORTEST,
            doc="The first wait before dialling again; it grows from there.",
        )
        max_reconnect_time = define(
            "connector.dialer.max_reconnect_time", float, 8.0, unit="seconds", minimum=0,
            doc="The longest wait before dialling again. 0: it grows without end.",
        )
        dial_async = define(
            "connector.dialer.dial_async", bool, False, doc="Return from dial before the connection is there."
        )
        dial_timeout = define(
            "connector.dialer.dial_timeout", float, 10.0, unit="seconds", minimum=_SHORTEST,
            doc="How long one attempt may take: host name, connection and opening handshake together.",
        )

    class listener:
        """``connector.listener.*``"""

        backlog = define(
            "connector.listener.backlog", int, 1024, minimum=1, maximum=65535,
            doc="How many connections the kernel may hold that are not accepted yet.",
        )
        max_handshaking = define(
            "connector.listener.max_handshaking", int, 128, minimum=1,
            doc="How many accepted connections may be in their opening handshake at once; more wait in the backlog.",
        )
        handshake_timeout = define(
            "connector.listener.handshake_timeout", float, 10.0, unit="seconds", minimum=_SHORTEST,
            doc="How long the opening handshake of an accepted connection may take.",
        )
        over_limit = define(
            "connector.listener.over_limit", "choice", "wait", choices=("wait", "refuse"),
            doc="What becomes of a peer that connects while the socket has its connector.pipe_limit of pipes: it waits "
            "in the backlog, or its connection is closed.",
        )

    class pipe:
        """``connector.pipe.*``"""

        raw = define("connector.pipe.raw", bool, False, doc="The peer speaks plain bytes instead of messages.")
        raw_recv_buf_size = define(
            "connector.pipe.raw_recv_buf_size", int, 4096, unit="bytes", minimum=1, maximum=_INT32,
            doc="The longest content that one read of a raw pipe makes.",
        )
        close_on_eof = define(
            "connector.pipe.close_on_eof", bool, True, doc="Close a raw pipe when its peer has ended its side."
        )
        max_recv_content_length = define(
            "connector.pipe.max_recv_content_length", int, 131072, unit="bytes", minimum=0, maximum=UINT32,
            doc="A peer that announces a longer content is disconnected. 0: no limit.",
        )
        read_buffer = define(
            "connector.pipe.read_buffer", int, 0, unit="bytes", minimum=0, maximum=_INT32,
            doc="How much to ask the kernel for at a time, unless the pipe is raw. 0: as much as suits what comes.",
        )
        heartbeat_interval = define(
            "connector.pipe.heartbeat_interval", float, 0.0, unit="seconds", minimum=0,
            doc="Ask a peer that was silent for so long whether it is there. 0: never.",
        )
        heartbeat_timeout = define(
            "connector.pipe.heartbeat_timeout", float, 0.0, unit="seconds", minimum=0,
            doc="Close the pipe of a peer that was silent for so long. 0: twice the interval.",
        )
        negotiate_timeout = define(
            "connector.pipe.negotiate_timeout", float, 10.0, unit="seconds", minimum=_SHORTEST,
            doc="How long the negotiator may take over a new peer.",
        )


class transport:
    """``transport.*``: what belongs to one transport."""

    class tcp:
        """``transport.tcp.*``"""

        no_delay = define("transport.tcp.no_delay", bool, True, doc="Send small messages at once (TCP_NODELAY).")
        keep_alive = define("transport.tcp.keep_alive", bool, True, doc="Have the kernel probe silent peers.")
        keep_alive_period = define(
            "transport.tcp.keep_alive_period", float, 15.0, unit="seconds", minimum=1, maximum=32767,
            doc="How long a peer may be silent before the first probe, to whole seconds (TCP_KEEPIDLE).",
        )
        keep_alive_interval = define(
            "transport.tcp.keep_alive_interval", float, 15.0, unit="seconds", minimum=1, maximum=32767,
            doc="The time between probes, to whole seconds (TCP_KEEPINTVL).",
        )
        keep_alive_probes = define(
            "transport.tcp.keep_alive_probes", int, 9, minimum=1, maximum=127,
            doc="How many probes without an answer end the connection (TCP_KEEPCNT).",
        )
        user_timeout = define(
            "transport.tcp.user_timeout", float, 0.0, unit="seconds", minimum=0, maximum=2147483,
            doc="How long sent data may stay unacknowledged (TCP_USER_TIMEOUT). 0: the system's default.",
        )
        linger = define(
            "transport.tcp.linger", int, -1, unit="seconds", minimum=-1, maximum=32767,
            doc="SO_LINGER; 0 resets the connection when it is closed. -1: the system's default.",
        )
        read_buffer = define(
            "transport.tcp.read_buffer", int, 0, unit="bytes", minimum=0, maximum=_INT32,
            doc="The kernel's receive buffer (SO_RCVBUF). 0: the system's default.",
        )
        write_buffer = define(
            "transport.tcp.write_buffer", int, 0, unit="bytes", minimum=0, maximum=_INT32,
            doc="The kernel's send buffer (SO_SNDBUF). 0: the system's default.",
        )
        reuse_port = define(
            "transport.tcp.reuse_port", bool, False, doc="Let several processes listen at one port (SO_REUSEPORT)."
        )

    class tls:
        """``transport.tls.*``: files are read when dial() or listen() is called."""

        context: Option[SSLContext | None] = define(
            "transport.tls.context", object, None, checker=check_ssl_context,
            doc="An ssl.SSLContext to use as it is, in place of the files below.",
        )
        certfile = define(
            "transport.tls.certfile", str, "",
            doc="The certificate of this side, with the chain up to its authority (PEM). A listener needs one.",
        )
        keyfile = define(
            "transport.tls.keyfile", str, "", doc="The certificate's private key (PEM), if it is not in certfile."
        )
        password: Option[Callable[[], str | bytes] | None] = define(
            "transport.tls.password", object, None, checker=check_callable,
            doc="For an encrypted key: a function that returns its password.",
        )
        cafile = define(
            "transport.tls.cafile", str, "",
            doc="The authorities whose certificates are accepted (PEM). A dialer without it takes the system's.",
        )
        verify: Option[bool | None] = define(
            "transport.tls.verify", object, None, checker=check_verify, parser=parse_verify,
            doc="Accept only peers with a certificate of an authority in cafile. None: a dialer always, a listener if "
            "it has a cafile. For a listener, true means mutual TLS; a dialer is told by transport.tls.insecure.",
        )
        server_hostname = define(
            "transport.tls.server_hostname", str, "",
            doc="The name that the listener's certificate must have, if it is not the host in the dialed address.",
        )
        insecure = define(
            "transport.tls.insecure", bool, False,
            doc="Dial without any check of the certificate: whoever sits on the way can read and change everything.",
        )

    class ws:
        """``transport.ws.*``: WebSocket, with TLS (``wss``) and without."""

        read_buffer_size = define(
            "transport.ws.read_buffer_size", int, 4096, unit="bytes", minimum=0, maximum=_INT32,
            doc="No effect here: reads are as large as the pipe asks for. Accepted because Go programs set it.",
        )
        write_buffer_size = define(
            "transport.ws.write_buffer_size", int, 4096, unit="bytes", minimum=0, maximum=_INT32,
            doc="No effect here: there is no buffer but the pipe's queue. Accepted because Go programs set it.",
        )
        ping_interval = define(
            "transport.ws.ping_interval", float, 20.0, unit="seconds", minimum=0,
            doc="Ping a peer that was silent for so long; connector.pipe.heartbeat_interval goes before it. 0: never.",
        )
        ping_timeout = define(
            "transport.ws.ping_timeout", float, 20.0, unit="seconds", minimum=0,
            doc="Close the pipe of a peer that is silent for so long after a ping. 0: never.",
        )
        headers: Option[Mapping[str, str] | Callable[[], Mapping[str, str]]] = define(
            "transport.ws.headers", object, {}, checker=check_headers,
            doc="For dialers: further HTTP headers, such as Authorization or Origin, or a function that returns them.",
        )

        class listener:
            """``transport.ws.listener.*``"""

            check_origin = define(
                "transport.ws.listener.check_origin", bool, True,
                doc="Refuse pages that come from elsewhere than the host itself and transport.ws.listener.origins. "
                "A request without an Origin header is no page's. False: any page may connect.",
            )
            origins: Option[Collection[str | re.Pattern[str]]] = define(
                "transport.ws.listener.origins", object, (), checker=check_origins,
                parser=lambda text: text.split(","),
                doc="Further origins whose pages may connect, like https://example.com; in an address with commas.",
            )
            origin_checker: Option[Callable[..., Any] | None] = define(
                "transport.ws.listener.origin_checker", object, None, checker=check_function,
                doc="A function of the request that says whether its origin is right, in place of that check.",
            )
            authorize: Option[Callable[..., Any] | None] = define(
                "transport.ws.listener.authorize", object, None, checker=check_function,
                doc="A function of the request, called before it is accepted. It may block. It returns None, or what "
                "is then the pipe's identity; to refuse it returns an HTTP status or raises.",
            )
            external_listen = define(
                "transport.ws.listener.external_listen", bool, False,
                doc="Bind nothing: connections are handed over by somebody else's HTTP server.",
            )
            pending_size = define(
                "transport.ws.listener.pending_size", int, 16, minimum=0, maximum=65535,
                doc="How many requests may wait for the socket to take them; later ones wait for their place.",
            )

    class ipc:
        """``transport.ipc.*``"""

        mode = define(
            "transport.ipc.mode", int, 0o600, checker=check_mode, parser=parse_mode,
            doc="The permissions of the socket file; in an address in octal digits, 0600.",
        )
        allow_uids: Option[Collection[int] | None] = define(
            "transport.ipc.allow_uids", object, None, checker=check_uids, parser=parse_uids,
            doc="The users whose processes may connect, by id; in an address 0,1000. None: whoever may open the file.",
        )

    class inproc:
        """``transport.inproc.*``: accepted because Go programs set them."""

        read_buffer = define(
            "transport.inproc.read_buffer", int, 8192, unit="bytes", minimum=0, maximum=_INT32,
            doc="No effect here: messages change hands without a buffer.",
        )

        class channel:
            """``transport.inproc.channel.*``"""

            buffer_size = define(
                "transport.inproc.channel.buffer_size", int, 16, unit="messages", minimum=0, maximum=_INT32,
                doc="No effect here: the peer's receive queue is the buffer.",
            )


class protocol:
    """``protocol.*``: what belongs to one protocol."""

    class pubsub:
        """``protocol.pubsub.*``"""

        max_patterns = define(
            "protocol.pubsub.max_patterns", int, 16384, minimum=1,
            doc="How many patterns those behind one pipe of a Pub may be subscribed to; more are refused.",
        )
        max_pattern_length = define(
            "protocol.pubsub.max_pattern_length", int, 1024, unit="bytes", minimum=1, maximum=65535,
            doc="How long a pattern may be that a Pub accepts.",
        )
        refresh_interval = define(
            "protocol.pubsub.refresh_interval", float, 5.0, unit="seconds", minimum=0,
            doc="How often a Sub repeats its subscriptions through a switch, behind which publishers may have come "
            "unseen. 0: never.",
        )
        expiry = define(
            "protocol.pubsub.expiry", float, 30.0, unit="seconds", minimum=0,
            doc="After how much silence a Pub forgets a subscriber behind a switch that used to repeat its "
            "subscriptions. 0: never.",
        )

    class stream:
        """``protocol.stream.*``"""

        window = define(
            "protocol.stream.window", int, 2097152, unit="bytes", minimum=65536, maximum=_INT32,
            doc="How many bytes a connection holds for a reader that does not read. Its peer then waits.",
        )
        acceptable = define(
            "protocol.stream.acceptable", bool, True, doc="Take connections that peers open; else they are refused."
        )
        accept_queue_size = define(
            "protocol.stream.accept_queue_size", int, 1024, minimum=1,
            doc="How many connections that peers have opened may wait for accept(); more are refused.",
        )
        keep_alive_idle = define(
            "protocol.stream.keep_alive_idle", float, 30.0, unit="seconds", minimum=0,
            doc="Ask the peer of a connection that was silent for so long whether it is there. 0: never.",
        )
        keep_alive_interval = define(
            "protocol.stream.keep_alive_interval", float, 1.0, unit="seconds", minimum=_SHORTEST,
            doc="The time between such questions.",
        )
        keep_alive_probes = define(
            "protocol.stream.keep_alive_probes", int, 7, minimum=1,
            doc="How many of them without an answer end the connection.",
        )
