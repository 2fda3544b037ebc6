"""Publish channels (PROTOCOL.md 5.3, 5.7, 6.2, 7)."""

import struct

import pytest

import felix_wire as w

R = w.Record


def records(*values):
    return [R(v if isinstance(v, bytes) else str(v).encode()) for v in values]


def name_of(refusal):
    return w.CODE_NAMES[refusal.code]


def test_the_examples_of_the_page():
    body = bytes.fromhex("0823dd8d530000000100000001000000" "0e000000050000000500000000000000" + "00" * 16
                         + "00002a36fe9c9717" + "00" * 8 + "01000009584e41532e4141504c05" + "68656c6c6f")
    assert w.batch_body([R(b"hello", key=b"XNAS.AAPL")]) == body
    head = bytes.fromhex("a30000000100000027a98231010000000700000000000000090000000000000002000000000000000100000000000000"
                         "e80300000000000020a13136fe9c971700000000000000002ac09ed6d34dda9f")
    batch = w.read_batch(head + body)
    assert w.chain(head + body, 0) == batch.chain == 0x9FDA4DD3D69EC02A
    assert w.chain(head + body, 1) == 0x16621A1C53721511
    assert batch.body.records[0].offset == 1000 and batch.body.records[0].value == b"hello"
    for key, hash_, shard in ((b"", 0x9805B3AD901A087F, 2), (b"a", 0x10967C78F12DB32E, 0), (b"XNAS.AAPL", 0x22DEF4AEF2579816, 0),
                              (b"user-000000000042", 0xF9F1B31DFDCD3DAE, 3), (bytes(range(32)), 0x7E5FEA7DF7E9C2B1, 1),
                              (b"0123456789abcdef" * 16, 0x2FB7601532042077, 0)):
        assert w.key_hash(key) == hash_ and w.shard_of(key, [w.range_start(i, 4) for i in range(4)]) == shard
    assert w.crc32c(b"123456789") == 0xE3069283


def test_anonymous_offsets_rise(any_broker, connect, stream):
    client = connect(any_broker)
    s = stream(client)
    channel = client.channel(s)
    assert channel.opened.next_sequence == 0 and channel.opened.batch_bytes_max == 1_024_000
    sequence, expected = 0, []
    for n in (1, 3, 2, 100, 1):
        channel.publish(w.batch_body(records(*range(n)), sequence=sequence))
        expected.append(sequence)
        sequence += n
    assert channel.acked(5) == expected
    assert channel.last_ack.through == sequence and channel.last_ack.durability == 0
    assert channel.last_ack.lineage == channel.opened.lineage
    channel.send(b"", fin=True)
    client.wait(lambda: channel.ended, 5, "FIN of the channel")


@pytest.mark.parametrize("shard", [0, 1])
def test_publish_through_the_mesh_keeps_the_order(any_broker, connect, stream, shard):
    """From every core, also those that do not own the shard; read back on every core."""
    first = connect(any_broker)
    s = stream(first, shards=2)
    owner = first.route(s).shards[shard].core
    total, subs = 0, []
    for core in range(any_broker.cores):
        reader = connect(any_broker, core)
        subs.append(reader.subscribe(s, shard))
    before = any_broker.settled("felix_publish_forwarded_total", first.loop)
    for core in range(any_broker.cores):
        client = connect(any_broker, core)
        assert client.welcome.core == core
        channel = client.channel(s, shard)
        for i in range(40):
            channel.publish(w.batch_body(records(f"{core}-{i}-a", f"{core}-{i}-b"), sequence=2 * i))
        assert channel.acked(40) == [total + 2 * i for i in range(40)]
        total += 80
    expected = [f"{core}-{i}-{x}".encode() for core in range(any_broker.cores) for i in range(40) for x in "ab"]
    for sub in subs:
        assert [r.value for r in sub.until(total)] == expected
        assert [r.offset for r in sub.records] == list(range(total))
    any_broker.wait_metric("felix_publish_forwarded_total", before + 40 * (any_broker.cores - 1), first.loop)
    assert owner < any_broker.cores


