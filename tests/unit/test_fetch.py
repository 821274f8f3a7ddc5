"""Media by URL: a real server on loopback, which settings can never reach; strangers' URLs, names and answers."""

from __future__ import annotations

import contextlib
import gzip
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrec.content.fetch import Fetcher, _Network, is_public
from mmrec.errors import InputError

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


class Server:
    """Answers each request by its path; `seen` holds requests as they came, `opened` counts connections."""

    def __init__(self, trust: ssl.SSLContext | None = None) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.trust, self.seen, self.opened = trust, [], 0
        self.pages: dict[str, bytes | Callable[[socket.socket], None]] = {"/": OK}
        self.closed = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while not self.closed.is_set():
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            self.opened += 1
            threading.Thread(target=self._answer, args=(peer,), daemon=True).start()

    def _answer(self, peer: socket.socket) -> None:
        try:
            if self.trust:
                peer = self.trust.wrap_socket(peer, server_side=True)
            while True:
                got = b""
                while b"\r\n\r\n" not in got:
                    more = peer.recv(65536)
                    if not more:
                        return
                    got += more
                self.seen.append(got.decode())
                page = self.pages.get(got.split(b" ")[1].decode(), b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")
                if callable(page):
                    page(peer)
                    return
                peer.sendall(page)
        except OSError:
            pass  # the other side has had enough
        finally:
            peer.close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.closed.set()
    made.listener.close()


def network(names: dict[str, list[str]] | None = None, trust: ssl.SSLContext | None = None) -> _Network:
    """All names lead to loopback, which is admitted for once; every other address is judged as ever."""
    made = _Network(resolve=lambda host, port: (names or {}).get(host, ["127.0.0.1"]),
                    admits=lambda a: a == "127.0.0.1" or is_public(a))  # fmt: skip
    return replace(made, trust=trust) if trust else made


@pytest.fixture
def fetcher(server: Server) -> Iterator[Fetcher]:
    made = Fetcher([f"cdn.shop.test:{server.port}", f"*.img.test:{server.port}"], seconds=3, max_bytes=1000,
                   _network=network())  # fmt: skip
    yield made
    made.close()


def code(fetcher: Fetcher, url: str) -> str:
    data, why = fetcher(url)
    assert data is None
    assert "\n" not in why
    return why.split(":")[0]


# addresses


@pytest.mark.parametrize("address", [
    "127.0.0.1", "127.255.0.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::", "::1", "fe80::1", "fc00::1", "fd00::1",
    "fec0::1", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:a9fe:a9fe", "64:ff9b::7f00:1",
    "64:ff9b::169.254.169.254", "64:ff9b:1::a00:1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:7f00:1::", "::127.0.0.1",
    "::8.8.8.8", "100::1", "fe80::1%eth0", "2606:4700::1%eth0", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "",
    "example.com", "8.8.8.8 ", "[::1]",
])  # fmt: skip
def test_an_address_that_is_not_of_the_open_internet_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8",
                                     "2002:808:808::1"])  # fmt: skip
def test_an_address_of_the_open_internet_is_public(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses(v=4))
def test_forms_of_version_six_that_carry_an_address_are_public_only_where_it_is(ip: ipaddress.IPv4Address) -> None:
    n = int(ip)
    forms = [(0xFFFF << 32) | n, (0x64FF9B << 96) | n]
    public = ip.is_global and not ip.is_multicast and not ip.is_reserved
    assert is_public(str(ip)) == public
    for form in forms:
        assert is_public(str(ipaddress.IPv6Address(form))) == public
    assert public or not is_public(str(ipaddress.IPv6Address((0x2002 << 112) | (n << 80) | 1)))


# hosts


@pytest.mark.parametrize("entry", ["", "*", "*.", "*.com", "*.*.com", "a.*.com", "http://a.com", "a.com/x", "u@a.com", "a.com:0",
                                   "a.com:65536", "a.com:x", "127.1", "0x7f.0.0.1", "2130706433", "a b", "*.8.8.8.8", "-a.com"])  # fmt: skip
def test_an_entry_of_media_hosts_that_is_no_host_is_refused(entry: str) -> None:
    with pytest.raises(InputError, match=r"source\.media_hosts"):
        Fetcher([entry])


def test_no_host_means_that_nothing_is_fetched(server: Server) -> None:
    assert code(Fetcher([], _network=network()), f"http://cdn.shop.test:{server.port}/") == "host_not_allowed"
    assert not server.opened


