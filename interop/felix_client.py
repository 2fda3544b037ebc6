"""A Felix client on aioquic: one thread, no asyncio.

A Loop owns the sockets of any number of Clients and moves all of them whenever a test waits for something, so a test that waits for one
connection keeps the others alive. Nothing retries: what the broker does is what the test sees.

The Destination Connection ID of the first Initial is chosen by overwriting the random one that QuicConnection made (`_peer_cid`) before
`connect()`; aioquic compares it with original_destination_connection_id later, so that field is set too.
"""

import os
import selectors
import socket
import time
import tomllib
from collections import deque

from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

import felix_wire as w


class Refused(Exception):
    """The broker answered with an Error frame."""

    def __init__(self, error):
        self.code, self.name, self.detail = error.code, w.CODE_NAMES.get(error.code, str(error.code)), error.detail
        super().__init__(f"{self.name}: {error.detail}")


class Closed(Exception):
    """The connection is gone."""


class Loop:
    def __init__(self):
        self.selector, self.clients = selectors.DefaultSelector(), []

    def add(self, client):
        self.clients.append(client)
        self.selector.register(client.socket, selectors.EVENT_READ, client)

    def remove(self, client):
        if client in self.clients:
            self.clients.remove(client)
            self.selector.unregister(client.socket)
            client.socket.close()

    def step(self, timeout):
        now = time.time()
        timers = [t for c in self.clients if not c.paused and (t := c.quic.get_timer()) is not None]
        for key, _ in self.selector.select(max(0.0, min([timeout] + [t - now for t in timers]))):
            if not key.data.paused:
                key.data.receive()
        if any(c.paused for c in self.clients):
            time.sleep(0.001)
        for client in list(self.clients):
            if not client.paused:
                client.tick()

    def wait(self, ready, timeout=5.0, what="condition"):
        """Moves every client until `ready()` is true, and returns what it said."""
        end = time.time() + timeout
        while True:
            value = ready()
            if value:
                return value
            left = end - time.time()
            if left <= 0:
                raise TimeoutError(f"no {what} within {timeout} s")
            self.step(min(left, 0.05))

    def idle(self, seconds):
        end = time.time() + seconds
        while (left := end - time.time()) > 0:
            self.step(min(left, 0.05))


class Channel:
    """One publish channel. `answers` are PublishAck, PublishRefused and Error frames as they came."""

    def __init__(self, client, stream_id):
        self.client, self.id = client, stream_id
        self.frames, self.inbox, self.ended, self.reset = w.Frames(), deque(), False, None
        self.opened, self.offsets, self.refused, self.error = None, [], [], None

    def send(self, data, fin=False):
        self.client.send(self.id, data, fin)

    def feed(self, frame):
        if frame.type == w.CHANNEL_OPENED:
            self.opened = w.read_channel_opened(frame)
        elif frame.type == w.PUBLISH_ACK:
            ack = w.read_publish_ack(frame)
            self.last_ack = ack
            self.offsets += ack.base_offsets
        elif frame.type == w.PUBLISH_REFUSED:
            self.refused.append(w.read_publish_refused(frame))
        elif frame.type == w.ERROR:
            self.error = w.read_error(frame)
        else:
            raise w.WireError(f"{frame!r} on a channel")

    def wait_open(self, timeout=5.0):
        self.client.wait(lambda: self.opened or self.error or self.reset is not None, timeout, "ChannelOpened")
        if self.error:
            raise Refused(self.error)
        if self.opened is None:
            raise Closed(f"channel reset with {self.reset}")
        return self.opened

    def publish(self, body):
        self.send(w.publish(body))

    def acked(self, count, timeout=5.0):
        """The offsets of all batches acknowledged so far, at least `count`."""
        refused = len(self.refused)
        self.client.wait(lambda: len(self.offsets) >= count or self.error or len(self.refused) > refused, timeout, f"{count} acks")
        assert len(self.offsets) >= count, f"{len(self.offsets)} acks, refused {self.refused}, error {self.error}"
        return self.offsets

    def refusal(self, count=1, timeout=5.0):
        self.client.wait(lambda: len(self.refused) >= count or self.error, timeout, f"{count} refusals")
        assert len(self.refused) >= count, f"error {self.error}"
        return self.refused[count - 1]