def test_what_was_sent_comes_out_byte_by_byte(broker, connect, stream):
    client = connect(broker)
    s = stream(client)
    channel = client.channel(s)
    sent = [R(b"v", key=b"k", ttl_ms=60_000, headers=(("a", b"1"), ("", b"")), time_delta=5), R(b"", key=b"k", tombstone=True),
            R(b"", key=b""), R(b"z" * 1000)]
    bodies = [w.batch_body(sent), w.batch_body(sent, sequence=4, compression=1), w.batch_body(sent, sequence=8, tlvs=w.tlv(77, b"x"))]
    for body in bodies:
        channel.publish(body)
    channel.acked(3)
    sub = client.subscribe(s)
    sub.until(12)
    before = 0
    for d, body in zip(sub.deliveries, bodies):
        assert d.batch.body_raw == body
    for r, out in zip(sent * 3, sub.records):
        assert (r.value, r.key, r.ttl_ms, r.headers, r.tombstone) == (out.value, out.key, out.ttl_ms, out.headers, out.tombstone)
    # The chain: recompute from the bytes as they travelled.
    raw = []
    original = w.read_batch
    w.read_batch = lambda data: raw.append(data) or original(data)
    try:
        again = client.subscribe(s)
        again.until(12)
    finally:
        w.read_batch = original
    for data in raw:
        assert w.chain(data, before) == original(data).chain
        before = original(data).chain
    assert [d.batch.append_time for d in sub.deliveries] == sorted(d.batch.append_time for d in sub.deliveries)


@pytest.mark.parametrize("core", [0, 1])
def test_idempotent(broker, connect, stream, core):
    client = connect(broker, core)
    s = stream(client)
    producer = client.producer()
    assert producer.producer_id != 0
    ids = {"producer_id": producer.producer_id, "producer_epoch": producer.producer_epoch}
    channel = client.channel(s, **ids)
    assert channel.opened.next_sequence == 0
    bodies = [w.batch_body(records(i, i), sequence=2 * i, **ids) for i in range(4)]
    for body in bodies[:3]:
        channel.publish(body)
    assert channel.acked(3) == [0, 2, 4]
    channel.publish(bodies[1])
    assert channel.acked(4) == [0, 2, 4, 2], "a duplicate has the offset of its first append"
    # The same sequence with other bytes.
    channel.publish(w.batch_body(records("other", "bytes"), sequence=2, **ids))
    assert name_of(channel.refusal(1)) == "DuplicateMismatch" and channel.refused[0].base_sequence == 2
    # A hole; a refused batch does not use up its numbers.
    channel.publish(w.batch_body(records(9), sequence=8, **ids))
    assert name_of(channel.refusal(2)) == "SequenceGap" and channel.refused[1].base_sequence == 8
    channel.publish(bodies[3])
    assert channel.acked(5)[-1] == 6
    # Another connection, on the other core, goes on where it was.
    other = connect(broker, 1 - core)
    again = other.channel(s, **ids)
    assert again.opened.next_sequence == 8
    again.publish(bodies[0])
    again.publish(w.batch_body(records("x"), sequence=8, **ids))
    assert again.acked(2) == [0, 8]
    # A newer incarnation fences the older one, and begins at 0.
    newer = dict(ids, producer_epoch=ids["producer_epoch"] + 1)
    third = client.channel(s, **newer)
    assert third.opened.next_sequence == 0
    third.publish(w.batch_body(records("y"), **newer))
    assert third.acked(1) == [9]
    again.publish(w.batch_body(records("z"), sequence=9, **ids))
    client.wait(lambda: again.refused or again.error, 5, "fencing")
    assert w.CODE_NAMES[(again.refused or [again.error])[0].code] == "ProducerFenced"
    sub = client.subscribe(s)
    assert [r.value for r in sub.until(10)] == [b"0", b"0", b"1", b"1", b"2", b"2", b"3", b"3", b"x", b"y"]


