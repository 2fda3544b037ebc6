"""Subscriptions (PROTOCOL.md 6.3, 6.4, 5.6). That numbers and covered ranges have no hole is checked in felix_client for every delivery."""

import time

import pytest

import felix_wire as w

R = w.Record


def fill(client, stream, batches, per_batch=1, size=1, shard=0, key=None):
    """Publishes `batches` batches and waits for the acks; values are "batch.record"."""
    channel = client.channel(stream, shard)
    for i in range(batches):
        channel.publish(w.batch_body([R(f"{i}.{j}".encode().ljust(size, b"."), key=key(i * per_batch + j) if key else None)
                                      for j in range(per_batch)], sequence=i * per_batch))
        if i % 64 == 63:
            channel.acked(i - 31)
    channel.acked(batches, 20)
    return channel


def offsets(sub):
    return [r.offset for r in sub.records]


def test_earliest(any_broker, connect, stream):
    first = connect(any_broker)
    s = stream(first)
    fill(first, s, 10, 3)
    for core in range(any_broker.cores):
        sub = connect(any_broker, core).subscribe(s)
        assert sub.subscribed.start == 0 and sub.subscribed.high_watermark == 30
        sub.until(30)
        assert offsets(sub) == list(range(30)) and [r.value for r in sub.records][:4] == [b"0.0", b"0.1", b"0.2", b"1.0"]


def test_latest_then_live(any_broker, connect, stream):
    first = connect(any_broker)
    s = stream(first)
    channel = fill(first, s, 5)
    subs = [connect(any_broker, core).subscribe(s, start=w.LATEST) for core in range(any_broker.cores)]
    assert [sub.subscribed.start for sub in subs] == [5] * any_broker.cores
    for i in range(5, 25):
        channel.publish(w.batch_body([R(str(i).encode())], sequence=i))
    for sub in subs:
        sub.until(25)
        assert offsets(sub) == list(range(5, 25))


def test_position_in_the_middle_of_a_batch(any_broker, connect, stream):
    first = connect(any_broker)
    s = stream(first)
    channel = fill(first, s, 4, 5)
    lineage = channel.opened.lineage
    for core in range(any_broker.cores):
        client = connect(any_broker, core)
        sub = client.subscribe(s, start=w.POSITION, lineage=lineage, value=7)
        assert sub.subscribed.start == 7 and sub.subscribed.lineage == lineage
        sub.until(20)
        assert offsets(sub) == list(range(7, 20))
        assert sub.deliveries[0].covered_from == 7 and sub.deliveries[0].covered_to == 10
        any_lineage = client.subscribe(s, start=w.POSITION, value=20)
        assert any_lineage.subscribed.start == 20


def test_bad_positions(any_broker, connect, stream, refused, name):
    first = connect(any_broker)
    s = stream(first)
    channel = fill(first, s, 4)
    for core in range(any_broker.cores):
        client = connect(any_broker, core)
        refused(lambda: client.subscribe(s, start=w.POSITION, value=5), "OffsetInFuture")
        refused(lambda: client.subscribe(s, start=w.POSITION, value=2**64 - 1), "OffsetInFuture")
        refused(lambda: client.subscribe(s, start=w.POSITION, lineage=channel.opened.lineage + 7, value=1), "LineageReset")
        refused(lambda: client.subscribe(name()), "NotFound")
        refused(lambda: client.subscribe("no"), "InvalidName")
        refused(lambda: client.subscribe(s, stream_id=99999), "StreamGone")
        refused(lambda: client.subscribe(s, 1), "NotFound")
        client.subscribe(s).until(4)


def test_time(broker, connect, stream):
    client = connect(broker)
    s = stream(client)
    channel = client.channel(s)
    for i in range(3):
        channel.publish(w.batch_body([R(b"a"), R(b"b")], sequence=2 * i))
        channel.acked(i + 1)
        client.loop.idle(0.03)
    everything = client.subscribe(s)
    everything.until(6)
    times = [d.batch.append_time for d in everything.deliveries]
    assert times == sorted(set(times))
    for when, start in ((0, 0), (times[0], 0), (times[0] + 1, 2), (times[1], 2), (times[2], 4), (times[2] + 1, 6),
                        (time.time_ns() + 10**12, 6)):
        sub = client.subscribe(s, start=w.TIME, value=when)
        assert sub.subscribed.start == start, (when, times)
        channel_end = sub.until(6) if start < 6 else []
        assert [r.offset for r in channel_end] == list(range(start, 6))


