"""The Felix wire format, version 1, written from PROTOCOL.md alone (section numbers are that page's).

Nothing here opens a socket: bytes in, values out. Everything a peer sent is checked as sections 3.5 and 5.7 tell a reader to; what
breaks a rule raises WireError.
"""

import os
import struct
from dataclasses import dataclass, field
from types import SimpleNamespace

import google_crc32c
import xxhash

ALPN = "felix/1"
VERSION = 1
ENVELOPE_BYTES = 16
FRAME_BYTES_MAX = 1_048_576
CONTROL_FRAME_BYTES_MAX = 65_536
TLV_BYTES_MAX = 4096
KEY_HASH_SEED = 0x0046_454C_4958_0001
ROUTED = 1

# 3.4: frame types
HELLO, WELCOME, ERROR, GOAWAY = 1, 2, 3, 4
GET_ROUTE, ROUTE, ROUTE_CHANGED = 10, 11, 12
OPEN_CHANNEL, CHANNEL_OPENED, PUBLISH, PUBLISH_ACK, PUBLISH_REFUSED, GET_PRODUCER, PRODUCER = 20, 21, 22, 23, 24, 25, 26
SUBSCRIBE, SUBSCRIBED, DELIVER, CREDIT, UNSUBSCRIBE, SUBSCRIPTION_CLOSED = 30, 31, 32, 33, 34, 35
ADMIN, ADMIN_REPLY, GET_STATS, STATS = 40, 41, 42, 43
FROM_BROKER = {WELCOME, ERROR, GOAWAY, ROUTE, ROUTE_CHANGED, CHANNEL_OPENED, PUBLISH_ACK, PUBLISH_REFUSED, PRODUCER, SUBSCRIBED,
               DELIVER, SUBSCRIPTION_CLOSED, ADMIN_REPLY, STATS}
FROM_CLIENT = {HELLO, GET_ROUTE, OPEN_CHANNEL, PUBLISH, GET_PRODUCER, SUBSCRIBE, CREDIT, UNSUBSCRIBE, ADMIN, GET_STATS}

# 9: error codes
CODES = {
    "NoError": 0, "MalformedFrame": 1, "FrameTooLarge": 2, "UnsupportedVersion": 3, "UnknownMandatoryField": 4, "UnexpectedFrame": 5,
    "HandshakeRequired": 6, "Unauthenticated": 7, "PermissionDenied": 8, "WrongCluster": 9, "Draining": 10, "Overloaded": 11,
    "TooMany": 12, "CreditExceeded": 13, "Internal": 14, "InvalidName": 20, "InvalidArgument": 21, "NotFound": 22,
    "AlreadyExists": 23, "NotEmpty": 24, "VersionMismatch": 25, "NotSupported": 26, "QuotaExceeded": 27, "NotOwner": 30,
    "StreamGone": 31, "NoChannel": 32, "CorruptBatch": 33, "InvalidBatch": 34, "WrongShard": 35, "SequenceGap": 36,
    "DuplicateMismatch": 37, "UnknownProducer": 38, "ProducerFenced": 39, "OffsetTooOld": 50, "OffsetInFuture": 51,
    "LineageReset": 52, "SlowConsumer": 53, "UnknownSubscription": 54, "SubscriptionInUse": 55, "InvalidPattern": 56,
}
CODE_NAMES = {number: name for name, number in CODES.items()}

DATAGRAM, COMPRESSION, PRODUCERS = 1, 2, 4
EARLIEST, LATEST, POSITION, TIME = 0, 1, 2, 3
BLOCK, DROP_OLDEST, DISCONNECT = 0, 1, 2
SHARED, OWN, DATAGRAM_OR_STREAM, DATAGRAM_OR_GAP = 0, 1, 2, 3
ACKS, KEYED = 1, 2
BATCH, GAP, PROGRESS = 0, 1, 2


class WireError(Exception):
    """The broker sent bytes that PROTOCOL.md does not allow."""


def need(condition, what):
    if not condition:
        raise WireError(what)


# --- 2. Conventions ---------------------------------------------------------------------------------------------------------------


def varint(value):
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def bytes16(value):
    if isinstance(value, str):
        value = value.encode()
    return struct.pack("<H", len(value)) + value