@pytest.mark.parametrize("url", ["http://shop.test:{}/", "http://x.cdn.shop.test:{}/", "http://img.test:{}/", "http://ximg.test:{}/",
                                 "http://cdn.shop.test.evil.test:{}/", "http://cdn.shop.test/", "https://cdn.shop.test/",
                                 "http://127.0.0.1:{}/", "http://[::1]:{}/", "http://cdn.shop.test#.evil.test:{}/"])  # fmt: skip
def test_a_host_or_port_that_is_not_named_is_refused_and_not_asked(server: Server, fetcher: Fetcher, url: str) -> None:
    assert code(fetcher, url.format(server.port)) == "host_not_allowed"
    assert not server.opened


@pytest.mark.parametrize("url", ["http://cdn.shop.test:{}/", "HTTP://CDN.Shop.TEST:{}/", "http://cdn.shop.test.:{}/", "http://a.img.test:{}",
                                 "http://a.b.img.test:{}/#part"])  # fmt: skip
def test_a_named_host_is_asked_whatever_the_spelling(server: Server, fetcher: Fetcher, url: str) -> None:
    assert fetcher(url.format(server.port)) == (b"hello", "")


def test_without_a_port_in_the_settings_only_the_usual_two_are_asked() -> None:
    asked: list[int] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(port)
        return ["10.0.0.1"]

    fetcher = Fetcher(["a.test"], _network=_Network(resolve=resolve))
    codes = [code(fetcher, u) for u in ("http://a.test/", "https://a.test/", "http://a.test:443/", "http://a.test:8080/",
                                        "http://a.test:22/", "https://a.test:8443/")]  # fmt: skip
    assert codes == ["private_address"] * 3 + ["host_not_allowed"] * 3
    assert asked == [80, 443, 443]


def test_names_in_any_script_are_compared_in_the_form_of_the_wire() -> None:
    asked: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["10.0.0.1"]

    fetcher = Fetcher(["bücher.test"], _network=_Network(resolve=resolve))
    for url in ("http://bücher.test/", "http://BÜCHER.test/", "http://xn--bcher-kva.test/"):
        assert code(fetcher, url) == "private_address"
    assert asked == ["xn--bcher-kva.test"] * 3
    assert code(fetcher, "http://bucher.test/") == "host_not_allowed"


@pytest.mark.parametrize("url", [
    "http://user:pw@cdn.shop.test:{}/", "http://user@cdn.shop.test:{}/", "http://cdn.shop.test:{}@evil.test/",
    "http://@cdn.shop.test:{}/", "http://cdn.shop.test:{}\\@evil.test/", "http://cdn.shop.test:{}/ HTTP/1.1\r\nX: y",
    "http://cdn.shop.test:{}/a b", "ftp://cdn.shop.test:{}/", "file:///etc/passwd", "http:///", "http://", "//cdn.shop.test:{}/",
    "http://cdn.shop.test:99999/", "http://[::1%25lo]:{}/", "http://cdn..shop.test:{}/", "http://2130706433:{}/", "http://0x7f.1:{}/",
    "http://0177.0.0.1:{}/", "http://127.1:{}/", "http://0x7f000001:{}/", "http://1.2.3.4.5:{}/", "http://cdn.shop.test:{}/\x00",
    "http://%63dn.shop.test:{}/", "http://\u2488\u2488.test:{}/", "x", "",
])  # fmt: skip
def test_a_url_that_could_be_read_in_two_ways_is_refused(server: Server, fetcher: Fetcher, url: str) -> None:
    assert code(fetcher, url.format(server.port)) in ("bad_url", "host_not_allowed")
    assert not server.opened


@given(st.text(max_size=40), st.sampled_from(["", "http://", "https://", "http://cdn.shop.test", "http://cdn.shop.test:80@"]))
def test_no_text_raises_or_gets_anything_beyond_the_named_hosts(text: str, front: str) -> None:
    asked: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["10.0.0.1"]

    assert Fetcher(["cdn.shop.test"], _network=_Network(resolve=resolve))(front + text).data is None
    assert set(asked) <= {"cdn.shop.test"}


# names


@pytest.mark.parametrize("answers", [["10.0.0.1"], ["127.0.0.1", "192.168.0.1"], ["8.8.8.8", "::ffff:127.0.0.2"], ["fe80::1%lo"], ["x"]])
def test_one_private_address_among_a_hosts_is_enough_to_refuse_it(server: Server, answers: list[str]) -> None:
    fetcher = Fetcher([f"cdn.shop.test:{server.port}"], _network=network({"cdn.shop.test": answers}))
    assert code(fetcher, f"http://cdn.shop.test:{server.port}/") == "private_address"
    assert not server.opened