@pytest.mark.parametrize("compression", [0, 1])
def test_filters(any_broker, connect, stream, compression):
    first = connect(any_broker)
    s = stream(first)
    keys = [b"XNAS.AAPL.trade", b"XNAS.trade", b"md", b"md.a", b"md.a.b", None, b"", b"XNAS..trade", b"XNAS.AAPL.quote"]
    channel = first.channel(s)
    channel.publish(w.batch_body([R(str(k).encode(), key=k) for k in keys], compression=compression))
    channel.publish(w.batch_body([R(b"nothing", key=b"zzz")], sequence=len(keys), compression=compression))
    channel.acked(2)
    expected = {"XNAS.*.trade": [0, 7], "md.>": [3, 4], ">": [0, 1, 2, 3, 4, 6, 7, 8, 9], "md": [2], "*": [2, 6, 9], "*.*": [1, 3],
                "XNAS.>": [0, 1, 7, 8], "nobody.here": [], "": list(range(10)), "zzz": [9]}
    for core in range(any_broker.cores):
        client = connect(any_broker, core)
        subs = {f: client.subscribe(s, filter=f) for f in expected}
        for f, sub in subs.items():
            if expected[f]:
                sub.until(expected[f][-1] + 1)
            assert offsets(sub) == expected[f], f
            if f in ("md", "XNAS.>", "*.*"):
                batch = sub.deliveries[0].batch
                assert batch.derived and batch.base_offset == 0 and batch.offset_count == len(keys)
                assert batch.body.base_sequence == 0


def test_progress_while_nothing_matches(any_broker, connect, stream):
    first = connect(any_broker)
    s = stream(first)
    subs = [connect(any_broker, core).subscribe(s, filter="nobody.here") for core in range(any_broker.cores)]
    channel = first.channel(s)
    for i in range(5):
        channel.publish(w.batch_body([R(key=b"k")] * 1000, sequence=i * 1000))
    channel.acked(5)
    for sub in subs:
        sub.until(2000)
        assert {d.kind for d in sub.deliveries} == {w.PROGRESS} and sub.records == []


def test_bad_filters(broker, connect, stream, refused):
    client = connect(broker)
    s = stream(client)
    for bad in ("a..b", ".a", "a.", "a*", "a.*b", ">.a", "a.>.b", "a>", ".", "x." * 32 + "x"):
        try:
            refused(lambda: client.subscribe(s, filter=bad), "InvalidPattern")
        except Exception:
            raise AssertionError(f"filter {bad[:20]!r}, closed: {client.closed}")
    client.subscribe(s, filter="x" * 256)
    client.subscribe(s, filter="x." * 31 + "x")


def test_shared_and_own_streams(any_broker, connect, stream):
    first = connect(any_broker)
    s = stream(first, shards=2)
    for core in range(any_broker.cores):
        client = connect(any_broker, core)
        shared = [client.subscribe(s, i % 2, start=w.LATEST) for i in range(6)]
        own = [client.subscribe(s, i % 2, start=w.LATEST, mode=w.OWN) for i in range(3)]
        begin = [max(sub.subscribed.start for sub in shared[i:i + 1]) for i in range(2)]
        fill(first, s, 20, 2, shard=0)
        fill(first, s, 20, 2, shard=1)
        for i, sub in enumerate(shared + own):
            shard = i % 2 if i < 6 else (i - 6) % 2
            sub.until(begin[shard] + 40)
            assert offsets(sub) == list(range(begin[shard], begin[shard] + 40))
        assert len(set.union(*(sub.streams for sub in shared))) == 1, "one shared stream"
        assert all(len(sub.streams) == 1 for sub in own) and len(set.union(*(sub.streams for sub in own + shared))) == 4
        client.unsubscribe(own[0])
        assert own[0].wait_closed().code == 0
        client.wait(lambda: own[0].streams <= client.ended_streams, 5, "FIN of a stream of its own")
        client.unsubscribe(shared[0])
        assert shared[0].wait_closed().code == 0
        assert not shared[0].streams & client.ended_streams


def test_datagrams(any_broker, connect, stream):
    first = connect(any_broker)
    s = stream(first)
    for core in range(any_broker.cores):
        client = connect(any_broker, core)
        subs = [client.subscribe(s, start=w.LATEST, mode=mode) for mode in (w.DATAGRAM_OR_STREAM, w.DATAGRAM_OR_GAP)]
        begin = subs[0].subscribed.start
        channel = first.channel(s)
        for i in range(10):
            channel.publish(w.batch_body([R(b"small")], sequence=i))
            channel.acked(i + 1)
        channel.publish(w.batch_body([R(b"L" * 60_000)], sequence=10))
        channel.publish(w.batch_body([R(b"small")], sequence=11))
        for sub in subs:
            client.wait(lambda: max((d.covered_to for d in sub.deliveries), default=0) >= begin + 12, 5, "datagrams")
        either, gap = subs
        client.wait(lambda: len(either.streams) == 2, 5, "the large batch on the shared stream")
        assert "datagram" in either.streams and sorted(offsets(either)) == list(range(begin, begin + 12))
        assert gap.streams == {"datagram"} and (begin + 10, begin + 11) in gap.gaps
        assert sorted(offsets(gap)) == [*range(begin, begin + 10), begin + 11]
        assert sorted(d.number for d in gap.deliveries) == list(range(len(gap.deliveries)))
        client.unsubscribe(gap)
        assert gap.wait_closed().code == 0