def option(value, encode):
    return b"\0" if value is None else b"\1" + encode(value)


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        need(self.at + n <= len(self.data), f"{n} bytes wanted, {len(self.data) - self.at} left")
        piece = self.data[self.at:self.at + n]
        self.at += n
        return piece

    def number(self, n):
        return int.from_bytes(self.take(n), "little")

    def u8(self): return self.number(1)
    def u16(self): return self.number(2)
    def u32(self): return self.number(4)
    def u64(self): return self.number(8)
    def u128(self): return self.number(16)

    def boolean(self):
        value = self.u8()
        need(value in (0, 1), f"bool {value}")
        return bool(value)

    def varint(self):
        value = shift = 0
        while True:
            byte = self.u8()
            value |= (byte & 0x7F) << shift
            if not byte & 0x80:
                need(byte != 0 or shift == 0, "overlong varint")
                need(value < 1 << 64, "varint above 64 bits")
                return value
            shift += 7
            need(shift < 70, "varint of more than 10 bytes")

    def bytes16(self): return self.take(self.u16())
    def text16(self): return self.bytes16().decode("utf-8")

    def rest(self):
        return self.take(len(self.data) - self.at)

    def end(self):
        need(self.at == len(self.data), f"{len(self.data) - self.at} bytes left over")


# --- 3. Envelope ------------------------------------------------------------------------------------------------------------------


@dataclass
class Frame:
    type: int
    request_id: int
    body: bytes
    size: int
    tlvs: list = field(default_factory=list)

    def __repr__(self):
        extra = ""
        if self.type == ERROR:
            error = read_error(self)
            extra = f" {CODE_NAMES.get(error.code)} {error.detail!r}"
        return f"<frame {self.type} id {self.request_id} of {self.size}{extra}>"


def tlv(kind, value, mandatory=False):
    return struct.pack("<HH", kind | (0x8000 if mandatory else 0), len(value)) + value


def frame(kind, request_id=0, body=b"", *, version=VERSION, flags=0, tlvs=b"", tlv_bytes=None, reserved=0, frame_bytes=None, route=b""):
    """One frame. The keyword arguments exist to lie with."""
    size = ENVELOPE_BYTES + len(route) + len(tlvs) + len(body) if frame_bytes is None else frame_bytes
    head = struct.pack("<IBBHIHH", size, version, kind, flags, request_id, len(tlvs) if tlv_bytes is None else tlv_bytes, reserved)
    return head + route + tlvs + body


def read_tlvs(data, known=()):
    reader, out = Reader(data), []
    while reader.at < len(data):
        kind, value = reader.u16(), reader.bytes16()
        need(not kind & 0x8000 or kind & 0x7FFF in known, f"unknown mandatory TLV {kind:#x}")
        out.append((kind & 0x7FFF, value))
    return out


class Frames:
    """Cuts a QUIC stream from the broker into frames."""

    def __init__(self):
        self.buffer = bytearray()

    def feed(self, data):
        self.buffer += data
        out = []
        while len(self.buffer) >= ENVELOPE_BYTES:
            size, version, kind, flags, request_id, tlv_bytes, reserved = struct.unpack_from("<IBBHIHH", self.buffer)
            need(version == VERSION, f"version {version}")
            need(kind in FROM_BROKER, f"type {kind} from a broker")
            need(size <= (FRAME_BYTES_MAX if kind == DELIVER else CONTROL_FRAME_BYTES_MAX), f"frame of {size} bytes")
            need(size >= ENVELOPE_BYTES, f"frame of {size} bytes")
            need(reserved == 0, "reserved field")
            need(flags & 0xFE == 0, f"unknown mandatory flags {flags:#x}")
            if len(self.buffer) < size:
                break
            at = ENVELOPE_BYTES + (16 if flags & ROUTED else 0)
            need(tlv_bytes <= TLV_BYTES_MAX and at + tlv_bytes <= size, "tlv_bytes")
            tlvs = read_tlvs(bytes(self.buffer[at:at + tlv_bytes]))
            out.append(Frame(kind, request_id, bytes(self.buffer[at + tlv_bytes:size]), size, tlvs))
            del self.buffer[:size]
        return out


def one_frame(data):
    frames = Frames()
    out = frames.feed(data)
    need(len(out) == 1 and not frames.buffer, "a datagram is exactly one frame")
    return out[0]


# --- 4. Frames: what a client sends -----------------------------------------------------------------------------------------------


def hello(request_id=0, *, low=1, high=1, features=DATAGRAM | COMPRESSION | PRODUCERS, cluster=0, name="interop", token=b"",
          reserved=0, **envelope):
    body = struct.pack("<BBHQ", low, high, reserved, features) + cluster.to_bytes(16, "little") + bytes16(name) + bytes16(token)
    return frame(HELLO, request_id, body, **envelope)


