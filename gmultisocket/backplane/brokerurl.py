"""URLs of brokers: ``nats://user:password@a:4222,b:4222?transport.tls.cafile=/etc/ca.pem``.

Unlike an address (:mod:`gmultisocket.address`) such a URL may hold a user name and a password, several servers, and no
port. A character of a name or password that has a meaning in a URL is percent-encoded there. Options follow the ``?``
as in an address. No secret is in an error, a log record or a ``repr``.

Pure: no I/O, no lookup of names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote

from ..address import Address, redact, split_host_port
from ..errors import AddressError
from ..options import Options, PlaneOptions

__all__ = ["BrokerURL", "Credentials", "Server", "parse_url"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


class Credentials(NamedTuple):
    """What a client says of itself when it logs in.

    Attributes:
        user: "" for none.
        password: None for none; with NATS, a user without a password is a token.
    """

    user: str
    password: str | None

    def __repr__(self) -> str:
        return "Credentials(***)"


class Server(NamedTuple):
    """One server.

    Attributes:
        scheme: of the URL.
        location: ``host:port``, or the path of a unix socket.
        credentials: of the client.
    """

    scheme: str
    location: str
    credentials: Credentials

    @property
    def name(self) -> str:
        """The URL of this server, without secrets and options."""
        return f"{self.scheme}://{self.location}"


class BrokerURL(NamedTuple):
    """A parsed URL.

    Attributes:
        servers: at least one.
        options: those of the URL, and behind them those of the plane.
    """

    servers: tuple[Server, ...]
    options: Options


def parse_url(url: str, ports: Mapping[str, int | None], options: Options, *, database: bool = False) -> BrokerURL:
    """Parse the URL of a broker.

    Args:
        url: as above.
        ports: by scheme: the port of a server that names none; None for a scheme whose location is a path.
        options: what the URL does not set.
        database: whether the number of a database may follow the host: ``redis://host/0``. It is ignored.

    Raises:
        AddressError: it is not such a URL.
        UnknownOption, MisplacedOption, BadOptionValue: an option in it is wrong.
    """
    match = _SCHEME.match(url)
    scheme = match[1].lower() if match else ""
    if match is None or scheme not in ports:
        raise AddressError(redact(url), f"the scheme is wrong: expected {' or '.join(f'{each}://' for each in ports)}")
    if not url.isprintable() or " " in url:
        raise AddressError(redact(url), "it contains white space or a control character")
    port = ports[scheme]
    servers: tuple[Server, ...]
    location, _, query = url[match.end() :].partition("?")
    if port is not None:
        servers = _servers(scheme, location, port, url, database)
    else:
        servers = (_path_server(scheme, location, url),)
    bare = f"{scheme}://{','.join(server.location for server in servers)}"
    values = Address.parse(f"{bare}?{query}").options if query else {}
    return BrokerURL(servers, PlaneOptions(values, options))


def _servers(scheme: str, location: str, port: int, url: str, database: bool) -> tuple[Server, ...]:
    """Return the servers of a list. One without credentials has those of the first.

    Args:
        database: whether the number of a database may follow. It means nothing here.
    """
    authority, slash, rest = location.partition("/")
    if rest.startswith("/"):
        # A scheme in front of each server, as the clients of NATS have it.
        authority, slash, rest = location.replace(f"{scheme}://", "").partition("/")
    if re.fullmatch("[0-9]*", rest) is None or (rest and not database) or "#" in location:
        raise AddressError(
            redact(url), "nothing but ?options may follow the servers; in a password, write / ? # as %2F %3F %23"
        )
    first: Credentials | None = None
    servers = []
    for text in authority.split(","):
        secret, at, place = text.rpartition("@")
        credentials = _credentials(secret, url) if at else first or Credentials("", None)
        if first is None:
            first = credentials
        if not re.search(r":[0-9]+$", place.rpartition("]")[2]):
            place = f"{place.removesuffix(':')}:{port}"
        split_host_port(place, url)
        servers.append(Server(scheme, place, credentials))
    return tuple(servers)


def _path_server(scheme: str, location: str, url: str) -> Server:
    """Return the server at a unix socket: ``user:password@/path``."""
    secret, at, path = location.partition("@") if not location.startswith("/") else ("", "", location)
    if not path.startswith("/"):
        raise AddressError(redact(url), f"the path is missing: expected {scheme}:///absolute/path")
    credentials = _credentials(secret, url) if at else Credentials("", None)
    return Server(scheme, path, credentials)


def _credentials(text: str, url: str) -> Credentials:
    user, colon, password = text.partition(":")
    try:
        return Credentials(unquote(user, errors="strict"), unquote(password, errors="strict") if colon else None)
    except UnicodeDecodeError:
        raise AddressError(redact(url), "the user name or password is not UTF-8 when it is percent-decoded") from None