def test_datagrams_use_no_credit(any_broker, connect, stream):
    """One byte of it lets all datagrams through, gaps that stand for large batches too; a batch on the stream uses it up."""
    first = connect(any_broker)
    s = stream(first)
    for core in range(any_broker.cores):
        client = connect(any_broker, core)
        none, either, gap = [client.subscribe(s, start=w.LATEST, mode=mode, credit=credit) for mode, credit in
                             ((w.DATAGRAM_OR_GAP, 0), (w.DATAGRAM_OR_STREAM, 1), (w.DATAGRAM_OR_GAP, 1))]
        begin = gap.subscribed.start
        channel = first.channel(s)
        for i, large in enumerate([False] * 10 + [True] * 3 + [False] * 10):
            channel.publish(w.batch_body([R(b"L" * 40_000 if large else b"small")], sequence=i))
            channel.acked(i + 1)
        client.wait(lambda: len(gap.deliveries) == 23, 5, "all of mode 3")
        assert gap.gaps == [(begin + i, begin + i + 1) for i in range(10, 13)] and gap.streams == {"datagram"}
        client.loop.idle(0.1)
        assert none.deliveries == []
        assert sorted(offsets(either)) == list(range(begin, begin + 11)), "the first large batch is the last frame"
        client.credit(either, either.stream_bytes + 1)
        client.wait(lambda: len(either.records) == 12, 5, "another large batch")
        client.loop.idle(0.1)
        assert len(either.records) == 12
        client.credit(either, 1 << 20)
        client.credit(none, 1)
        for sub in (either, none):
            client.wait(lambda: max((d.covered_to for d in sub.deliveries), default=0) == begin + 23, 5, "the rest")


def test_more_own_streams_than_the_client_allows(broker, connect, stream):
    """aioquic lets the broker open 128 unidirectional streams; what is over waits or is refused, and nothing breaks."""
    client = connect(broker)
    s = stream(client)
    fill(client, s, 2)
    subs = [client.subscribe(s, mode=w.OWN, wait=False) for _ in range(160)]
    client.wait(lambda: all(x.subscribed or x.error for x in subs), 5, "answers")
    served = [x for x in subs if x.subscribed]
    assert len(served) >= 100
    assert {w.CODE_NAMES[x.error.code] for x in subs if x.error} <= {"TooMany", "Overloaded"}
    for sub in served:
        sub.until(2)
    for sub in served[:50]:
        client.unsubscribe(sub)
        sub.wait_closed()
    again = client.subscribe(s, mode=w.OWN)
    again.until(2)


def test_datagrams_need_the_feature(broker, connect, stream, refused):
    client = connect(broker, hello={"features": w.COMPRESSION | w.PRODUCERS})
    s = stream(client)
    for mode in (w.DATAGRAM_OR_STREAM, w.DATAGRAM_OR_GAP):
        refused(lambda: client.subscribe(s, mode=mode), "NotSupported")
    client.subscribe(s, mode=w.OWN)


def test_feature_without_transport_parameter(broker, connect, stream, refused):
    """The client says DATAGRAM in Hello, but its transport takes none."""
    client = connect(broker, datagrams=None)
    s = stream(client)
    fill(client, s, 3)
    if client.welcome.features & w.DATAGRAM:
        sub = client.subscribe(s, mode=w.DATAGRAM_OR_STREAM)
        client.wait(lambda: sub.covered_to >= 3, 5, "deliveries on a stream")
    else:
        refused(lambda: client.subscribe(s, mode=w.DATAGRAM_OR_STREAM), "NotSupported")
    assert client.closed is None