def get_route(request_id, stream): return frame(GET_ROUTE, request_id, bytes16(stream))
def get_producer(request_id): return frame(GET_PRODUCER, request_id)
def get_stats(request_id, after=""): return frame(GET_STATS, request_id, bytes16(after))
def credit(subscription, total): return frame(CREDIT, subscription, struct.pack("<Q", total))
def unsubscribe(subscription): return frame(UNSUBSCRIBE, subscription)
def publish(body): return frame(PUBLISH, 0, body)


def open_channel(stream, shard=0, *, request_id=0, stream_id=0, flags=ACKS, producer_id=0, producer_epoch=0, **envelope):
    body = bytes16(stream) + struct.pack("<QIBQI", stream_id, shard, flags, producer_id, producer_epoch)
    return frame(OPEN_CHANNEL, request_id, body, **envelope)


def subscribe(subscription, stream, shard=0, *, stream_id=0, start=EARLIEST, lineage=0, value=0, policy=BLOCK, mode=SHARED, credit=None,
              filter=""):
    body = bytes16(stream) + struct.pack("<QIBIQBBBQ", stream_id, shard, start, lineage, value, policy, mode, credit is not None,
                                         credit or 0) + bytes16(filter)
    return frame(SUBSCRIBE, subscription, body)


def admin(request_id, command, key=None):
    """`key` None: a fresh idempotency key. Reads have key 0."""
    key = int.from_bytes(os.urandom(16), "little") if key is None else key
    return frame(ADMIN, request_id, key.to_bytes(16, "little") + command)


# --- 4. Frames: what a broker sends -----------------------------------------------------------------------------------------------


def _read(frame_, kind, reader_of):
    if frame_.type != kind:
        raise WireError(f"frame {kind} wanted, got {frame_!r}")
    reader = Reader(frame_.body)
    value = reader_of(reader)
    reader.end()
    return value


def read_welcome(f):
    def body(r):
        w = SimpleNamespace(version=r.u8(), core=r.u8(), core_count=r.u8(), reserved=r.u8(), features=r.u64(), cluster=r.u128(),
                            node=r.u128(), session=r.u64(), routing_version=r.u64(), time=r.u64(), channels_max=r.u32(),
                            subscriptions_max=r.u32(), requests_max=r.u32(), region=r.text16(), principal=r.text16())
        need(w.version == 1 and w.reserved == 0 and w.core < w.core_count <= 64, f"welcome {w}")
        return w
    return _read(f, WELCOME, body)


def read_error(f):
    return _read(f, ERROR, lambda r: SimpleNamespace(code=r.u16(), retry_after_ms=r.u32(), detail=r.text16()))


def read_goaway(f):
    return _read(f, GOAWAY, lambda r: SimpleNamespace(code=r.u16(), drain_ms=r.u32(), detail=r.text16()))


def read_route(f):
    def body(r):
        route = SimpleNamespace(routing_version=r.u64(), stream_id=r.u64(), batch_bytes_max=r.u32(), shards=[])
        for _ in range(r.u32()):
            route.shards.append(SimpleNamespace(shard_id=r.u64(), range_start=r.u64(), core=r.u8(), epoch=r.u64(), lineage=r.u32()))
        starts = [s.range_start for s in route.shards]
        need(starts and starts[0] == 0 and starts == sorted(set(starts)), f"ranges {starts}")
        return route
    return _read(f, ROUTE, body)


def read_channel_opened(f):
    return _read(f, CHANNEL_OPENED, lambda r: SimpleNamespace(stream_id=r.u64(), shard_id=r.u64(), lineage=r.u32(), epoch=r.u64(),
                                                              next_sequence=r.u64(), batch_bytes_max=r.u32()))


def read_publish_ack(f):
    def body(r):
        ack = SimpleNamespace(lineage=r.u32(), epoch=r.u64(), durability=r.u8(), through=r.u64(), base_offsets=[])
        count = r.u16()
        need(count <= 1024, f"{count} acks")
        ack.base_offsets = [r.u64() for _ in range(count)]
        return ack
    return _read(f, PUBLISH_ACK, body)


def read_publish_refused(f):
    return _read(f, PUBLISH_REFUSED, lambda r: SimpleNamespace(base_sequence=r.u64(), code=r.u16(), retry_after_ms=r.u32(),
                                                               detail=r.text16()))