def test_the_window_of_duplicates(broker, connect, stream):
    client = connect(broker)
    s = stream(client)
    ids = {"producer_id": client.producer().producer_id}
    channel = client.channel(s, **ids)
    bodies = [w.batch_body(records(i), sequence=i, **ids) for i in range(1100)]
    for i in range(0, 1100, 100):
        for body in bodies[i:i + 100]:
            channel.publish(body)
        channel.acked(i + 100)
    assert channel.offsets == list(range(1100))
    for i in (1099 - 1023, 1099):
        channel.publish(bodies[i])
    assert channel.acked(1102)[-2:] == [1099 - 1023, 1099]
    channel.publish(bodies[0])
    assert name_of(channel.refusal()) == "DuplicateMismatch"


def test_unknown_producer(any_broker, connect, stream):
    """An id the shard never saw may begin at 0 and nowhere else."""
    for core in range(any_broker.cores):
        client = connect(any_broker, core)
        s = stream(client)
        ids = {"producer_id": client.producer().producer_id, "producer_epoch": 3}
        channel = client.channel(s, **ids)
        channel.publish(w.batch_body(records("x"), sequence=5, **ids))
        assert name_of(channel.refusal()) == "UnknownProducer" and channel.refused[0].base_sequence == 5
        channel.publish(w.batch_body(records("x"), **ids))
        assert channel.acked(1) == [0]


def broken_bodies():
    """What 5.7 says is refused, by name; every body but the first has a good checksum."""
    good = w.batch_body(records("a", "b"))
    keyed = R(b"v", key=b"k")

    def with_(at, fmt, value, body=good):
        out = bytearray(body)
        struct.pack_into(fmt, out, at, value)
        return w.seal(out)

    entry = lambda flags, *rest: bytes([flags]) + b"".join(w.varint(r) if isinstance(r, int) else r for r in rest)
    one = lambda index, values=b"v", **k: w.batch_body([R(values)], index=index, **k)
    yield "format", with_(8, "<B", 2)
    yield "compression", with_(9, "<B", 3)
    yield "compression-raw", with_(24, "<I", 7)
    yield "flag", with_(10, "<H", 8)
    yield "flag-ttl-without", with_(10, "<H", 1)
    yield "ttl-without-flag", w.batch_body([R(b"v", ttl_ms=5)], flags=0)
    yield "no-records", w.batch_body([])
    yield "too-few-records", with_(12, "<I", 1)
    yield "too-many-records", with_(12, "<I", 3)
    yield "records-max", with_(12, "<I", 0xFFFF_FFFF)
    yield "index-bytes", with_(16, "<I", 0xFFFF_FFF0)
    yield "values-bytes", with_(20, "<I", 1)
    yield "body-bytes", with_(4, "<I", len(good) + 1)
    yield "tlv-bytes", with_(60, "<I", 4)
    yield "mandatory-tlv", w.batch_body(records("a"), tlvs=w.tlv(9, b"", True))
    yield "key-id", with_(56, "<I", 5)
    yield "encrypted-without-key-id", with_(10, "<H", 2)
    yield "record-flag", one(entry(32, 0, 0, 1))
    yield "skipped", one(entry(16, 0, 0, 1))
    yield "delta-from-1", one(entry(0, 1, 0, 1))
    yield "delta-hole", w.batch_body(records("a", "b"), index=entry(0, 0, 0, 1) + entry(0, 2, 0, 1))
    yield "delta-twice", w.batch_body(records("a", "b"), index=entry(0, 0, 0, 1) * 2)
    yield "overlong-varint", one(entry(0, b"\x80\0", 0, 1))
    yield "endless-varint", one(entry(0, b"\xff" * 11, 0, 1))
    yield "values-too-long", one(entry(0, 0, 0, 2))
    yield "values-left-over", one(entry(0, 0, 0, 0))
    yield "key-beyond-index", one(entry(1, 0, 0, 200, b"k", 1))
    yield "key-too-long", w.batch_body([R(b"v", key=b"k" * 1025)])
    yield "ttl-0", one(entry(2, 0, 0, 0, 1), flags=1)
    yield "ttl-max", w.batch_body([R(b"v", ttl_ms=316_224_000_001)])
    yield "tombstone-without-key", one(entry(8, 0, 0, 0), b"")
    yield "tombstone-with-value", one(entry(9, 0, 0, 1, b"k", 1))
    yield "index-left-over", one(entry(0, 0, 0, 1) + b"\0")
    yield "index-cut", one(entry(1, 0, 0))
    yield "headers-max", one(entry(4, 0, 0, 16_385, 1), b"v" * 16_386)
    yield "producer", w.batch_body(records("a"), producer_id=5)
    yield "producer-epoch", w.batch_body([keyed], producer_epoch=1)
    yield "bytes-behind", good + b"\0"
    yield "short", good[:63]
    yield "empty", b""