def test_settings_can_not_reach_loopback_by_name_or_by_number(server: Server) -> None:
    for host in ("localhost", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"):
        assert code(Fetcher([f"{host}:{server.port}"]), f"http://{host}:{server.port}/") == "private_address"
    assert not server.opened


def test_the_address_that_was_checked_is_the_one_that_is_connected_to(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([["127.0.0.1"], ["10.0.0.1"]])
    connected: list[str] = []
    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        connected.append(address[0])
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    made = replace(network(), resolve=lambda host, port: next(answers))
    fetcher = Fetcher([f"cdn.shop.test:{server.port}"], _network=made)
    assert fetcher(f"http://cdn.shop.test:{server.port}/").data == b"hello"
    fetcher.close()
    assert code(fetcher, f"http://cdn.shop.test:{server.port}/") == "private_address"
    assert connected == ["127.0.0.1"]
    assert f"Host: cdn.shop.test:{server.port}\r\n" in server.seen[0]


def test_a_name_that_no_one_knows_or_that_takes_forever_waits_for_another_night() -> None:
    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    assert code(Fetcher(["a.test"], _network=_Network(resolve=unknown)), "http://a.test/") == "unreachable"
    slow = Fetcher(["a.test"], seconds=0.2, _network=_Network(resolve=lambda *_: threading.Event().wait(30) or []))
    assert code(slow, "http://a.test/") == "timeout"
    assert code(Fetcher(["a.test"], _network=_Network(resolve=lambda *_: [])), "http://a.test/") == "unreachable"


# requests and answers


def test_a_request_holds_no_secret_no_cookie_and_goes_through_no_proxy(server: Server, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch,
                                                                      tmp_path: Path) -> None:  # fmt: skip
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    (tmp_path / ".netrc").write_text("machine cdn.shop.test login me password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    server.pages["/a?b=c%20d"] = OK.replace(b"OK\r\n", b"OK\r\nSet-Cookie: a=b\r\n")
    for _ in range(2):
        assert fetcher(f"http://cdn.shop.test:{server.port}/a?b=c%20d#e").data == b"hello"
    assert server.seen[0] == server.seen[1]
    assert server.seen[0].split("\r\n") == ["GET /a?b=c%20d HTTP/1.1", f"Host: cdn.shop.test:{server.port}", "Accept: */*",
                                            "Accept-Encoding: identity", "User-Agent: mmrec", "", ""]  # fmt: skip
    assert server.opened == 1


@pytest.mark.parametrize(("answer", "why"), [
    ("404 Not Found", "not_found"), ("410 Gone", "not_found"), ("403 Forbidden", "denied"), ("401 Who", "denied"),
    ("206 Partial", "denied"), ("204 Empty", "denied"), ("429 Slow", "unavailable"), ("500 Oops", "unavailable"),
    ("503 Later", "unavailable"), ("304 Same", "denied"),
])  # fmt: skip
def test_each_status_has_its_verdict(server: Server, fetcher: Fetcher, answer: str, why: str) -> None:
    server.pages["/s"] = f"HTTP/1.1 {answer}\r\nContent-Length: 5\r\n\r\nsorry".encode()
    assert code(fetcher, f"http://cdn.shop.test:{server.port}/s") == why
    assert fetcher(f"http://cdn.shop.test:{server.port}/").data == b"hello"
    assert (why in fetcher.passing) == (why == "unavailable")


def test_what_is_larger_than_allowed_is_refused_whether_it_says_so_or_not(server: Server, fetcher: Fetcher) -> None:
    sent: list[int] = []

    def endless(front: bytes, piece: bytes) -> Callable[[socket.socket], None]:
        def send(peer: socket.socket) -> None:
            peer.sendall(b"HTTP/1.1 200 OK\r\n" + front + b"\r\n")
            for n in range(100_000):
                sent.append(n)
                peer.sendall(piece)

        return send

    server.pages |= {"/declared": b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n" + b"x" * 1001,
                     "/most": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000,
                     "/endless": endless(b"", b"x" * 1000),
                     "/chunks": endless(b"Transfer-Encoding: chunked\r\n", b"3e8\r\n" + b"x" * 1000 + b"\r\n"),
                     "/lie": endless(b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"3e8\r\n" + b"x" * 1000 + b"\r\n"),
                     "/zeros": b"HTTP/1.1 200 OK\r\n\r\n"}  # fmt: skip
    at = f"http://cdn.shop.test:{server.port}"
    assert [code(fetcher, f"{at}/{p}") for p in ("declared", "endless", "chunks", "lie")] == ["too_large"] * 4
    assert len(sent) < 100_000
    assert len(fetcher(f"{at}/most").data or b"") == 1000


def test_a_body_that_is_compressed_is_refused_unread(server: Server, fetcher: Fetcher) -> None:
    bomb = gzip.compress(b"\0" * 900_000)
    for name in ("gzip", "br", "deflate", "GZIP, identity"):
        server.pages["/bomb"] = (f"HTTP/1.1 200 OK\r\nContent-Encoding: {name}\r\nContent-Length: {len(bomb)}\r\n\r\n").encode() + bomb
        assert code(fetcher, f"http://cdn.shop.test:{server.port}/bomb") == "encoded"
    server.pages["/plain"] = OK.replace(b"OK\r\n", b"OK\r\nContent-Encoding: identity\r\n")
    assert fetcher(f"http://cdn.shop.test:{server.port}/plain").data == b"hello"


@pytest.mark.parametrize("answer", [
    b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nhello\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n",
])  # fmt: skip
def test_a_body_that_ends_too_early_is_never_taken_for_the_whole(server: Server, fetcher: Fetcher, answer: bytes) -> None:
    server.pages["/cut"] = lambda peer: peer.sendall(answer)
    assert code(fetcher, f"http://cdn.shop.test:{server.port}/cut") == "incomplete"


def test_what_follows_an_answer_is_not_taken_for_the_next(server: Server, fetcher: Fetcher) -> None:
    forged, read, sent = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged", threading.Event(), threading.Event()

    def later(peer: socket.socket) -> None:
        peer.sendall(OK)
        read.wait(5)
        peer.sendall(forged)
        sent.set()

    server.pages |= {"/more": OK + forged, "/later": later}
    at = f"http://cdn.shop.test:{server.port}"
    assert [fetcher(f"{at}{p}").data for p in ("/more", "/", "/more", "/", "/later")] == [b"hello"] * 5
    read.set()
    assert sent.wait(5)
    assert fetcher(f"{at}/").data == b"hello"


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nhello", b"\xff" * 70_000,
                                    b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n"])  # fmt: skip
def test_an_answer_that_is_no_http_is_a_failure_not_a_crash(server: Server, fetcher: Fetcher, answer: bytes) -> None:
    server.pages["/bad"] = lambda peer: peer.sendall(answer)
    assert code(fetcher, f"http://cdn.shop.test:{server.port}/bad") == "unreachable"


@pytest.mark.parametrize("front", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n",
                                   b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: "])  # fmt: skip
def test_a_byte_at_a_time_does_not_outlast_the_time_there_is(server: Server, front: bytes) -> None:
    over = threading.Event()

    def drip(peer: socket.socket) -> None:
        peer.sendall(front)
        while not over.wait(0.05):
            peer.sendall(b"1")

    server.pages["/drip"] = drip
    fetcher = Fetcher([f"cdn.shop.test:{server.port}"], seconds=0.5, _network=network())
    assert code(fetcher, f"http://cdn.shop.test:{server.port}/drip") == "timeout"
    over.set()


def test_a_host_that_failed_three_times_in_a_row_is_left_alone(server: Server, fetcher: Fetcher) -> None:
    server.pages["/s"] = b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"
    at = f"http://cdn.shop.test:{server.port}"
    for path in ("/s", "/s", "/none", "/s", "/s", "/", "/s", "/s", "/s", "/s", "/"):
        fetcher(at + path)
    # neither what was not found nor what came counts as a failure, and both end a row of them
    assert len(server.seen) == 9
    assert code(fetcher, f"{at}/") == "unreachable"
    assert fetcher(f"http://a.img.test:{server.port}/").data == b"hello"


def test_when_the_nights_time_is_over_the_rest_waits(server: Server) -> None:
    fetcher = Fetcher([f"cdn.shop.test:{server.port}"], minutes=1e-9, _network=network())
    codes = set()
    for _ in range(3):
        codes.add((fetcher(f"http://cdn.shop.test:{server.port}/").why).split(":")[0])
        time.sleep(0.01)
    assert "later" in codes
    assert codes <= {"", "later"}


# redirects


@pytest.mark.parametrize(("to", "why"), [
    ("http://cdn.shop.test:{}/", ""), ("/", ""), ("//cdn.shop.test:{}/", ""), ("http://a.img.test:{}/", ""),
    ("http://evil.test:{}/", "host_not_allowed"), ("http://127.0.0.1:{}/", "host_not_allowed"), ("http://cdn.shop.test:1/", "host_not_allowed"),
    ("http://user@cdn.shop.test:{}/", "bad_url"), ("file:///etc/passwd", "bad_url"), ("gopher://cdn.shop.test:{}/", "bad_url"),
    ("http://[::1/", "no URL"), ("http://lan.img.test:{}/", "private_address"), ("", "without a Location"),
])  # fmt: skip
def test_a_redirect_is_checked_like_the_first_url(server: Server, to: str, why: str) -> None:
    fetcher = Fetcher([f"cdn.shop.test:{server.port}", f"*.img.test:{server.port}"],
                      _network=network({"lan.img.test": ["192.168.0.1"]}))  # fmt: skip
    server.pages["/r"] = f"HTTP/1.1 302 There\r\nLocation: {to.format(server.port)}\r\nContent-Length: 0\r\n\r\n".encode()
    got = fetcher(f"http://cdn.shop.test:{server.port}/r")
    assert got.data == (None if why else b"hello")
    assert why in got.why
    assert not why or got.why.startswith(("bad_redirect: ", "private_address: "))


def test_five_redirects_are_followed_and_a_loop_ends(server: Server, fetcher: Fetcher) -> None:
    for n in range(1, 8):
        server.pages[f"/{n}"] = f"HTTP/1.1 307 On\r\nLocation: /{n - 1 if n > 1 else ''}\r\nContent-Length: 0\r\n\r\n".encode()
    server.pages["/loop"] = b"HTTP/1.1 301 Round\r\nLocation: /loop\r\nContent-Length: 0\r\n\r\n"
    at = f"http://cdn.shop.test:{server.port}"
    assert fetcher(f"{at}/5").data == b"hello"
    assert code(fetcher, f"{at}/6") == "bad_redirect"
    server.seen.clear()
    assert code(fetcher, f"{at}/loop") == "bad_redirect"
    assert len(server.seen) == 6


# TLS


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's certificate for cdn.shop.test, and a client that trusts it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.now(UTC)
    cert = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
            .serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("cdn.shop.test")]), critical=True)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256()))  # fmt: skip
    file = tmp_path_factory.mktemp("tls") / "cert.pem"
    file.write_bytes(cert.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))  # fmt: skip
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(file)
    return serving, ssl.create_default_context(cafile=str(file))