def read_producer(f):
    return _read(f, PRODUCER, lambda r: SimpleNamespace(producer_id=r.u64(), producer_epoch=r.u32()))


def read_subscribed(f):
    return _read(f, SUBSCRIBED, lambda r: SimpleNamespace(stream_id=r.u64(), shard_id=r.u64(), lineage=r.u32(), epoch=r.u64(),
                                                          start=r.u64(), high_watermark=r.u64()))


def read_deliver(f):
    def body(r):
        d = SimpleNamespace(kind=r.u32(), number=r.u64(), covered_from=r.u64(), covered_to=r.u64(), batch=None, size=f.size)
        need(d.kind in (BATCH, GAP, PROGRESS), f"kind {d.kind}")
        need(d.covered_from <= d.covered_to, "covered")
        if d.kind == BATCH:
            d.batch = read_batch(r.rest())
        return d
    return _read(f, DELIVER, body)


def read_subscription_closed(f):
    return _read(f, SUBSCRIPTION_CLOSED, lambda r: SimpleNamespace(code=r.u16(), next_lineage=r.u32(), next_offset=r.u64(),
                                                                   detail=r.text16()))


def read_stats(f):
    def body(r):
        s = SimpleNamespace(uptime_ms=r.u64(), connections=r.u32(), more=r.boolean(), rows={})
        count = r.u32()
        need(count <= 128, f"{count} rows")
        for _ in range(count):
            name = r.text16()
            s.rows[name] = SimpleNamespace(records_in=r.u64(), bytes_in=r.u64(), records_out=r.u64(), bytes_out=r.u64(),
                                           subscriptions=r.u32(), lag_records_max=r.u64(), gap_records=r.u64(), retained_bytes=r.u64())
        return s
    return _read(f, STATS, body)


# --- 5. Batches -------------------------------------------------------------------------------------------------------------------


@dataclass
class Record:
    value: bytes = b""
    key: bytes | None = None
    ttl_ms: int = 0
    headers: tuple = ()
    tombstone: bool = False
    time_delta: int = 0
    offset: int = 0
    skipped: bool = False


def crc32c(data): return google_crc32c.value(bytes(data))
def key_hash(key): return xxhash.xxh3_64_intdigest(key, seed=KEY_HASH_SEED)
def range_start(index, shards): return (index << 64) // shards


def shard_of(key, range_starts):
    hash_ = key_hash(key)
    return max(i for i, start in enumerate(range_starts) if start <= hash_)


def headers_block(headers):
    return b"".join(varint(len(n.encode())) + n.encode() + varint(len(v)) + v for n, v in headers)


def index_entry(record, delta):
    block = headers_block(record.headers)
    flags = (record.key is not None) | (record.ttl_ms > 0) << 1 | (len(block) > 0) << 2 | record.tombstone << 3
    out = bytes([flags]) + varint(delta) + varint(record.time_delta)
    if record.key is not None:
        out += varint(len(record.key)) + record.key
    if record.ttl_ms:
        out += varint(record.ttl_ms)
    if block:
        out += varint(len(block))
    return out + varint(len(record.value))


def seal(body):
    """Puts body_crc in front of a body whose other bytes are done."""
    return struct.pack("<I", crc32c(body[4:])) + bytes(body[4:])


