"""All options of this library, each under the name that it has in addresses.

The classes are only namespaces: with them editors and type checkers know each option and its type. After a change here
run ``python3 -m tests.optionnames``.

Source: Go ``options/options.go`` and the ``options.go`` of each package there, for names and defaults.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

from .checks import (
    UINT32,
    check_callable,
    check_compress_over,
    check_function,
    check_headers,
    check_hosts,
    check_linger,
    check_mode,
    check_origins,
    check_path,
    check_pipe_limit,
    check_ssl_context,
    check_uids,
    check_verify,
    parse_mode,
    parse_uids,
    parse_verify,
)
from .option import Option, define
from .places import Place

if TYPE_CHECKING:
    from ssl import SSLContext

__all__ = ["connector", "plane", "protocol", "socket", "transport"]

_INT32: Final = 2**31 - 1
#: The minimum of timeouts, in seconds. 0 would be ambiguous: some would read it as "at once", others as "never".
_MIN_TIMEOUT: Final = 0.001
#: For what matters only while a pipe is made.
_MADE: Final[tuple[Place, ...]] = ("socket", "dialer", "listener")
#: For what only the side that dials needs.
_DIALED: Final[tuple[Place, ...]] = ("socket", "dialer", "plane")


class socket:
    """``socket.*``: sending and receiving."""

    name = define(
        "socket.name", str, "",
        doc="What the program calls the socket, in statistics and metrics. Sockets with the same name are added up.",
    )
    no_recv = define("socket.no_recv", bool, False, doc="Drop messages that arrive; receiving is an error.")
    no_send = define("socket.no_send", bool, False, doc="Sending is an error.")
    recv_queue_size = define(
        "socket.recv_queue_size", int, 64, unit="messages", minimum=0, maximum=65535,
        doc="The number of received messages that may wait before reading stops. 0: they wait in their pipes.",
    )
    recv_queue_bytes = define(
        "socket.recv_queue_bytes", int, 0, unit="bytes", minimum=0,
        doc="The number of bytes of received contents that may wait before reading stops. 0: no limit.",
    )
    send_queue_size = define(
        "socket.send_queue_size", int, 64, unit="messages", minimum=0, maximum=65535,
        doc="The number of messages that may wait in each pipe. 0: none; a send returns when the transport has taken "
        "the message.",
    )
    send_queue_bytes = define(
        "socket.send_queue_bytes", int, 0, unit="bytes", minimum=0,
        doc="The number of bytes that may wait in each pipe. 0: no limit.",
    )
    send_overflow = define(
        "socket.send_overflow", "choice", "block", choices=("block", "drop_newest", "drop_oldest", "disconnect"),
        doc="What a send does when the queue of a pipe is full.",
    )
    send_to_patience = define(
        "socket.send_to_patience", float, 1.0, unit="seconds", minimum=0,
        doc="How long all calls of send_to without a timeout wait together, in any 10 seconds, for peers with a full"
        " queue. Then such a peer is closed. 0: they wait for ever.",
    )
    send_ttl = define(
        "socket.send_ttl", int, 16, minimum=0, maximum=255,
        doc="The number of hops that a message may make. 0 means 16.",
    )
    send_best_effort = define(
        "socket.send_best_effort", bool, False, doc="Drop a message that cannot be queued at once, instead of waiting."
    )
    send_stop_timeout = define(
        "socket.send_stop_timeout", float, 5.0, unit="seconds", minimum=0,
        doc="How long a close waits until queued messages are sent.",
    )
    max_send_content_length = define(
        "socket.max_send_content_length", int, -1, unit="bytes", minimum=-1, maximum=UINT32,
        doc="A send refuses a longer content, because a peer may disconnect when it receives one. "
        "-1: the same as this socket's connector.pipe.max_recv_content_length; for a reply, and what goes along a "
        "path, that of the pipe if it is higher. 0: no limit.",
    )
    fail_no_peers = define(
        "socket.fail_no_peers", bool, False, doc="While no peer is connected, a send fails at once instead of waiting."
    )
    yield_messages = define(
        "socket.yield_messages", int, 1000, unit="messages", minimum=1,
        doc="After this number of messages without waiting a greenlet lets others run.",
    )
    yield_bytes = define(
        "socket.yield_bytes", int, 1048576, unit="bytes", minimum=1,
        doc="After this number of bytes without waiting a greenlet lets others run.",
    )


class connector:
    """``connector.*``: dialers, listeners and pipes."""

    pipe_limit = define(
        "connector.pipe_limit", int, -1, minimum=-1, checker=check_pipe_limit, places=("socket",),
        doc="Maximum number of open pipes. At the limit dialers and listeners pause. -1: no limit.",
    )

    class dialer:
        """``connector.dialer.*``"""

        reconnect = define("connector.dialer.reconnect", bool, True, doc="Dial again when the pipe closes.")
        min_reconnect_time = define(
            "connector.dialer.min_reconnect_time", float, 0.1, unit="seconds", minimum=_MIN_TIMEOUT,
            doc="The first wait before dialling again. Each further wait is longer.",
        )
        max_reconnect_time = define(
            "connector.dialer.max_reconnect_time", float, 8.0, unit="seconds", minimum=0,
            doc="The longest wait before dialling again. 0: no limit.",
        )
        dial_async = define(
            "connector.dialer.dial_async", bool, False, doc="Return from dial before the connection is made."
        )
        dial_timeout = define(
            "connector.dialer.dial_timeout", float, 10.0, unit="seconds", minimum=_MIN_TIMEOUT,
            doc="How long one attempt may take: name lookup, connection and opening handshake together.",
        )

    class listener:
        """``connector.listener.*``"""

        backlog = define(
            "connector.listener.backlog", int, 4096, minimum=1, maximum=65535,
            doc="Maximum number of connections that wait in the kernel to be accepted.",
        )
        max_handshaking = define(
            "connector.listener.max_handshaking", int, 1024, minimum=1,
            doc="Maximum number of accepted connections whose peers have begun the opening handshake. Further ones "
            "wait. A peer that takes more than a second leaves for them.",
        )
        max_waiting = define(
            "connector.listener.max_waiting", int, 4096, minimum=1,
            doc="Maximum number of accepted connections that are not pipes yet, but never more than a quarter of the "
            "descriptors that the process may open. A peer that has sent nothing for a second leaves for further ones.",
        )
        max_deciding = define(
            "connector.listener.max_deciding", int, 128, minimum=1,
            doc="Maximum number of authorize functions, origin checkers and negotiators that run at once for one "
            "listener. Further connections wait in order; that time does not count as their peers'.",
        )
        max_per_address = define(
            "connector.listener.max_per_address", int, 0, minimum=0,
            doc="Maximum number of connections of one IPv4 address, or of one IPv6 /64 network. More are refused. "
            "0: no limit.",
        )
        max_per_identity = define(
            "connector.listener.max_per_identity", int, 0, minimum=0,
            doc="Maximum number of pipes of one identity: a user, the subject of a certificate, or a uid. More are "
            "refused. 0: no limit.",
        )
        accept_rate = define(
            "connector.listener.accept_rate", float, 0.0, unit="", minimum=0,
            doc="Maximum number of connections that are accepted in a second. Further ones wait in the backlog. "
            "0: no limit.",
        )
        handshake_timeout = define(
            "connector.listener.handshake_timeout", float, 10.0, unit="seconds", minimum=_MIN_TIMEOUT,
            doc="How long the peer of an accepted connection may take for the opening handshake.",
        )
        over_limit = define(
            "connector.listener.over_limit", "choice", "wait", choices=("wait", "refuse"),
            doc="What happens to a peer that connects while the socket has connector.pipe_limit pipes: it waits in the "
            "backlog, or its connection is closed.",
        )

    class pipe:
        """``connector.pipe.*``"""

        raw = define(
            "connector.pipe.raw", bool, False, places=_MADE,
            doc="The peer sends and receives plain bytes, not messages.",
        )
        raw_recv_buf_size = define(
            "connector.pipe.raw_recv_buf_size", int, 4096, unit="bytes", minimum=1, maximum=_INT32,
            doc="Maximum number of bytes that one read of a raw pipe returns as one message.",
        )
        close_on_eof = define(
            "connector.pipe.close_on_eof", bool, True, doc="Close a raw pipe when its peer has ended its stream."
        )
        max_recv_content_length = define(
            "connector.pipe.max_recv_content_length", int, 131072, unit="bytes", minimum=0, maximum=UINT32,
            doc="A peer that sends a longer content is disconnected. 0: no limit.",
        )
        read_buffer = define(
            "connector.pipe.read_buffer", int, 0, unit="bytes", minimum=0, maximum=_INT32,
            doc="How many bytes one read asks the kernel for, unless the pipe is raw. 0: adapted to what arrives.",
        )
        heartbeat_interval = define(
            "connector.pipe.heartbeat_interval", float, 0.0, unit="seconds", minimum=0,
            doc="Send a ping to a peer that was silent for this time, and one soon after its pipe opens. 0: never.",
        )
        heartbeat_timeout = define(
            "connector.pipe.heartbeat_timeout", float, 0.0, unit="seconds", minimum=0,
            doc="Close the pipe of a peer that was silent for this time. 0: twice the interval.",
        )
        hold_until_heard = define(
            "connector.pipe.hold_until_heard", bool, False, places=_MADE,
            doc="Over plain tcp and ipc: send no message to one peer before it has sent a message or answered a "
            "ping, which it gets at once. So a health check that only connects gets none, and neither does a Go "
            "program that never sends.",
        )
        idle_timeout = define(
            "connector.pipe.idle_timeout", float, 0.0, unit="seconds", minimum=0,
            doc="Close a pipe on which no message has gone either way for so long. Pings are no messages. 0: never.",
        )
        frame_timeout = define(
            "connector.pipe.frame_timeout", float, 0.0, unit="seconds", minimum=0,
            doc="Close the pipe of a peer that has begun a message and not ended it for so long. 0: never.",
        )
        decide_timeout = define(
            "connector.pipe.decide_timeout", float, 60.0, unit="seconds", minimum=0, places=_MADE,
            doc="How long an authorize function, origin checker or negotiator may take for one connection, without the "
            "time in which it waits for its peer. 0: no limit.",
        )
        max_message_rate = define(
            "connector.pipe.max_message_rate", float, 0.0, minimum=0,
            doc="How many messages a peer may send in a second. 0: any number.",
        )
        max_byte_rate = define(
            "connector.pipe.max_byte_rate", float, 0.0, minimum=0,
            doc="How many bytes a peer may send in a second. 0: any number.",
        )
        over_rate = define(
            "connector.pipe.over_rate", "choice", "slow", choices=("slow", "close"),
            doc="What happens to a peer that sends more than that: it is read from more slowly, or its pipe closes.",
        )
        negotiate_timeout = define(
            "connector.pipe.negotiate_timeout", float, 10.0, unit="seconds", minimum=_MIN_TIMEOUT, places=_MADE,
            doc="How long a negotiator may wait for its peer. The time that it needs itself does not count.",
        )


class transport:
    """``transport.*``: options of one transport."""

    class tcp:
        """``transport.tcp.*``"""

        no_delay = define("transport.tcp.no_delay", bool, True, doc="Send small messages at once (TCP_NODELAY).")
        keep_alive = define(
            "transport.tcp.keep_alive", bool, True, doc="The kernel sends probes to silent peers (SO_KEEPALIVE)."
        )
        keep_alive_period = define(
            "transport.tcp.keep_alive_period", float, 15.0, unit="seconds", minimum=1, maximum=32767,
            doc="How long a peer may be silent before the first probe, in whole seconds (TCP_KEEPIDLE).",
        )
        keep_alive_interval = define(
            "transport.tcp.keep_alive_interval", float, 15.0, unit="seconds", minimum=1, maximum=32767,
            doc="The time between two probes, in whole seconds (TCP_KEEPINTVL).",
        )
        keep_alive_probes = define(
            "transport.tcp.keep_alive_probes", int, 9, minimum=1, maximum=127,
            doc="The connection ends after this number of unanswered probes (TCP_KEEPCNT).",
        )
        user_timeout = define(
            "transport.tcp.user_timeout", float, 0.0, unit="seconds", minimum=0, maximum=2147483,
            doc="The connection ends when sent data is unacknowledged, or the peer does not read it, for this time "
            "(TCP_USER_TIMEOUT). 0: the system's default.",
        )
        linger = define(
            "transport.tcp.linger", int, -1, unit="seconds", checker=check_linger,
            doc="SO_LINGER. 0: closing resets the connection. -1: the system's default. Any other value would block "
            "the whole process while a connection closes, and is refused.",
        )
        read_buffer = define(
            "transport.tcp.read_buffer", int, 0, unit="bytes", minimum=0, maximum=_INT32,
            doc="The size of the kernel's receive buffer (SO_RCVBUF). 0: the system's default.",
        )
        write_buffer = define(
            "transport.tcp.write_buffer", int, 0, unit="bytes", minimum=0, maximum=_INT32,
            doc="The size of the kernel's send buffer (SO_SNDBUF). 0: the system's default.",
        )
        reuse_port = define(
            "transport.tcp.reuse_port", bool, False, places=("socket", "listener"),
            doc="Several processes may listen at one port (SO_REUSEPORT).",
        )

    class tls:
        """``transport.tls.*``. Files are read when ``dial()`` or ``listen()`` is called."""

        context: Option[SSLContext | None] = define(
            "transport.tls.context", object, None, checker=check_ssl_context,
            doc="An ssl.SSLContext, used as it is. The options for files below are then not used.",
        )
        certfile = define(
            "transport.tls.certfile", str, "",
            doc="A file with this side's certificate and the chain up to its authority (PEM). A listener needs one.",
        )
        keyfile = define(
            "transport.tls.keyfile", str, "", doc="A file with the certificate's private key (PEM), if not in certfile."
        )
        password: Option[Callable[[], str | bytes] | None] = define(
            "transport.tls.password", object, None, checker=check_callable, secret=True,
            doc="For an encrypted key: a function that returns the password.",
        )
        cafile = define(
            "transport.tls.cafile", str, "",
            doc="A file with the certificates of trusted authorities (PEM). A dialer without it trusts the system's.",
        )
        verify: Option[bool | None] = define(
            "transport.tls.verify", object, None, checker=check_verify, parser=parse_verify,
            doc="Accept only peers with a certificate of an authority in cafile. None: a dialer always does, a "
            "listener if it has a cafile. For a listener true means mutual TLS. For a dialer false is an error: set "
            "transport.tls.insecure instead.",
        )
        server_hostname = define(
            "transport.tls.server_hostname", str, "", places=_DIALED,
            doc="The name that the listener's certificate must contain. Empty: the host in the dialed address.",
        )
        insecure = define(
            "transport.tls.insecure", bool, False, places=_DIALED,
            doc="Dial without checking the listener's certificate: anybody on the way can read and change all data.",
        )

    class ws:
        """``transport.ws.*``: WebSocket, with TLS (``wss``) and without."""

        read_buffer_size = define(
            "transport.ws.read_buffer_size", int, 4096, unit="bytes", minimum=0, maximum=_INT32,
            doc="No effect: the pipe decides the size of reads. Accepted because Go programs set it.",
        )
        write_buffer_size = define(
            "transport.ws.write_buffer_size", int, 4096, unit="bytes", minimum=0, maximum=_INT32,
            doc="No effect: the only buffer is the queue of the pipe. Accepted because Go programs set it.",
        )
        ping_interval = define(
            "transport.ws.ping_interval", float, 20.0, unit="seconds", minimum=0,
            doc="Ping a peer that was silent for this time; connector.pipe.heartbeat_interval has precedence. "
            "0: never.",
        )
        ping_timeout = define(
            "transport.ws.ping_timeout", float, 20.0, unit="seconds", minimum=0,
            doc="Close the pipe of a peer that is silent for this time after a ping. 0: never.",
        )
        session = define(
            "transport.ws.session", bool, False,
            doc="Messages belong to channels: the subprotocol multisocket.session. A Session sets it.",
        )
        compress_over = define(
            "transport.ws.compress_over", int, 0, unit="bytes", minimum=0, maximum=_INT32, checker=check_compress_over,
            doc="Compress messages of more than this length, header included, if the peer can do that too "
            "(permessage-deflate). 0: never; otherwise at least 256. Do not compress secrets together with text of "
            "strangers.",
        )
        headers: Option[Mapping[str, str] | Callable[[], Mapping[str, str]]] = define(
            "transport.ws.headers", object, {}, checker=check_headers, secret=True, places=("socket", "dialer"),
            doc="For dialers: more HTTP headers, such as Authorization or Origin, or a function that returns them.",
        )

        class listener:
            """``transport.ws.listener.*``"""

            check_origin = define(
                "transport.ws.listener.check_origin", bool, True,
                doc="Refuse web pages, except those of the same host and of transport.ws.listener.origins. A request "
                "without an Origin header is not from a page. False: any page may connect.",
            )
            origins: Option[Collection[str | re.Pattern[str]]] = define(
                "transport.ws.listener.origins", object, (), checker=check_origins,
                parser=lambda text: text.split(","),
                doc="Other origins whose pages may connect, like https://example.com; in an address separated by "
                "commas.",
            )
            hosts: Option[Collection[str] | None] = define(
                "transport.ws.listener.hosts", object, None, checker=check_hosts, parser=lambda text: text.split(","),
                doc="The names that a request's Host header may have, with a port or for any port; * for any. In an "
                "address separated by commas. None: any, but a page that connects through loopback without TLS must be "
                "from localhost, an IP address or the listener's own name, or come through a proxy.",
            )
            origin_checker: Option[Callable[..., Any] | None] = define(
                "transport.ws.listener.origin_checker", object, None, checker=check_function,
                doc="A function that is called with the request instead of that check; it returns whether the page may "
                "connect.",
            )
            authorize: Option[Callable[..., Any] | None] = define(
                "transport.ws.listener.authorize", object, None, checker=check_function,
                doc="A function that is called with the request before it is accepted. It may block. It returns None "
                "or the identity for the pipe. To refuse the request it returns an HTTP status or raises.",
            )
            refuse_with = define(
                "transport.ws.listener.refuse_with", "choice", "status", choices=("status", "code", "code_to_pages"),
                doc="How a peer is refused: by an HTTP status, or by a WebSocket that is closed at once with the code "
                "4000 + status, which a page in a browser can read. code_to_pages: by a code if the request has an "
                "Origin header.",
            )
            external_listen = define(
                "transport.ws.listener.external_listen", bool, False,
                doc="Bind nothing: another HTTP server passes its connections to the listener.",
            )
            health_path = define(
                "transport.ws.listener.health_path", str, "", checker=check_path,
                doc="A path at which GET and HEAD requests get the answer 200, for health checks. Empty: none.",
            )
            serve_client = define(
                "transport.ws.listener.serve_client", bool, True,
                doc="Answer GET requests for gmultisocket.js below the path: the client for browsers.",
            )
            pending_size = define(
                "transport.ws.listener.pending_size", int, 16, minimum=0, maximum=65535,
                doc="Maximum number of requests that wait for the socket to accept them. Others wait in the port.",
            )

    class ipc:
        """``transport.ipc.*``"""

        mode = define(
            "transport.ipc.mode", int, 0o600, checker=check_mode, parser=parse_mode,
            doc="The permissions of the socket file. In an address in octal digits, like 0600.",
        )
        allow_uids: Option[Collection[int] | None] = define(
            "transport.ipc.allow_uids", object, None, checker=check_uids, parser=parse_uids,
            doc="The ids of the users who may connect. In an address like 0,1000. None: all who may open the file.",
        )

    class inproc:
        """``transport.inproc.*``. Accepted because Go programs set them."""

        read_buffer = define(
            "transport.inproc.read_buffer", int, 8192, unit="bytes", minimum=0, maximum=_INT32,
            doc="No effect: messages are passed on without a buffer.",
        )

        class channel:
            """``transport.inproc.channel.*``"""

            buffer_size = define(
                "transport.inproc.channel.buffer_size", int, 16, unit="messages", minimum=0, maximum=_INT32,
                doc="No effect: the peer's receive queue is the buffer.",
            )


class protocol:
    """``protocol.*``: options of one protocol."""

    class answers:
        """``protocol.answers.*``: the replies of a Rep or a Respondent."""

        max_waiting = define(
            "protocol.answers.max_waiting", int, 1024, unit="messages", minimum=1,
            doc="Maximum number of replies that wait for a peer, beyond the queue of its pipe. From half of it on, "
            "further requests of the peer wait; when as many of them wait, the pipe is closed.",
        )
        max_waiting_bytes = define(
            "protocol.answers.max_waiting_bytes", int, 16777216, unit="bytes", minimum=0,
            doc="The same for the memory that they take. A larger reply may wait alone. 0: no limit.",
        )

    class reqrep:
        """``protocol.reqrep.*``"""

        probe_interval = define(
            "protocol.reqrep.probe_interval", float, 1.0, unit="seconds", minimum=0,
            doc="A Rep that let a request time out gets no more while there are others, until it answers. It gets one "
            "request as a probe after so long; each further wait is twice as long, up to 60 s. 0: it gets its share.",
        )
        send_errors = define(
            "protocol.reqrep.send_errors", bool, False,
            doc="Whether a Req gets the class and the text of an exception in the Rep's handler. It always gets "
            "HandlerFailed.",
        )

    class pubsub:
        """``protocol.pubsub.*``"""

        max_patterns = define(
            "protocol.pubsub.max_patterns", int, 16384, minimum=1,
            doc="Maximum number of patterns that one subscriber of a Pub may have. More are refused.",
        )
        max_switch_patterns = define(
            "protocol.pubsub.max_switch_patterns", int, 131072, minimum=1,
            doc="Maximum number of patterns that all subscribers behind one pipe may have together, if that leads to a "
            "switch. More are refused.",
        )
        max_pattern_memory = define(
            "protocol.pubsub.max_pattern_memory", int, 33554432, unit="bytes", minimum=1,
            doc="Maximum memory that the patterns of one pipe may take: 256 bytes for each token, 3 for each byte, and "
            "512 for each subscriber, about. More are refused.",
        )
        max_total_patterns = define(
            "protocol.pubsub.max_total_patterns", int, 0, minimum=0,
            doc="Maximum number of patterns that all subscribers of a Pub may have. More are refused. 0: no limit.",
        )
        max_total_pattern_memory = define(
            "protocol.pubsub.max_total_pattern_memory", int, 1073741824, unit="bytes", minimum=0,
            doc="Maximum memory that the patterns of all subscribers of a Pub may take. 0: no limit.",
        )
        max_pattern_length = define(
            "protocol.pubsub.max_pattern_length", int, 1024, unit="bytes", minimum=1, maximum=65535,
            doc="The longest pattern that a Pub accepts.",
        )
        refresh_interval = define(
            "protocol.pubsub.refresh_interval", float, 5.0, unit="seconds", minimum=0,
            doc="How often a Sub repeats its subscriptions through a switch, because it does not see new publishers "
            "behind it. 0: never.",
        )
        expiry = define(
            "protocol.pubsub.expiry", float, 30.0, unit="seconds", minimum=0,
            doc="A Pub forgets a subscriber behind a switch if it repeated its subscriptions before, and has been "
            "silent for this time. 0: never.",
        )
        authorize_timeout = define(
            "protocol.pubsub.authorize_timeout", float, 5.0, unit="seconds", minimum=0,
            doc="How long authorize of a Pub may take to decide about a subscription. Then it is refused. 0: no limit.",
        )
        max_authorizing = define(
            "protocol.pubsub.max_authorizing", int, 64, minimum=1,
            doc="Maximum number of calls of authorize that run at once. One pipe has at most an eighth of them. The "
            "others wait.",
        )
        max_refused = define(
            "protocol.pubsub.max_refused", int, 1024, minimum=0,
            doc="A Pub with authorize closes the pipe of a peer that it has refused so many subscriptions without "
            "accepting one. A subscriber behind a switch is ignored for protocol.pubsub.expiry instead. 0: no limit.",
        )
        replay_bytes = define(
            "protocol.pubsub.replay_bytes", int, 67108864, unit="bytes", minimum=0,
            doc="Maximum memory of the publications that a Pub has still to send to subscribers that ask for its "
            "history, all together. A replay that does not fit is not sent; the subscriber is told that it has a gap.",
        )
        recover_timeout = define(
            "protocol.pubsub.recover_timeout", float, 5.0, unit="seconds", minimum=0,
            doc="After a reconnect, a Sub tells a gap for each history that it knows if no publisher has it within "
            "this time. 0: never.",
        )

    class stream:
        """``protocol.stream.*``"""

        window = define(
            "protocol.stream.window", int, 4194304, unit="bytes", minimum=65536, maximum=_INT32,
            doc="Maximum number of received bytes that a connection holds until they are read. Its peer then waits.",
        )
        acceptable = define(
            "protocol.stream.acceptable", bool, True, doc="Accept connections that peers open. False: refuse them."
        )
        accept_queue_size = define(
            "protocol.stream.accept_queue_size", int, 1024, minimum=1,
            doc="Maximum number of connections of peers that wait for accept(). More are refused.",
        )
        max_per_pipe = define(
            "protocol.stream.max_per_pipe", int, 4096, minimum=0,
            doc="Maximum number of connections that peers have opened by one pipe. More are refused. 0: no limit.",
        )
        probe_interval = define(
            "protocol.stream.probe_interval", float, 1.0, unit="seconds", minimum=0,
            doc="The same as protocol.reqrep.probe_interval, for peers that let a connect() time out. 0: they get their"
            " share.",
        )
        keep_alive_idle = define(
            "protocol.stream.keep_alive_idle", float, 30.0, unit="seconds", minimum=0,
            doc="Send a probe to the peer of a connection that was silent for this time. 0: never.",
        )
        keep_alive_interval = define(
            "protocol.stream.keep_alive_interval", float, 1.0, unit="seconds", minimum=_MIN_TIMEOUT,
            doc="The time between two probes.",
        )
        keep_alive_probes = define(
            "protocol.stream.keep_alive_probes", int, 7, minimum=1,
            doc="The connection ends after this number of unanswered probes.",
        )


class plane:
    """``plane.*``: backplanes."""

    prefix = define(
        "plane.prefix", str, "gms.",
        doc="What stands in front of each topic in the subjects of NATS and the channels of Redis: tokens with a dot "
        "behind each. Programs with the same prefix hear each other. Empty: nothing.",
    )

    buffer_messages = define(
        "plane.buffer_messages", int, 65536, unit="messages", minimum=0,
        doc="Maximum number of publications that wait while the engine is away or slow.",
    )
    buffer_bytes = define(
        "plane.buffer_bytes", int, 8388608, unit="bytes", minimum=0,
        doc="Maximum number of bytes that these publications have.",
    )
    buffer_overflow: Option[Literal["drop_newest", "drop_oldest"]] = define(
        "plane.buffer_overflow", "choice", "drop_oldest", choices=("drop_newest", "drop_oldest"),
        doc="Which publications are dropped when more have to wait.",
    )
    linger = define(
        "plane.linger", float, 5.0, unit="seconds", minimum=0,
        doc="How long the engine is asked for a pattern after its last subscriber has gone.",
    )
    acknowledge_timeout = define(
        "plane.acknowledge_timeout", float, 1.0, unit="seconds", minimum=0,
        doc="How long a Pub of a plane holds the acknowledgement of a subscription back, until the engine has it too.",
    )
    start_hub = define(
        "plane.start_hub", bool, True,
        doc="Start a hub where there is none, at an ipc address. False: a service or a configuration does that.",
    )
    hold = define(
        "plane.hold", float, 1.5, unit="seconds", minimum=0,
        doc="How long publications wait after the engine came back, because other processes have to come back too.",
    )