def test_tls_is_verified_for_the_name_not_for_the_address(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    serving, trusting = contexts
    asked: list[str | None] = []
    serving.sni_callback = lambda sock, name, context: asked.append(name)
    server = Server(serving)
    hosts = [f"cdn.shop.test:{server.port}", f"other.test:{server.port}"]
    try:
        good = Fetcher(hosts, _network=network(trust=trusting))
        assert [good(f"https://cdn.shop.test:{server.port}/").data for _ in range(2)] == [b"hello"] * 2
        assert (asked, server.opened) == (["cdn.shop.test"], 1)
        got = good(f"https://other.test:{server.port}/")
        assert got == (None, "unreachable: its certificate is not one for that name")
        assert code(Fetcher(hosts, _network=network()), f"https://cdn.shop.test:{server.port}/") == "unreachable"
        assert len(server.seen) == 2
        server.pages["/r"] = f"HTTP/1.1 302 Down\r\nLocation: http://cdn.shop.test:{server.port}/\r\n\r\n".encode()
        assert good(f"https://cdn.shop.test:{server.port}/r").why == "bad_redirect: from https to http"
    finally:
        server.closed.set()
        server.listener.close()


@pytest.mark.parametrize("says", [b"", b"\x16\x03\x03\x40\x00\x02"])
def test_a_handshake_that_never_ends_does_not_outlast_the_time_there_is(says: bytes) -> None:
    over = threading.Event()

    def drip() -> None:
        peer, _ = listener.accept()
        with peer, contextlib.suppress(OSError):
            peer.sendall(says)
            while not over.wait(0.05):
                peer.sendall(b"\0" if says else b"")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        threading.Thread(target=drip, daemon=True).start()
        fetcher = Fetcher([f"cdn.shop.test:{port}"], seconds=0.3, _network=network())
        assert code(fetcher, f"https://cdn.shop.test:{port}/") == "timeout"
        over.set()
