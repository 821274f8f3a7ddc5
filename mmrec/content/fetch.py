"""Media by URL: bytes of an allowed host at a public address, or a named refusal.

In: URLs that item rows name, the hosts that config allows. Out: `Fetched`, bytes or the reason there are none.
A URL is data of a stranger. So the host must be on the list, each of its addresses public, and the address that was
checked is the one that is connected to, under the host's name for TLS; each redirect is checked like the first URL.
Size and time are bounded whatever the server does. No credentials, cookies, proxies or content encodings.
Trade-off: one URL after the other, a connection a host kept open: slow for 10^5 pictures, kind to whoever serves them.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urljoin

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import Url, parse_url

from mmrec.errors import InputError

_PASSING = frozenset(
    {"host_not_allowed", "private_address", "unreachable", "unavailable", "timeout", "incomplete", "later"}
)
_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)
_BUSY = (408, 425, 429)
_HOPS = 5
_IN_A_ROW = 3  # failures after which a host is left alone for the night
_LONGEST = 4096  # characters of a URL
_CHUNK = 64 << 10
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)\Z")
_NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)\Z")
_ENTRY = re.compile(r"(?P<wide>\*\.)?(?P<host>\[[0-9a-fA-F:.]+\]|[^\s:/\[\]@*?#\\]+)(:(?P<port>[0-9]{1,5}))?\Z")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")


class Fetched(NamedTuple):
    """What came of a URL: `data`, or None and `why`, "code: detail", the code short and stable."""

    data: bytes | None
    why: str


class _Refused(Exception):
    """`str()` is "code: detail"."""


def is_public(address: str) -> bool:
    """Whether an address, as text, is one of the open internet; of IPv6 forms that carry an IPv4 address, both count.

    False for what is no address: names, zones, numbers that only some resolvers take for one.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id is not None:
            return False
        inner = ip.ipv4_mapped or (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None)
        if inner is not None:
            return is_public(str(inner))
        if ip.sixtofour is not None and not is_public(str(ip.sixtofour)):
            return False
        if ip.is_site_local or ip in _COMPATIBLE:
            return False
    return ip.is_global and not (ip.is_private or ip.is_multicast or ip.is_reserved or ip.is_loopback
                                 or ip.is_link_local or ip.is_unspecified)  # fmt: skip