def lz4_literals(data):
    """A legal LZ4 block that is one run of literals."""
    if len(data) < 15:
        return bytes([len(data) << 4]) + data
    rest = len(data) - 15
    return b"\xf0" + b"\xff" * (rest // 255) + bytes([rest % 255]) + data


def lz4_unfold(block, size):
    out, r = bytearray(), Reader(block)

    def length(n):
        if n == 15:
            while True:
                more = r.u8()
                n += more
                if more != 255:
                    break
        return n

    while r.at < len(block):
        token = r.u8()
        out += r.take(length(token >> 4))
        if r.at == len(block):
            break
        distance = r.u16()
        need(0 < distance <= len(out), "LZ4 distance")
        for _ in range(length(token & 15) + 4):
            out.append(out[-distance])
        need(len(out) <= size, "LZ4 section too large")
    need(len(out) == size, "LZ4 section of another size")
    return bytes(out)


def batch_body(records, *, sequence=0, producer_id=0, producer_epoch=0, base_time=1_700_000_000_000_000_000, compression=0,
               flags=None, index=None, tlvs=b"", record_count=None, format=1, key_id=0):
    """One body (5.3). The keyword arguments after base_time exist to lie with."""
    index = b"".join(index_entry(record, i) for i, record in enumerate(records)) if index is None else index
    raw = b"".join(headers_block(record.headers) + record.value for record in records)
    values = lz4_literals(raw) if compression == 1 else raw
    flags = int(any(record.ttl_ms for record in records)) if flags is None else flags
    count = len(records) if record_count is None else record_count
    size = 64 + len(tlvs) + len(index) + len(values)
    head = struct.pack("<IIBBHIIIIIQQQII", 0, size, format, compression, flags, count, len(index), len(values), len(raw), producer_epoch,
                       producer_id, sequence, base_time, key_id, len(tlvs))
    return seal(head + tlvs + index + values)


def read_body(body, derived=False, offset_count=None):
    r = Reader(body)
    b = SimpleNamespace(body_crc=r.u32(), body_bytes=r.u32(), format=r.u8(), compression=r.u8(), flags=r.u16(), record_count=r.u32(),
                        index_bytes=r.u32(), values_bytes=r.u32(), values_bytes_raw=r.u32(), producer_epoch=r.u32(),
                        producer_id=r.u64(), base_sequence=r.u64(), base_time=r.u64(), key_id=r.u32(), tlv_bytes=r.u32(), records=[])
    need(b.body_bytes == len(body), "body_bytes")
    need(b.body_crc == crc32c(body[4:]), "body_crc")
    need(b.format == 1 and b.compression in (0, 1, 2) and b.flags & ~7 == 0, "body header")
    need(64 + b.tlv_bytes + b.index_bytes + b.values_bytes == len(body), "sections do not add up")
    read_tlvs(r.take(b.tlv_bytes))
    index, values = Reader(r.take(b.index_bytes)), r.take(b.values_bytes)
    if b.compression == 0:
        need(b.values_bytes == b.values_bytes_raw, "values_bytes_raw")
    elif b.compression == 1:
        values = lz4_unfold(values, b.values_bytes_raw)
    else:
        raise WireError("Zstandard: this client cannot open it")
    values, last, any_ttl = Reader(values), -1, False
    for _ in range(b.record_count):
        flags, record = index.u8(), Record()
        need(flags & ~0x1F == 0, "record flags")
        record.skipped, record.tombstone = bool(flags & 16), bool(flags & 8)
        need(not record.skipped or derived and b.compression, "SKIPPED")
        record.offset, record.time_delta = index.varint(), index.varint()
        need(record.offset > last and (derived or record.offset == last + 1), "offset_delta")
        need(offset_count is None or record.offset < offset_count, "offset_delta beyond offset_count")
        last = record.offset
        if flags & 1:
            record.key = index.take(index.varint())
        if flags & 2:
            record.ttl_ms, any_ttl = index.varint(), True
        block = Reader(values.take(index.varint() if flags & 4 else 0))
        record.value = values.take(index.varint())
        headers = []
        while block.at < len(block.data):
            headers.append((block.take(block.varint()).decode(), block.take(block.varint())))
        record.headers = tuple(headers)
        need(not record.tombstone or record.key is not None and not record.value, "tombstone")
        b.records.append(record)
    index.end()
    values.end()
    need(any_ttl == bool(b.flags & 1), "flag TTL")
    return b


def read_batch(data):
    """One whole batch (5.1), checked as 5.7 tells a reader to."""
    need(len(data) >= 80 + 64, "batch shorter than its headers")
    need(crc32c(data[0:8] + data[12:80]) == struct.unpack_from("<I", data, 8)[0], "header_crc")
    r = Reader(data[:80])
    b = SimpleNamespace(batch_bytes=r.u32(), format=r.u8(), kind=r.u8(), flags=r.u16(), header_crc=r.u32(), offset_count=r.u32(),
                        stream_id=r.u64(), shard_id=r.u64(), epoch=r.u64(), lineage=r.u32(), tlv_bytes=r.u32(), base_offset=r.u64(),
                        append_time=r.u64(), durable_end=r.u64(), chain=r.u64())
    need(b.batch_bytes == len(data), "batch_bytes")
    need(b.format == 1 and b.kind == 0 and b.flags & ~1 == 0, "stamped header")
    if b.tlv_bytes:
        need(4 < b.tlv_bytes <= TLV_BYTES_MAX, "stamped TLVs")
        section = data[len(data) - b.tlv_bytes:]
        need(crc32c(section[4:]) == struct.unpack_from("<I", section)[0], "stamped TLV checksum")
        read_tlvs(section[4:])
    b.derived = bool(b.flags & 1)
    b.body_raw = data[80:len(data) - b.tlv_bytes]
    b.body = read_body(b.body_raw, b.derived, b.offset_count)
    need(b.derived or b.offset_count == b.body.record_count, "offset_count")
    for record in b.body.records:
        record.offset += b.base_offset
    return b


def chain(data, before):
    """5.8: the chain of a whole, not derived batch."""
    header = bytearray(data[:80])
    header[8:12] = bytes(4)
    header[72:80] = bytes(8)
    return xxhash.xxh3_64_intdigest(bytes(header) + data[80:84], seed=before)


# --- 8. Metadata documents --------------------------------------------------------------------------------------------------------

EPHEMERAL = 0


def setting(kind, value, size): return tlv(kind, value.to_bytes(size, "little"), mandatory=True)


def settings(shards=None, durability=None, retention_bytes=None, retention_age_ms=None, batch_bytes_max=None, age_none=False,
             interval_ms=None, compact=None, tombstone_grace_ms=None, encrypt=None):
    out = b""
    for kind, value, size in ((1, shards, 4), (2, durability, 1), (3, retention_bytes, 8), (4, retention_age_ms, 8),
                              (5, batch_bytes_max, 4), (7, interval_ms, 4), (8, compact, 1), (9, tombstone_grace_ms, 8),
                              (10, encrypt, 1)):
        if value is not None:
            out += setting(kind, value, size)
    return bytes16(out + (tlv(6, b"", True) if age_none else b""))


def limits(streams=None, shards=None, retained=None):
    out = b""
    for kind, value, size in ((16, streams, 4), (17, shards, 4), (18, retained, 8)):
        if value is not None:
            out += setting(kind, value, size)
    return bytes16(out)


def create_tenant(name, limits_=bytes16(b"")): return b"\x01" + bytes16(name) + limits_
def delete_tenant(name): return b"\x02" + bytes16(name)
def list_tenants(after=None): return b"\x03" + option(after, bytes16)
def create_namespace(name): return b"\x0a" + bytes16(name)
def delete_namespace(name): return b"\x0b" + bytes16(name)
def list_namespaces(tenant, after=None): return b"\x0c" + bytes16(tenant) + option(after, bytes16)
def create_stream(name, settings_=bytes16(b""), parents=True): return b"\x14" + bytes16(name) + settings_ + bytes([parents])


def alter_stream(name, changes, if_version=None):
    return b"\x15" + bytes16(name) + changes + option(if_version, lambda v: struct.pack("<Q", v))


def delete_stream(name): return b"\x16" + bytes16(name)
def describe_stream(name): return b"\x17" + bytes16(name)


def list_streams(tenant=None, namespace=None, after=None):
    return b"\x18" + option(tenant, bytes16) + option(namespace, bytes16) + option(after, bytes16)


def _settings(data):
    return {kind: int.from_bytes(value, "little") for kind, value in read_tlvs(data, known=(1, 2, 3, 4, 5, 7, 8, 9, 10, 16, 17, 18))}


def _stream_info(r):
    return SimpleNamespace(stream_id=r.u64(), name=r.text16(), settings=_settings(r.bytes16()), version=r.u64(), created=r.u64())


def _shard_status(r):
    return SimpleNamespace(index=r.u32(), shard_id=r.u64(), core=r.u8(), lineage=r.u32(), epoch=r.u64(), log_start=r.u64(),
                           high_watermark=r.u64(), retained_bytes=r.u64())


def read_admin_reply(f):
    def body(r):
        kind = r.u8()
        if kind == 1:
            return SimpleNamespace(kind=kind, version=r.u64())
        if kind == 2:
            return SimpleNamespace(kind=kind, version=r.u64(), stream=_stream_info(r))
        if kind == 3:
            return SimpleNamespace(kind=kind, stream=_stream_info(r), shards=[_shard_status(r) for _ in range(r.u32())])
        if kind == 4:
            return SimpleNamespace(kind=kind, items=[_stream_info(r) for _ in range(r.u32())], more=r.boolean())
        if kind == 5:
            return SimpleNamespace(kind=kind, items=[r.text16() for _ in range(r.u32())], more=r.boolean())
        need(kind == 6, f"reply kind {kind}")
        return SimpleNamespace(kind=kind, items=[SimpleNamespace(name=r.text16(), limits=_settings(r.bytes16()), streams=r.u32())
                                                 for _ in range(r.u32())], more=r.boolean())
    return _read(f, ADMIN_REPLY, body)