class Subscription:
    """Checks what holds for every subscription (6.3) while deliveries come in."""

    def __init__(self, client, id_, lossy):
        self.client, self.id, self.lossy = client, id_, lossy
        self.subscribed = self.error = self.closed = None
        self.deliveries, self.bytes, self.stream_bytes, self.streams = [], 0, 0, set()

    def feed(self, frame, via):
        assert self.closed is None, f"{frame!r} after SubscriptionClosed"
        self.streams.add(via)
        if frame.type == w.SUBSCRIPTION_CLOSED:
            assert via != "datagram"
            self.closed = w.read_subscription_closed(frame)
            return
        d = w.read_deliver(frame)
        if not self.lossy:
            assert d.number == len(self.deliveries), f"number {d.number}, {len(self.deliveries)} wanted"
            if self.deliveries:
                assert d.covered_from == self.deliveries[-1].covered_to, "covered ranges with a hole"
        self.deliveries.append(d)
        self.bytes += frame.size
        self.stream_bytes += frame.size if via != "datagram" else 0     # what credit counts

    def check_start(self):
        if self.deliveries and self.subscribed and not self.lossy:
            assert self.deliveries[0].covered_from == self.subscribed.start, "the first covered range begins elsewhere than Subscribed"

    @property
    def records(self):
        self.check_start()
        return [r for d in self.deliveries if d.batch for r in d.batch.body.records
                if d.covered_from <= r.offset < d.covered_to and not r.skipped]

    @property
    def covered_to(self):
        return self.deliveries[-1].covered_to if self.deliveries else -1

    @property
    def gaps(self):
        return [(d.covered_from, d.covered_to) for d in self.deliveries if d.kind == w.GAP]

    def until(self, offset, timeout=5.0):
        self.client.wait(lambda: self.covered_to >= offset or self.closed, timeout, f"offset {offset} on subscription {self.id}")
        assert self.covered_to >= offset, f"closed: {self.closed}"
        return self.records

    def wait_closed(self, timeout=5.0):
        return self.client.wait(lambda: self.closed, timeout, f"SubscriptionClosed of {self.id}")