def _addresses(host: str, port: int) -> list[str]:
    return [str(a[4][0]) for a in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


@dataclass(frozen=True)
class _Network:
    """The network as tests may set it up; settings can't reach it."""

    resolve: Callable[[str, int], list[str]] = _addresses
    admits: Callable[[str], bool] = is_public
    trust: ssl.SSLContext = field(default_factory=ssl.create_default_context)


class Fetcher:
    """Calls fetch. Keeps a connection a host, and counts a host's failures, until `close`."""

    passing = _PASSING  # codes of refusals that another night may lift

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        minutes: float = 60,
        seconds: float = 30,
        max_bytes: int = 50 << 20,
        _network: _Network | None = None,
    ) -> None:
        """
        Args:
            hosts: exact names, "*.example.com" for every name below it; with ":port" for a port that is neither 80 nor
                443. Empty: nothing is fetched.
            minutes: of all fetches together, from the first. seconds: of one fetch, redirects included.
            max_bytes: of one medium.

        Raises: InputError: an entry is no host.
        """
        self._hosts = [_entry(h) for h in hosts]
        self._minutes, self._seconds, self._max_bytes = minutes, seconds, max_bytes
        self._network = _network or _Network()
        self._kept: dict[tuple[str, str, int], _Plain | _Secure] = {}
        self._failed: Counter[str] = Counter()
        self._end: float | None = None

    def __call__(self, url: str) -> Fetched:
        """Fetch `url`. Never raises for what a URL, a name server or a server does."""
        deadline = time.monotonic() + self._seconds
        host = ""
        try:
            target = self._checked(url)
            host = str(target.host)
            self._end = self._end or time.monotonic() + 60 * self._minutes
            if time.monotonic() >= self._end:
                raise _Refused("later: the night's time for fetching is over")
            if self._failed[host] >= _IN_A_ROW:
                raise _Refused(f"unreachable: {host} failed {_IN_A_ROW} times in a row")
            data = self._follow(target, deadline)
        except _Refused as refused:
            code = str(refused).split(":")[0]
            if code in ("unreachable", "unavailable", "timeout"):
                self._failed[host] += 1
            elif code not in self.passing:  # an answer, if not the one that was hoped for
                self._failed[host] = 0
            return Fetched(None, str(refused)[:200])
        self._failed[host] = 0
        return Fetched(data, "")

    def close(self) -> None:
        """Close what connections are open; the next call opens its own."""
        for connection in self._kept.values():
            connection.release()
        self._kept.clear()

    def _follow(self, target: Url, deadline: float) -> bytes:
        for _ in range(_HOPS + 1):
            found = self._get(target, deadline)
            if isinstance(found, bytes):
                return found
            try:
                onward = self._checked(urljoin(target.url, found))
            except _Refused as refused:
                raise _Refused(f"bad_redirect: {refused}") from None
            except ValueError:
                raise _Refused("bad_redirect: to what is no URL") from None
            if (target.scheme, onward.scheme) == ("https", "http"):
                raise _Refused("bad_redirect: from https to http")
            target = onward
        raise _Refused(f"bad_redirect: more than {_HOPS}")

    def _checked(self, url: str) -> Url:
        """The URL in its normal form; scheme, host and port are allowed."""
        if len(url) > _LONGEST or re.search(r"[\x00-\x20\x7f\\]", url):
            raise _Refused("bad_url: too long, or with blanks, control characters or backslashes")
        if re.match(r"[^/?#]*//[^/?#]*[@%]", url):
            raise _Refused("bad_url: credentials or escapes before its path")
        try:
            parts = parse_url(url)
        except (urllib3.exceptions.HTTPError, ValueError):
            raise _Refused("bad_url: it can't be parsed") from None
        if parts.scheme not in _PORTS:
            raise _Refused("bad_url: neither http nor https")
        host = _host(parts.host or "")
        if host is None:
            raise _Refused("bad_url: its host is neither a name nor an address in its usual form")
        port = parts.port if parts.port is not None else _PORTS[parts.scheme]
        if not any(_matches(entry, host, port) for entry in self._hosts):
            raise _Refused(f"host_not_allowed: source.media_hosts does not name {host} at port {port}")
        return Url(parts.scheme, None, host, port, parts.path or "/", parts.query)

    def _get(self, target: Url, deadline: float) -> bytes | str:
        """The body, or where a redirect leads."""
        connection = self._connection(target, deadline)
        watch = threading.Timer(max(0.0, deadline - time.monotonic()), connection.expire)
        watch.daemon = True
        watch.start()
        whole = False
        try:
            if connection.sock is not None:
                connection.sock.settimeout(max(0.001, deadline - time.monotonic()))
            port = "" if target.port == _PORTS[str(target.scheme)] else f":{target.port}"
            connection.request("GET", target.request_uri, preload_content=False, decode_content=False,
                               headers={"Host": f"{_bracketed(str(target.host))}{port}", "Accept": "*/*",
                                        "Accept-Encoding": "identity", "User-Agent": "mmrec"})  # fmt: skip
            reply = connection.getresponse()
            if reply.status in _REDIRECTS:
                if not (to := reply.headers.get("Location")):
                    raise _Refused(f"bad_redirect: {reply.status} without a Location")
                return str(to)
            body = self._body(reply, connection)
            whole = True
            return body
        except (OSError, http.client.HTTPException, urllib3.exceptions.HTTPError, ValueError) as error:
            raise _named(error, connection.expired) from None
        finally:
            watch.cancel()
            # what is left of an answer would be taken for the beginning of the next
            if not whole:
                self._kept.pop((str(target.scheme), str(target.host), int(target.port or 0)), None)
                connection.release()

    def _body(self, reply: Any, connection: _Plain | _Secure) -> bytes:
        if reply.status >= 500 or reply.status in _BUSY:
            raise _Refused(f"unavailable: status {reply.status}")
        if reply.status in (404, 410):
            raise _Refused(f"not_found: status {reply.status}")
        if reply.status != 200:
            raise _Refused(f"denied: status {reply.status}")
        if (coding := reply.headers.get("Content-Encoding", "identity").strip().lower()) not in ("identity", ""):
            raise _Refused(f"encoded: {coding[:40]}, where identity was asked for")
        if (reply.length_remaining or 0) > self._max_bytes:
            raise _Refused(f"too_large: {reply.length_remaining} bytes")
        data = bytearray()
        while chunk := reply.read1(_CHUNK):  # raises where fewer bytes come than were declared
            data += chunk
            if len(data) > self._max_bytes:
                raise _Refused(f"too_large: more than {self._max_bytes} bytes")
        if connection.expired:
            raise TimeoutError
        return bytes(data)

    def _connection(self, target: Url, deadline: float) -> _Plain | _Secure:
        scheme, host, port = key = str(target.scheme), str(target.host), int(target.port or 0)
        kept = self._kept.pop(key, None)
        if kept is not None and kept.is_connected:
            self._kept[key] = kept
            return kept
        if kept is not None:
            kept.release()
        addresses = self._resolved(host, port, deadline)
        # one that is not public says that the name, or its server, is not to be trusted with the others
        if bad := [a for a in addresses if not self._network.admits(a)]:
            raise _Refused(f"private_address: {host} is at {bad[0]}")
        for n, address in enumerate(addresses, 1):
            left = deadline - time.monotonic()
            if left <= 0:
                raise _Refused("timeout: no connection in time")
            if scheme == "https":
                made: _Plain | _Secure = _Secure(address, port, timeout=left, server_hostname=host,
                                                 ssl_context=self._network.trust)  # fmt: skip
            else:
                made = _Plain(address, port, timeout=left)
            try:
                made.connect()  # of the handshake, too, a socket's timeout is for the whole
            except (OSError, urllib3.exceptions.HTTPError, ValueError) as error:
                made.release()
                if n == len(addresses):
                    raise _named(error, made.expired) from None
                continue
            self._kept[key] = made
            return made
        raise _Refused(f"unreachable: {host} has no address")

    def _resolved(self, host: str, port: int, deadline: float) -> list[str]:
        """Addresses of a host; an address is its own. The system's resolver keeps no time, so it is left behind."""
        if _is_address(host):
            return [host]
        found: list[str] = []
        failed: list[OSError | UnicodeError] = []

        def ask() -> None:
            try:
                found.extend(dict.fromkeys(self._network.resolve(host, port)))
            except (OSError, UnicodeError) as error:
                failed.append(error)

        asked = threading.Thread(target=ask, daemon=True)
        asked.start()
        asked.join(max(0.0, deadline - time.monotonic()))
        if asked.is_alive():
            raise _Refused(f"timeout: {host} could not be resolved in time")
        if failed:
            raise _Refused(f"unreachable: {host} could not be resolved")
        return found