def test_broken_batches_are_refused_one_by_one(any_broker, connect, stream):
    """Each is refused alone, with its base_sequence, and the channel goes on."""
    client = connect(any_broker)
    s = stream(client)
    before = any_broker.settled("felix_publish_refused_total", client.loop)
    crc = bytearray(w.batch_body(records("crc")))
    crc[0] ^= 1
    value = bytearray(w.batch_body(records("crc")))
    value[-1] ^= 0x40
    cases = [("crc", bytes(crc), "CorruptBatch"), ("value", bytes(value), "CorruptBatch")]
    cases += [(n, b, "InvalidBatch") for n, b in broken_bodies()]
    wrong = []
    for what, body, code in cases:
        channel = client.channel(s)
        channel.publish(body)
        client.wait(lambda: channel.refused or channel.error or channel.offsets, 5, f"answer to {what}")
        got = name_of(channel.refused[0]) if channel.refused else f"error {channel.error} offsets {channel.offsets}"
        allowed = {code} | ({"CorruptBatch"} if what in ("short", "empty", "bytes-behind", "body-bytes") else set())
        if got not in allowed:
            wrong.append((what, code, got))
        elif channel.refused[0].base_sequence != (struct.unpack_from("<Q", body, 40)[0] if len(body) >= 48 else 0):
            wrong.append((what, "base_sequence", channel.refused[0].base_sequence))
        else:
            count = min(struct.unpack_from("<I", body, 12)[0], 16_384) if len(body) >= 64 else 0
            channel.after = count
        channel.send(b"", fin=True)
    assert not wrong
    assert any_broker.wait_metric("felix_publish_refused_total", before + len(cases), client.loop) == before + len(cases)
    assert client.admin(w.describe_stream(s), key=0).shards[0].high_watermark == 0


def test_a_refused_batch_leaves_the_channel_open(broker, connect, stream):
    client = connect(broker)
    s = stream(client)
    channel = client.channel(s)
    bad = bytearray(w.batch_body(records("x"), sequence=1))
    bad[-1] ^= 1
    channel.publish(w.batch_body(records("a")))
    channel.publish(bytes(bad))
    channel.publish(w.batch_body(records("b"), sequence=2))
    assert channel.acked(1) and name_of(channel.refusal()) == "CorruptBatch" and channel.refused[0].base_sequence == 1
    client.wait(lambda: len(channel.offsets) == 2, 5, "second ack")
    assert channel.offsets == [0, 1]


def test_batch_bytes_max(broker, connect, stream):
    client = connect(broker)
    s = stream(client, batch_bytes_max=4096)
    channel = client.channel(s)
    assert channel.opened.batch_bytes_max == 4096
    room = 4096 - len(w.batch_body([R(b"v" * 3000)])) + 3000
    channel.publish(w.batch_body([R(b"v" * room)]))
    assert channel.acked(1) == [0]
    channel.publish(w.batch_body([R(b"v" * (room + 1))], sequence=1))
    assert name_of(channel.refusal()) == "InvalidBatch"


