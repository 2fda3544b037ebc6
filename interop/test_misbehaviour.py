"""Clients that break the rules: each is refused with the code of the page, and a good client beside it notices nothing."""

import os
import random
import socket
import struct
import time

import pytest

import felix_wire as w
from felix_client import Closed, Refused

R = w.Record
CODE = w.CODES


@pytest.fixture
def good(broker, connect, stream):
    """A well-behaved client on each core that publishes and reads; checked again at the end of the test."""
    clients = []
    for core in range(broker.cores):
        client = connect(broker, core)
        s = stream(client)
        clients.append((client, s, client.channel(s), client.subscribe(s)))

    def check():
        for client, _, channel, sub in clients:
            n = len(channel.offsets)
            channel.publish(w.batch_body([R(str(n).encode())], sequence=n))
            channel.acked(n + 1)
            sub.until(n + 1)
            assert [r.value for r in sub.records] == [str(i).encode() for i in range(n + 1)]
    check()
    yield clients
    check()
    assert broker.alive()


def closes(client, code, timeout=5.0):
    closed = client.wait_closed(timeout)
    assert closed[0] == CODE[code], f"closed with {closed}, {code} wanted"


@pytest.fixture
def errors_counted(broker, loop):
    """Checks that felix_protocol_errors_total moved by at least one."""
    before = broker.settled("felix_protocol_errors_total", loop)
    yield
    broker.wait_metric("felix_protocol_errors_total", before + 1, loop)


def test_wrong_alpn(broker, good, raw):
    client = raw(broker, handshake=False, alpn="h3")
    assert client.wait_closed()[0] == 0x100 + 120, "no_application_protocol"


def test_no_client_certificate(broker, good, raw):
    for core in (0, 1):
        client = raw(broker, core, certificate=False)
        client.send(client.open_stream(), w.hello())
        closes(client, "Unauthenticated")


def test_a_token_is_no_certificate(broker, good, raw):
    client = raw(broker, certificate=False)
    client.send(client.open_stream(), w.hello(token=b"eyJhbGciOiJub25lIn0.e30."))
    closes(client, "Unauthenticated")


def test_another_cluster(broker, good, raw):
    client = raw(broker)
    client.send(client.open_stream(), w.hello(cluster=12345))
    closes(client, "WrongCluster")