class _Expiring:
    """A connection that another thread may cut, whatever it waits for: a byte a second never times out by itself."""

    expired = False
    _guard: socket.socket | None = None

    def _new_conn(self) -> socket.socket:
        sock: socket.socket = super()._new_conn()  # type: ignore[misc]
        if self._guard is not None:
            self._guard.close()
        self._guard = sock.dup()  # TLS takes the socket itself over; shutting down works by any of its handles
        return sock

    def expire(self) -> None:
        self.expired = True
        if guard := self._guard:
            with contextlib.suppress(OSError):  # closed already
                guard.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """Close, also what an answer still holds open: http.client closes a connection before the body is read."""
        if guard := self._guard:
            with contextlib.suppress(OSError):
                guard.shutdown(socket.SHUT_RDWR)
            guard.close()
        self.close()  # type: ignore[attr-defined]


class _Plain(_Expiring, HTTPConnection):
    pass


class _Secure(_Expiring, HTTPSConnection):
    pass


def _named(error: Exception, expired: bool) -> _Refused:
    if expired or isinstance(error, TimeoutError | urllib3.exceptions.TimeoutError):
        return _Refused("timeout: not done in time")
    if isinstance(error, urllib3.exceptions.ProtocolError):  # what urllib3 makes of all that goes wrong in a body
        return _Refused("incomplete: the connection ended before the body did")
    if isinstance(error, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(error):
        return _Refused("unreachable: its certificate is not one for that name")
    return _Refused(f"unreachable: {type(error).__name__}")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _host(host: str) -> str | None:
    """A host in lower case without brackets and last dot; None: neither a name nor an address in its usual form."""
    if host.startswith("["):
        inside = host[1:-1]
        return ipaddress.IPv6Address(inside).compressed if "%" not in inside and _is_address(inside) else None
    host = host.lower().removesuffix(".")
    labels = host.split(".")
    if _NUMBER.match(labels[-1]):  # what ends in a number is an address, or a spelling that only some take for one
        return host if _is_address(host) else None
    return host if len(host) <= 253 and all(map(_LABEL.match, labels)) else None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _entry(text: str) -> tuple[bool, str, int | None]:
    """(names below it, host, port or None for the usual two) of one of `source.media_hosts`."""
    found = _ENTRY.match(text)
    host = None
    if found:
        try:
            host = _host(parse_url(f"http://{found['host']}/").host or "")
        except (urllib3.exceptions.HTTPError, ValueError):
            host = None
    port = int(found["port"]) if found and found["port"] else None
    wide = bool(found and found["wide"])
    if host is None or (wide and (_is_address(host) or "." not in host)) or not (port is None or 0 < port < 65536):
        raise InputError(
            "not a host",
            where="source.media_hosts",
            value=text,
            valid='names, as "cdn.example.com", "*.example.com" or "cdn.example.com:8443"',
            next="edit mmrec.toml",
        )
    return wide, host, port


def _matches(entry: tuple[bool, str, int | None], host: str, port: int) -> bool:
    wide, name, at = entry
    if port != at and not (at is None and port in _PORTS.values()):
        return False
    return host.endswith(f".{name}") and not _is_address(host) if wide else host == name