def test_largest_batch(broker, connect, stream):
    client = connect(broker)
    s = stream(client)
    channel = client.channel(s)
    size = 1_024_000 - 64 - 6
    body = w.batch_body([R(b"v" * size)])
    assert len(body) == 1_024_000
    channel.publish(body)
    assert channel.acked(1, 20) == [0]
    sub = client.subscribe(s)
    assert sub.until(1, 20)[0].value == b"v" * size


def test_most_records(broker, connect, stream):
    client = connect(broker)
    channel = client.channel(stream(client))
    channel.publish(w.batch_body([R()] * 16_384))
    assert channel.acked(1) == [0]
    channel.publish(w.batch_body([R()] * 16_385, sequence=16_384))
    assert name_of(channel.refusal()) == "InvalidBatch"


@pytest.mark.parametrize("core", [0, 1])
def test_keyed_channel(broker, connect, stream, core):
    client = connect(broker, core)
    s = stream(client, shards=4)
    starts = [x.range_start for x in client.route(s).shards]
    key = b"user-000000000042"
    channel = client.channel(s, 3, flags=w.ACKS | w.KEYED)
    channel.publish(w.batch_body([R(b"v", key=key), R(b"no key")]))
    assert channel.acked(1) == [0]
    channel.publish(w.batch_body([R(b"v", key=key), R(b"v", key=b"a")], sequence=2))
    assert name_of(channel.refusal()) == "WrongShard" and w.shard_of(b"a", starts) == 0
    free = client.channel(s, 3)
    free.publish(w.batch_body([R(b"v", key=b"a")]))
    assert free.acked(1) == [2]


def test_without_acks_only_refusals_come(broker, connect, stream):
    client = connect(broker)
    s = stream(client)
    channel = client.channel(s, flags=0)
    channel.publish(w.batch_body(records("a")))
    channel.publish(w.batch_body(records("b"), sequence=1)[:-1])
    assert channel.refusal().base_sequence == 1
    sub = client.subscribe(s)
    sub.until(1)
    client.loop.idle(0.1)
    assert not channel.offsets


def test_publish_right_behind_open_channel(any_broker, connect, stream):
    first = connect(any_broker)
    s = stream(first)
    for core in range(any_broker.cores):
        client = connect(any_broker, core)
        channel = client.raw_channel()
        channel.send(w.open_channel(s) + w.publish(w.batch_body(records(1))) + w.publish(w.batch_body(records(2), sequence=1)), fin=True)
        assert channel.acked(2) == [2 * core, 2 * core + 1]
        client.wait(lambda: channel.ended, 5, "FIN of the channel")


def test_refused_channels(broker, connect, stream, name, refused):
    client = connect(broker)
    s = stream(client)
    for code, target, options in (("NotFound", name(), {}), ("InvalidName", "bad name", {}), ("StreamGone", s, {"stream_id": 12345}),
                                  ("NotFound", s, {"shard": 1})):
        channel = client.channel(target, wait=False, **options)
        with pytest.raises(Exception) as caught:
            channel.wait_open()
        assert code in str(caught.value) or code == "NotFound" and "InvalidArgument" in str(caught.value)
        client.wait(lambda: channel.ended or channel.reset is not None, 5, "end of the refused channel")
    route = client.route(s)
    assert client.channel(s, stream_id=route.stream_id).opened.stream_id == route.stream_id


def test_channels_of_a_deleted_stream_die(any_broker, connect, stream):
    owner = connect(any_broker)
    s = stream(owner)
    channels = []
    for core in range(any_broker.cores):
        client = connect(any_broker, core)
        channels.append(client.channel(s))
        channels[-1].publish(w.batch_body(records("x")))
        channels[-1].acked(1)
    owner.admin(w.delete_stream(s))
    for channel in channels:
        channel.publish(w.batch_body(records("y"), sequence=1))
        channel.client.wait(lambda: channel.error or channel.refused or channel.reset is not None, 5, "end of the channel")
        code = channel.error.code if channel.error else channel.refused[0].code if channel.refused else channel.reset
        assert w.CODE_NAMES[code] == "StreamGone"