GREETINGS = {
    "hello-of-the-future": (w.hello(low=2, high=9, version=2), "UnsupportedVersion"),
    "hello-body-of-the-future": (w.hello(low=2, high=9), "UnsupportedVersion"),
    "envelope-of-the-future": (w.hello(version=77), "UnsupportedVersion"),
    "envelope-version-0": (w.hello(version=0), "UnsupportedVersion"),
    "high-below-low": (w.hello(low=1, high=0), "UnsupportedVersion"),
    "not-hello": (w.get_route(5, "a/b/c"), "HandshakeRequired"),
    "not-hello-admin": (w.admin(5, w.list_tenants()), "HandshakeRequired"),
    "welcome": (w.frame(w.WELCOME, 0, bytes(100)), "UnexpectedFrame"),
    "hello-reserved": (w.hello(reserved=1), "MalformedFrame"),
    "long-client-name": (w.hello(name="x" * 129), "FrameTooLarge"),
    "long-token": (w.hello(token=b"x" * 8193), "FrameTooLarge"),
    "name-not-utf8": (w.hello(name=b"\xff\xfe"), "MalformedFrame"),
    "bytes-behind-the-body": (w.frame(w.HELLO, 0, w.hello()[16:] + b"\0"), "MalformedFrame"),
    "body-too-short": (w.frame(w.HELLO, 0, w.hello()[16:-1]), "MalformedFrame"),
    "http": (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", None),
    "zeros": (bytes(64), None),
    "noise": (random.Random(5).randbytes(2000), None),
}


@pytest.mark.parametrize("what", GREETINGS)
def test_bad_greetings(broker, good, raw, what):
    data, code = GREETINGS[what]
    client = raw(broker)
    client.send(client.open_stream(), data)
    if code is None:
        assert client.wait_closed()[0] in w.CODE_NAMES
    elif what == "welcome":
        # A reader may look at the body first, or at what the frame is.
        assert client.wait_closed()[0] in (CODE[code], CODE["HandshakeRequired"], CODE["MalformedFrame"])
    else:
        closes(client, code)


def test_hello_of_versions_1_to_9_is_served_in_version_1(broker, raw):
    client = raw(broker)
    client.send(client.open_stream(), w.hello(low=1, high=9))
    assert w.read_welcome(client.reply(0)).version == 1


ON_CONTROL = {
    "version": (w.frame(w.GET_STATS, 3, w.bytes16(""), version=2), "UnsupportedVersion"),
    "mandatory-tlv": (w.frame(w.GET_STATS, 3, w.bytes16(""), tlvs=w.tlv(0x777, b"x", True)), "UnknownMandatoryField"),
    "mandatory-flag": (w.frame(w.GET_STATS, 3, w.bytes16(""), flags=0x80), "UnknownMandatoryField"),
    "tlv-beyond-tlvs": (w.frame(w.GET_STATS, 3, w.bytes16(""), tlvs=b"\1\0\5\0ab"), "MalformedFrame"),
    "half-a-tlv": (w.frame(w.GET_STATS, 3, w.bytes16(""), tlvs=b"\1\0\0"), "MalformedFrame"),
    "tlv-bytes-beyond-frame": (w.frame(w.GET_STATS, 3, w.bytes16(""), tlv_bytes=100), "MalformedFrame"),
    "tlv-bytes-max": (w.frame(w.GET_STATS, 3, w.bytes16(""), tlvs=w.tlv(5, bytes(4093))), None),
    "too-large": (w.frame(w.GET_STATS, 3, frame_bytes=65_537), "FrameTooLarge"),
    "largest-length": (w.frame(w.GET_STATS, 3, frame_bytes=0xFFFF_FFFF), "FrameTooLarge"),
    "shorter-than-header": (w.frame(w.GET_STATS, 3, frame_bytes=15), "MalformedFrame"),
    "length-0": (w.frame(w.GET_STATS, 3, frame_bytes=0), "MalformedFrame"),
    "reserved": (w.frame(w.GET_STATS, 3, w.bytes16(""), reserved=1), "MalformedFrame"),
    "body-missing": (w.frame(w.GET_STATS, 3), "MalformedFrame"),
    "body-too-long": (w.frame(w.GET_STATS, 3, w.bytes16("") + b"x"), "MalformedFrame"),
    "unknown-type": (w.frame(99, 3), "UnexpectedFrame"),
    "type-0": (w.frame(0, 3), "UnexpectedFrame"),
    "type-255": (w.frame(255, 3), "UnexpectedFrame"),
    "hello-again": (w.hello(), "UnexpectedFrame"),
    "publish": (w.publish(w.batch_body([R(b"x")])), None),
    "open-channel": (w.open_channel("a/b/c"), "UnexpectedFrame"),
    "not-utf8": (w.frame(w.GET_ROUTE, 3, w.bytes16(b"\xff\xff")), "MalformedFrame"),
    "name-over-the-limit": (w.get_route(3, "a" * 513), "FrameTooLarge"),
    "subscribe-start-9": (w.subscribe(3, "a/b/c", start=9), "MalformedFrame"),
    "subscribe-policy-9": (w.subscribe(3, "a/b/c", policy=9), "MalformedFrame"),
    "subscribe-mode-9": (w.subscribe(3, "a/b/c", mode=9), "MalformedFrame"),
    "subscribe-filter-over-the-limit": (w.subscribe(3, "a/b/c", filter="x" * 257), "FrameTooLarge"),
    "subscribe-id-0": (w.subscribe(0, "a/b/c"), None),
    "request-id-0": (w.get_stats(0), None),
}
for kind in sorted(w.FROM_BROKER):
    ON_CONTROL[f"broker-frame-{kind}"] = (w.frame(kind, 3, bytes(60)), None)
ALSO = {"tlv-bytes-max": ("FrameTooLarge", "MalformedFrame"), "publish": ("NoChannel", "UnexpectedFrame"),
        "subscribe-id-0": ("MalformedFrame", "InvalidArgument"), "request-id-0": ("MalformedFrame", "InvalidArgument")}


@pytest.mark.parametrize("what", ON_CONTROL)
def test_bad_frames_on_the_control_stream(broker, good, connect, what):
    data, code = ON_CONTROL[what]
    codes = (code,) if code else ALSO.get(what, ("UnexpectedFrame", "MalformedFrame"))
    before = broker.metric("felix_protocol_errors_total")
    client = connect(broker)
    client.send(0, data)
    closed = client.wait_closed()
    assert closed[0] in [CODE[c] for c in codes], f"{closed}, one of {codes} wanted"
    broker.wait_metric("felix_protocol_errors_total", before + 1, client.loop)


def test_what_a_reader_must_skip(broker, connect):
    client = connect(broker)
    client.send(0, w.frame(w.GET_STATS, 5, w.bytes16(""), tlvs=w.tlv(0x777, b"whatever") + w.tlv(1, b"00-" + b"a" * 50) + w.tlv(9, b"")))
    client.reply(5)
    client.send(0, w.frame(w.GET_STATS, 6, w.bytes16(""), flags=0xFF00))
    client.reply(6)
    client.send(0, w.frame(w.GET_STATS, 7, w.bytes16(""), tlvs=w.tlv(5, bytes(4092))))
    client.reply(7)
    assert client.closed is None


def test_truncated_frame_and_fin_on_the_control_stream(broker, good, connect):
    client = connect(broker)
    client.send(0, w.get_stats(3)[:10], fin=True)
    closes(client, "MalformedFrame")


def test_end_of_the_control_stream_ends_the_connection(broker, good, connect):
    client = connect(broker)
    client.send(0, b"", fin=True)
    client.wait_closed()
    client = connect(broker)
    client.quic.reset_stream(0, 7)
    client.flush()
    client.wait_closed()
    client = connect(broker)
    client.quic.stop_stream(0, 7)
    client.flush()
    client.send(0, w.get_stats(3))
    client.loop.idle(0.2)


def test_single_bytes(any_broker, connect, stream):
    """Valid frames, one byte in each STREAM frame and datagram."""
    client = connect(any_broker)
    s = stream(client)
    for byte in w.get_route(9, s):
        client.send(0, bytes([byte]))
    assert w.read_route(client.reply(9)).stream_id
    for core in range(any_broker.cores):
        other = connect(any_broker, core)
        channel = other.raw_channel()
        for byte in w.open_channel(s) + w.publish(w.batch_body([R(b"slow", key=b"k")])):
            channel.send(bytes([byte]))
        assert channel.acked(1) == [core]
    sub = client.subscribe(s)
    assert [r.value for r in sub.until(any_broker.cores)] == [b"slow"] * any_broker.cores


def test_truncated_frame_and_fin_on_a_channel(broker, good, connect, stream):
    for cut in (1, 15, 16, 40):
        client = connect(broker)
        s = stream(client)
        channel = client.channel(s)
        channel.send(w.publish(w.batch_body([R(b"x")]))[:cut], fin=True)
        closes(client, "MalformedFrame")


def test_channels_misused(broker, good, connect, stream):
    first = connect(broker)
    s = stream(first)
    cases = [(w.publish(w.batch_body([R(b"x")])), ("NoChannel",)), (w.get_stats(4), ("UnexpectedFrame",)),
             (w.hello(), ("UnexpectedFrame",)), (w.open_channel(s) * 2, ("UnexpectedFrame",)),
             (w.open_channel(s) + w.get_stats(4), ("UnexpectedFrame",)), (w.open_channel(s, flags=4), ("MalformedFrame",)),
             (w.open_channel(s) + w.frame(w.PUBLISH, 0, frame_bytes=1_048_577), ("FrameTooLarge",)),
             (w.open_channel(s) + w.frame(w.PUBLISH_ACK, 0, bytes(23)), ("UnexpectedFrame", "MalformedFrame")),
             (w.open_channel(s, producer_epoch=1), ("MalformedFrame",)),
             (w.open_channel(s) + w.frame(w.PUBLISH, 0, w.batch_body([R(b"x")]), flags=2), ("UnknownMandatoryField",)),
             (w.open_channel(s) + b"\xff" * 16, ("UnsupportedVersion",))]
    for data, codes in cases:
        client = connect(broker)
        channel = client.raw_channel()
        channel.send(data)
        closed = client.wait_closed(what=f"close for {data[:40].hex()}")
        assert closed[0] in [CODE[c] for c in codes], f"{closed}, {codes} wanted for {data[:40].hex()}"


def test_routed_frames_of_a_client(broker, good, connect, stream):
    """Clients do not set ROUTED; a reader still finds the body."""
    client = connect(broker)
    client.send(0, w.frame(w.GET_STATS, 3, w.bytes16(""), flags=1, route=struct.pack("<QQ", 1, 1)))
    client.loop.wait(lambda: client.closed or client.control, 5, "answer")
    assert client.closed is None or client.closed[0] in w.CODE_NAMES


def test_client_unidirectional_stream(broker, good, connect):
    client = connect(broker)
    allowed = client.quic._remote_max_streams_uni
    client.quic._remote_max_streams_uni = max(allowed, 10)
    client.quic._remote_max_stream_data_uni = 1000
    client.send(client.quic.get_next_available_stream_id(is_unidirectional=True), w.get_stats(3))
    # Either the transport never lets it (STREAM_LIMIT_ERROR) or Felix refuses it.
    assert client.wait_closed()[0] in (CODE["UnexpectedFrame"], 0x4)


def test_client_datagram(broker, good, connect):
    client = connect(broker)
    client.quic.send_datagram_frame(w.get_stats(3))
    client.flush()
    assert client.wait_closed()[0] in (CODE["UnexpectedFrame"], 0xA)


def test_no_hello(broker, good, raw):
    """Two connections that never greet: one silent, one that sends half a Hello. Both go after 5 s."""
    before = broker.metric("felix_hello_timeouts_total")
    silent, half = raw(broker, 0), raw(broker, 1)
    half.send(half.open_stream(), w.hello()[:20])
    begin = time.time()
    silent.loop.idle(4.0)
    assert silent.closed is None and half.closed is None
    for client in (silent, half):
        assert client.wait_closed(4.0)[0] == CODE["HandshakeRequired"]
    assert time.time() - begin < 8
    broker.wait_metric("felix_hello_timeouts_total", before + 2, silent.loop)


def test_channels_before_hello_are_served_after_it(broker, connect, raw, stream):
    s = stream(connect(broker))
    client = raw(broker)
    control, channel = client.open_stream(), client.raw_channel()
    channel.send(w.open_channel(s) + w.publish(w.batch_body([R(b"early")])))
    client.loop.idle(0.1)
    assert client.closed is None and channel.opened is None
    client.send(control, w.hello())
    client.reply(0)
    assert channel.acked(1) == [0]


def test_more_channels_than_allowed(broker, good, connect, stream):
    client = connect(broker)
    s = stream(client)
    most = client.welcome.channels_max
    channels = []
    for i in range(most):
        channels.append(client.channel(s, wait=False))
        if i % 64 == 63:
            channels[-1].wait_open()
    for channel in channels:
        channel.wait_open()
    over = client.quic.get_next_available_stream_id()
    if client.quic._remote_max_streams_bidi * 4 > over:
        extra = client.channel(s, wait=False)
        client.wait(lambda: extra.reset is not None or extra.error, 5, "TooMany")
        assert (extra.reset or extra.error.code) == CODE["TooMany"]
    else:
        extra = client.channel(s, wait=False)       # the transport holds it back
        client.loop.idle(0.2)
        assert extra.opened is None and client.closed is None
    for channel in channels[:100]:
        channel.send(b"", fin=True)
    client.wait(lambda: all(c.ended for c in channels[:100]), 5, "end of 100 channels")
    again = client.channel(s, wait=False)
    again.wait_open()
    again.publish(w.batch_body([R(b"x")]))
    again.acked(1)


@pytest.mark.parametrize("how", ["at once", "after open", "before the answer", "stop too"])
def test_reset_storms(broker, good, connect, stream, how):
    """Thousands of channels opened and reset: streams come back, memory does not grow."""
    client = connect(broker)
    s = stream(client)
    rounds, size = 8, 400
    memory = 0
    for turn in range(rounds):
        channels = [client.raw_channel() for _ in range(size)]
        for channel in channels:
            if how != "at once":
                client.quic.send_stream_data(channel.id, w.open_channel(s) + w.publish(w.batch_body([R(b"x")])))
        if how == "after open":
            client.flush()
            client.wait(lambda: all(c.offsets for c in channels), 10, "acks")
        elif how != "at once":
            client.flush()
        for channel in channels:
            client.quic.reset_stream(channel.id, 9)
            if how == "stop too":
                client.quic.stop_stream(channel.id, 9)
        client.flush()
        client.wait(lambda: client.quic._remote_max_streams_bidi * 4 > client.quic.get_next_available_stream_id() + 4 * size, 10,
                    f"streams to come back (round {turn})")
        client.stats()
        if turn == 2:
            memory = broker.rss()
    assert broker.rss() - memory < 16 << 20
    channel = client.channel(s)
    channel.publish(w.batch_body([R(b"last")]))
    channel.acked(1)


def test_connection_storm(broker, good, raw, loop):
    """Connections that come and go without a word."""
    for _ in range(5):
        clients = [raw(broker, handshake=False) for _ in range(20)]
        loop.wait(lambda: all(c.tls_done for c in clients), 10, "handshakes")
        for i, client in enumerate(clients):
            client.close() if i % 2 else client.drop()


def test_garbage_initials(broker, good, loop):
    """Spoofed first packets: the answer is at most three times what came, memory stays, others are served."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    chance = random.Random(1)
    before, sent, got = broker.rss(), 0, 0

    def drain():
        nonlocal got
        while True:
            try:
                got += len(sock.recv(65_536))
            except BlockingIOError:
                return

    def initial(size, version=1, dcid=None, token=b""):
        dcid = chance.randbytes(16) if dcid is None else dcid
        head = bytes([0xC0 | chance.randrange(16)]) + struct.pack(">I", version) + bytes([len(dcid)]) + dcid + b"\x08" \
            + chance.randbytes(8) + bytes([len(token)]) + token
        body = size - len(head) - 2
        return head + struct.pack(">H", 0x4000 | body) + chance.randbytes(body)

    kinds = [lambda: initial(1200), lambda: initial(1200, version=0x0A0A_0A0A), lambda: initial(300, version=0x0A0A_0A0A),
             lambda: initial(1200, dcid=b""), lambda: initial(1200, token=chance.randbytes(60)), lambda: initial(100),
             lambda: chance.randbytes(chance.randrange(1, 1400)), lambda: b"\x40" + chance.randbytes(60), lambda: b"\x40",
             lambda: b"\xc0\0\0\0\1\xff" + chance.randbytes(1194), lambda: b"\xf0" + chance.randbytes(1199)]
    for i in range(6000):
        packet = kinds[i % len(kinds)]()
        try:
            sock.sendto(packet, broker.address)
            sent += len(packet)
        except BlockingIOError:
            pass
        if i % 100 == 99:
            drain()
            loop.idle(0.002)
        if i % 1500 == 1499:
            for client, _, _, _ in good:
                client.stats()
    loop.idle(0.3)
    drain()
    assert got <= 3 * sent, f"{got} bytes for {sent}"
    assert broker.rss() - before < 32 << 20


def real_initial():
    """A genuine ClientHello that nobody follows up: what a spoofer records."""
    from aioquic.quic.configuration import QuicConfiguration
    from aioquic.quic.connection import QuicConnection
    quic = QuicConnection(configuration=QuicConfiguration(is_client=True, alpn_protocols=[w.ALPN], server_name="127.0.0.1"))
    quic.connect(("127.0.0.1", 1), now=time.time())
    return quic.datagrams_to_send(now=time.time())[0][0]


def test_spoofed_initials(broker, good, loop):
    """Valid Initials whose sender never answers: at most three times their bytes come back, whatever is retransmitted."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    before, sent, got = broker.rss(), 0, 0

    def drain():
        nonlocal got
        while True:
            try:
                got += len(sock.recv(65_536))
            except BlockingIOError:
                return
    for i in range(1500):
        packet = real_initial()
        sock.sendto(packet, broker.address)
        sent += len(packet)
        if i % 20 == 19:
            drain()
            loop.step(0.001)
    loop.idle(1.5)
    drain()
    assert got <= 3 * sent, f"{got} bytes for {sent}"
    assert broker.rss() - before < 64 << 20


def test_amplification_of_one_address(start, loop):
    """One Initial, no answer: everything the broker ever sends to that address is at most three times it."""
    broker = start(2)
    for _ in range(3):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(0.7)
        packet = real_initial()
        sock.sendto(packet, broker.address)
        got, end = 0, time.time() + 1.2
        while time.time() < end:
            try:
                got += len(sock.recv(65_536))
            except TimeoutError:
                break
        assert 0 < got <= 3 * len(packet), f"{got} bytes for {len(packet)}"