class Client:
    def __init__(self, loop, context, *, core=None, cores=None, alpn=w.ALPN, certificate=True, datagrams=65_535, max_data=16 << 20,
                 max_stream_data=4 << 20, source=None, idle_timeout=60.0):
        with open(context, "rb") as file:
            context = tomllib.load(file)
        host, port = context["server"].rsplit(":", 1)
        config = QuicConfiguration(is_client=True, alpn_protocols=[alpn], server_name=host, max_datagram_frame_size=datagrams,
                                   connection_id_length=8, max_data=max_data, max_stream_data=max_stream_data,
                                   idle_timeout=idle_timeout)
        config.load_verify_locations(cafile=context["ca"])
        if certificate:
            config.load_cert_chain(context["cert"], context["key"])
        self.loop, self.address, self.paused = loop, (host, int(port)), False
        self.quic = QuicConnection(configuration=config)
        cid = bytearray(os.urandom(16))
        if core is not None:
            cid[0] = core + cores * (cid[0] % (256 // cores))
        self.quic._peer_cid.cid = bytes(cid)
        self.quic._original_destination_connection_id = bytes(cid)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.socket.bind(source or ("127.0.0.1", 0))
        self.socket.connect(self.address)
        self.socket.setblocking(False)
        self.sent_datagrams = 0
        self.closed = self.tls_done = None
        self.stateless_reset = False
        self.control, self.control_frames = deque(), w.Frames()
        self.control_reset = None
        self.channels, self.deliveries, self.subscriptions = {}, {}, {}
        self.early = {}                                 # deliveries that came before Subscribed was asked for: none, ever
        self.goaway, self.welcome = None, None
        self.ended_streams = set()
        self.delivery_bytes = 0
        self.next_id = 1
        self.held = False
        loop.add(self)
        self.quic.connect(self.address, now=time.time())
        self.flush()

    # --- moving bytes

    def receive(self):
        for _ in range(64):
            try:
                data = self.socket.recv(65_536)
            except BlockingIOError:
                break
            except ConnectionRefusedError:
                continue
            tokens = {c.stateless_reset_token for c in [self.quic._peer_cid, *self.quic._peer_cid_available]}
            if len(data) >= 21 and data[-16:] in tokens and data[0] & 0xC0 == 0x40:
                self.stateless_reset = True
                self.closed = self.closed or (None, "stateless reset")
                return
            self.quic.receive_datagram(data, self.address, now=time.time())
        self.tick()

    def tick(self):
        now = time.time()
        timer = self.quic.get_timer()
        if timer is not None and timer <= now:
            self.quic.handle_timer(now)
        while (event := self.quic.next_event()) is not None:
            self.event(event)
        self.flush()

    def flush(self):
        if self.stateless_reset:
            return
        for data, _ in self.quic.datagrams_to_send(now=time.time()):
            try:
                self.socket.send(data)
                self.sent_datagrams += 1
            except (ConnectionRefusedError, BlockingIOError):
                pass

    def event(self, event):
        if isinstance(event, events.HandshakeCompleted):
            self.tls_done = event.alpn_protocol
        elif isinstance(event, events.ConnectionTerminated):
            self.closed = self.closed or (event.error_code, event.reason_phrase)
        elif isinstance(event, events.StreamReset):
            if event.stream_id == 0:
                self.control_reset = event.error_code
            elif event.stream_id in self.channels:
                self.channels[event.stream_id].reset = event.error_code
        elif isinstance(event, events.DatagramFrameReceived):
            self.delivered(w.one_frame(event.data), "datagram")
        elif isinstance(event, events.StreamDataReceived):
            self.stream_data(event.stream_id, event.data, event.end_stream)

    def stream_data(self, stream_id, data, end):
        if stream_id == 0:
            for frame in self.control_frames.feed(data):
                self.control_frame(frame)
        elif stream_id % 4 == 0:
            channel = self.channels[stream_id]
            for frame in channel.frames.feed(data):
                channel.feed(frame)
            channel.ended |= end
        else:
            assert stream_id % 4 == 3, f"stream {stream_id} from the broker"
            for frame in self.deliveries.setdefault(stream_id, w.Frames()).feed(data):
                self.delivered(frame, stream_id)
        if end:
            self.ended_streams.add(stream_id)

    def control_frame(self, frame):
        if frame.type == w.GOAWAY:
            self.goaway = w.read_goaway(frame)
        elif frame.type == w.ROUTE_CHANGED:
            pass
        elif frame.request_id in self.subscriptions and frame.type == w.SUBSCRIBED:
            sub = self.subscriptions[frame.request_id]
            assert sub.subscribed is None, "Subscribed twice"
            sub.subscribed = w.read_subscribed(frame)
        elif frame.request_id in self.subscriptions and frame.type == w.ERROR and not self.subscriptions[frame.request_id].subscribed:
            self.subscriptions[frame.request_id].error = w.read_error(frame)
        else:
            self.control.append(frame)

    def delivered(self, frame, via):
        assert frame.type in (w.DELIVER, w.SUBSCRIPTION_CLOSED), f"{frame!r} on a delivery stream"
        self.delivery_bytes += frame.size
        self.subscriptions[frame.request_id].feed(frame, via)

    def wait(self, ready, timeout=5.0, what="condition"):
        value = self.loop.wait(lambda: ready() or self.closed, timeout, what)
        value = ready()
        if not value:
            raise Closed(f"{self.closed} while waiting for {what}; control: {list(self.control)}")
        return value

    def wait_closed(self, timeout=5.0, what="close of the connection"):
        self.loop.wait(lambda: self.closed, timeout, what)
        return self.closed

    def hold_flow_control(self):
        """From now on no more flow control credit is given to the broker: what a client does that stops reading."""
        self.quic._write_stream_limits = lambda **_: None
        self.quic._write_connection_limits = lambda **_: None
        self.held = True

    def release_flow_control(self):
        del self.quic._write_stream_limits
        del self.quic._write_connection_limits
        self.held = False

    def send(self, stream_id, data, fin=False):
        self.quic.send_stream_data(stream_id, data, fin)
        self.flush()

    def close(self):
        if self.closed is None:
            self.quic.close(error_code=0)
            self.flush()
        self.loop.remove(self)

    def drop(self):
        """Gone without a word."""
        self.loop.remove(self)

    # --- the protocol

    def id(self):
        self.next_id += 1
        return self.next_id

    def connect(self, timeout=5.0, **hello):
        """Handshake and Hello; the Welcome."""
        self.wait(lambda: self.tls_done, timeout, "TLS handshake")
        self.send(self.open_stream(), w.hello(**hello))
        frame = self.reply(0, timeout)
        self.welcome = w.read_welcome(frame)
        return self

    def open_stream(self):
        stream_id = self.quic.get_next_available_stream_id()
        if stream_id:
            self.channels[stream_id] = Channel(self, stream_id)
        self.quic.send_stream_data(stream_id, b"")
        return stream_id

    def reply(self, request_id, timeout=5.0):
        """The answer to a request; raises Refused if it is an Error."""
        frame = self.wait(lambda: next((f for f in self.control if f.request_id == request_id), None), timeout,
                          f"answer to request {request_id}")
        self.control.remove(frame)
        if frame.type == w.ERROR:
            raise Refused(w.read_error(frame))
        return frame

    def request(self, make, timeout=5.0):
        """`make(request_id)` makes the frame."""
        request_id = self.id()
        self.send(0, make(request_id))
        return self.reply(request_id, timeout)

    def admin(self, command, key=None):
        return w.read_admin_reply(self.request(lambda id_: w.admin(id_, command, key)))

    def route(self, stream):
        return w.read_route(self.request(lambda id_: w.get_route(id_, stream)))

    def producer(self):
        return w.read_producer(self.request(w.get_producer))

    def stats(self, after=""):
        return w.read_stats(self.request(lambda id_: w.get_stats(id_, after)))

    def stats_of(self, stream):
        after = ""
        while True:
            page = self.stats(after)
            if stream in page.rows or not page.more:
                return page.rows.get(stream)
            after = max(page.rows)

    def raw_channel(self):
        return self.channels[self.open_stream()]

    def channel(self, stream, shard=0, wait=True, **options):
        channel = self.raw_channel()
        channel.send(w.open_channel(stream, shard, **options))
        if wait:
            channel.wait_open()
        return channel

    def subscribe(self, stream, shard=0, wait=True, id=None, **options):
        id = id or self.id()
        lossy = options.get("mode", 0) >= w.DATAGRAM_OR_STREAM
        sub = self.subscriptions[id] = Subscription(self, id, lossy)
        self.send(0, w.subscribe(id, stream, shard, **options))
        if wait:
            self.wait(lambda: sub.subscribed or sub.error, 5.0, f"answer to Subscribe {id}")
            if sub.error:
                raise Refused(sub.error)
        return sub

    def credit(self, subscription, total):
        self.send(0, w.credit(subscription.id, total))

    def unsubscribe(self, subscription):
        self.send(0, w.unsubscribe(subscription.id))