@pytest.mark.parametrize("mode", [w.SHARED, w.OWN])
def test_credit_is_honoured_to_the_byte(any_broker, connect, stream, mode):
    first = connect(any_broker)
    s = stream(first)
    fill(first, s, 50, size=100)
    for core in range(any_broker.cores):
        client = connect(any_broker, core)
        none = client.subscribe(s, mode=mode, credit=0)
        client.loop.idle(0.1)
        assert none.deliveries == []
        sub = client.subscribe(s, mode=mode, credit=1)
        client.wait(lambda: sub.bytes, 5, "the first delivery")
        client.loop.idle(0.1)
        size = sub.bytes
        assert len(sub.deliveries) == 1, "one byte of credit lets one frame through"
        client.credit(sub, size)                    # sum == total: nothing
        client.loop.idle(0.1)
        assert len(sub.deliveries) == 1
        client.credit(sub, size + 1)
        client.wait(lambda: len(sub.deliveries) == 2, 5, "the second delivery")
        client.credit(sub, 3)                       # lower: nothing
        client.loop.idle(0.05)
        assert len(sub.deliveries) == 2
        client.credit(sub, 10 * size)
        client.wait(lambda: len(sub.deliveries) == 10, 5, "deliveries up to the bound")
        client.loop.idle(0.1)
        assert sub.bytes == 10 * size
        client.credit(sub, 2**64 - 1)
        client.wait(lambda: len(sub.records) == 50, 5, "the rest")
        assert none.deliveries == []
        client.credit(none, 1 << 20)
        client.wait(lambda: len(none.records) == 50, 5, "everything")


def test_one_without_credit_does_not_hold_up_others_on_its_stream(broker, connect, stream):
    client = connect(broker)
    s = stream(client)
    stuck = client.subscribe(s, credit=0)
    free = client.subscribe(s)
    fill(client, s, 30)
    free.until(30)
    assert not stuck.deliveries
    client.unsubscribe(stuck)
    closed = stuck.wait_closed()
    assert (closed.code, closed.next_offset) == (0, 0) and closed.next_lineage == stuck.subscribed.lineage


def test_unsubscribe_tells_where_to_go_on(any_broker, connect, stream, refused):
    first = connect(any_broker)
    s = stream(first)
    fill(first, s, 20)
    for core in range(any_broker.cores):
        client = connect(any_broker, core)
        sub = client.subscribe(s)
        sub.until(20)
        client.unsubscribe(sub)
        closed = sub.wait_closed()
        assert closed.code == 0 and closed.next_offset == 20 and closed.next_lineage == sub.subscribed.lineage
        # The id is free again.
        again = client.subscribe(s, id=sub.id, start=w.POSITION, lineage=closed.next_lineage, value=closed.next_offset)
        assert again.subscribed.start == 20
        client.send(0, w.unsubscribe(999))
        refused(lambda: client.reply(999), "UnknownSubscription")


def test_deleted_stream(any_broker, connect, stream):
    first = connect(any_broker)
    s = stream(first)
    fill(first, s, 5)
    subs = [connect(any_broker, core).subscribe(s, mode=mode) for core in range(any_broker.cores)
            for mode in (w.SHARED, w.OWN, w.DATAGRAM_OR_GAP)]
    for sub in subs:
        sub.client.wait(lambda: sub.covered_to == 5, 5, "deliveries")
    first.admin(w.delete_stream(s))
    for sub in subs:
        assert w.CODE_NAMES[sub.wait_closed().code] == "StreamGone"
        assert sub.client.closed is None


MANY = 4_400        # more batches than the memory that holds the tail takes


def big_fill(client, stream):
    """Publishes MANY small batches, more than the tail and, of 64 KiB, than the log keeps."""
    channel = client.channel(stream)
    for i in range(0, MANY, 400):
        channel.send(b"".join(w.publish(w.batch_body([R(str(j).encode())], sequence=j)) for j in range(i, i + 400)))
        channel.acked(i, 20)
    channel.acked(MANY, 20)


@pytest.mark.parametrize("policy", [w.BLOCK, w.DROP_OLDEST, w.DISCONNECT])
def test_slow_consumer_without_credit(any_broker, connect, stream, policy):
    """Falls out of memory and, with block, out of retention."""
    first = connect(any_broker)
    s = stream(first, retention_bytes=1 << 16)
    subs = [connect(any_broker, core).subscribe(s, policy=policy, credit=1) for core in range(any_broker.cores)]
    big_fill(first, s)
    for sub in subs:
        assert len(sub.deliveries) == 1
        if policy == w.DISCONNECT:
            sub.client.credit(sub, 1 << 40)         # told when it would be sent something again
            assert w.CODE_NAMES[sub.wait_closed().code] == "SlowConsumer"
            assert len(sub.deliveries) == 1 and sub.closed.next_offset == 1 and sub.closed.next_lineage == sub.subscribed.lineage
            continue
        sub.client.credit(sub, 1 << 40)
        sub.until(MANY, 10)
        assert len(sub.gaps) == 1 and sub.gaps[0][0] == 1 and sub.gaps[0][1] > 1, sub.gaps
        assert offsets(sub) == [0, *range(sub.gaps[0][1], MANY)]


def test_block_goes_on_from_the_log_without_a_gap(any_broker, connect, stream):
    """What fell out of the tail but not out of the log is read from the log, at the subscriber's pace."""
    first = connect(any_broker)
    s = stream(first)
    subs = [connect(any_broker, core).subscribe(s, credit=1) for core in range(any_broker.cores)]
    big_fill(first, s)
    for sub in subs:
        assert len(sub.deliveries) == 1
        sub.client.credit(sub, 1 << 40)
        sub.until(MANY, 10)
        assert not sub.gaps and offsets(sub) == list(range(MANY))


def test_gap_under_drop_oldest_when_the_client_stops_reading(any_broker, connect, stream):
    """No credit accounting: QUIC flow control is what stops the broker. Another reader misses nothing."""
    first = connect(any_broker)
    s = stream(first)
    for core in range(any_broker.cores):
        lazy = connect(any_broker, core, max_data=20_000, max_stream_data=20_000)
        lazy.hold_flow_control()
        sub = lazy.subscribe(s, start=w.LATEST, policy=w.DROP_OLDEST)
        keen = connect(any_broker, core).subscribe(s, start=w.LATEST)
        begin = sub.subscribed.start
        big_fill(first, s)
        keen.until(begin + MANY, 10)
        assert offsets(keen) == list(range(begin, begin + MANY))
        assert sub.covered_to < begin + MANY
        lazy.release_flow_control()
        sub.until(begin + MANY, 10)
        seen = set(offsets(sub))
        assert sub.gaps and len(seen) < MANY
        for from_, to in sub.gaps:
            seen |= set(range(from_, to))
        assert seen == set(range(begin, begin + MANY))

    first.wait(lambda: first.stats_of(s).gap_records > 0, 5, "gaps in the statistics")


def test_a_position_before_retention_begins_with_a_gap(broker, connect, stream):
    client = connect(broker)
    s = stream(client, retention_bytes=1 << 16)
    big_fill(client, s)
    client.loop.idle(0.1)
    sub = client.subscribe(s, start=w.POSITION, value=0)
    sub.until(MANY, 10)
    assert sub.subscribed.start == 0
    assert sub.deliveries[0].kind == w.GAP and sub.deliveries[0].covered_from == 0
    earliest = client.subscribe(s)
    assert earliest.subscribed.start == sub.gaps[0][1]
    earliest.until(MANY, 10)
    assert offsets(earliest) == list(range(sub.gaps[0][1], MANY))


def test_records_that_expired_are_not_sent(broker, connect, stream):
    client = connect(broker)
    s = stream(client)
    channel = client.channel(s)
    channel.publish(w.batch_body([R(b"stays"), R(b"goes", ttl_ms=20), R(b"long", ttl_ms=600_000)]))
    channel.acked(1)
    client.loop.idle(0.2)
    sub = client.subscribe(s)
    sub.until(3)
    assert [r.value for r in sub.records] == [b"stays", b"long"]


def test_ids_in_use(broker, connect, stream, refused):
    client = connect(broker)
    s = stream(client)
    sub = client.subscribe(s)
    client.send(0, w.subscribe(sub.id, s))
    refused(lambda: client.reply(sub.id), "SubscriptionInUse")
    fill(client, s, 3)
    sub.until(3)
    client.credit(sub, 5)                            # no credit accounting: harmless
    client.send(0, w.credit(4711, 1 << 20))          # nobody's
    client.stats()
    client.send(0, w.subscribe(0, s))
    client.loop.wait(lambda: client.closed or client.control, what="answer to subscription 0")


def test_bounds_of_subscriptions(broker, connect, stream):
    client = connect(broker)
    s = stream(client)
    most = min(client.welcome.subscriptions_max, 3000)
    subs = []
    for i in range(most):
        subs.append(client.subscribe(s, wait=False))
        if i % 50 == 49:
            client.wait(lambda: subs[-1].subscribed or subs[-1].error, 10, "subscriptions")
    client.wait(lambda: all(x.subscribed for x in subs), 10, "all subscriptions")
    if most == client.welcome.subscriptions_max:
        over = client.subscribe(s, wait=False)
        client.wait(lambda: over.error, 5, "TooMany")
        assert w.CODE_NAMES[over.error.code] == "TooMany"
    fill(client, s, 1)
    for sub in subs:
        sub.until(1, 10)
