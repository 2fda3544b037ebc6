"""Admin commands, routes, statistics (PROTOCOL.md 4, 8)."""

import secrets

import felix_wire as w


def test_create_describe_alter_delete(any_broker, connect, name, refused):
    client, stream = connect(any_broker), name()
    tenant = stream.split("/")[0]
    made = client.admin(w.create_stream(stream, w.settings(shards=3, retention_bytes=1 << 20)))
    assert made.kind == 2 and made.stream.name == stream
    assert made.stream.settings[1] == 3 and made.stream.settings[3] == 1 << 20
    seen = client.admin(w.describe_stream(stream))
    assert seen.kind == 3 and seen.stream.stream_id == made.stream.stream_id
    assert [s.index for s in seen.shards] == [0, 1, 2]
    assert len({s.shard_id for s in seen.shards}) == 3 and 0 not in {s.shard_id for s in seen.shards}
    assert all(s.core < any_broker.cores and s.log_start == s.high_watermark == 0 for s in seen.shards)
    route = client.route(stream)
    assert route.stream_id == made.stream.stream_id and route.batch_bytes_max == 1_024_000
    assert [s.range_start for s in route.shards] == [w.range_start(i, 3) for i in range(3)]
    assert [(s.shard_id, s.core, s.epoch, s.lineage) for s in route.shards] \
        == [(s.shard_id, s.core, s.epoch, s.lineage) for s in seen.shards]

    altered = client.admin(w.alter_stream(stream, w.settings(retention_bytes=2 << 20, retention_age_ms=60_000),
                                          if_version=made.stream.version))
    assert altered.stream.settings[3] == 2 << 20 and altered.stream.settings[4] == 60_000
    refused(lambda: client.admin(w.alter_stream(stream, w.settings(retention_bytes=3 << 20), if_version=made.stream.version)),
            "VersionMismatch")
    altered = client.admin(w.alter_stream(stream, w.settings(age_none=True)))
    assert 4 not in altered.stream.settings and altered.stream.settings[3] == 2 << 20

    refused(lambda: client.admin(w.delete_tenant(tenant)), "NotEmpty")
    refused(lambda: client.admin(w.delete_namespace(f"{tenant}/ns")), "NotEmpty")
    assert client.admin(w.delete_stream(stream)).kind == 1
    refused(lambda: client.admin(w.describe_stream(stream)), "NotFound")
    refused(lambda: client.route(stream), "NotFound")
    client.admin(w.delete_namespace(f"{tenant}/ns"))
    client.admin(w.delete_tenant(tenant))
    refused(lambda: client.admin(w.list_namespaces(tenant), key=0), "NotFound")


def test_a_stream_made_anew_has_a_new_id(broker, connect, stream):
    client = connect(broker)
    s = stream(client)
    first = client.admin(w.describe_stream(s))
    client.admin(w.delete_stream(s))
    again = client.admin(w.create_stream(s))
    assert again.stream.stream_id != first.stream.stream_id
    assert client.admin(w.describe_stream(s)).shards[0].shard_id != first.shards[0].shard_id


def test_pages_of_lists(broker, connect, name):
    client = connect(broker)
    tenant = name().split("/")[0]
    client.admin(w.create_tenant(tenant))
    for namespace in ("a", "b"):
        client.admin(w.create_namespace(f"{tenant}/{namespace}"))
    names = sorted(f"{tenant}/a/s{i}" for i in range(130)) + [f"{tenant}/b/x"]
    for batch in range(0, len(names), 20):
        ids = [client.id() for _ in names[batch:batch + 20]]
        for id_, n in zip(ids, names[batch:batch + 20]):
            client.send(0, w.admin(id_, w.create_stream(n, parents=False)))
        for id_ in ids:
            client.reply(id_)
    first = client.admin(w.list_streams(tenant), key=0)
    assert [s.name for s in first.items] == names[:128] and first.more
    second = client.admin(w.list_streams(tenant, after=first.items[-1].name), key=0)
    assert [s.name for s in second.items] == names[128:] and not second.more
    assert [s.name for s in client.admin(w.list_streams(tenant, "b"), key=0).items] == [f"{tenant}/b/x"]
    spaces = client.admin(w.list_namespaces(tenant), key=0)
    assert spaces.items == [f"{tenant}/a", f"{tenant}/b"] and not spaces.more
    assert client.admin(w.list_namespaces(tenant, "a"), key=0).items == [f"{tenant}/b"]
    assert [t.streams for t in client.admin(w.list_tenants(), key=0).items if t.name == tenant] == [131]


def test_idempotency_key(broker, connect, name, refused):
    client, s = connect(broker), name()
    key = secrets.randbits(128)
    made = client.admin(w.create_stream(s), key)
    again = client.admin(w.create_stream(s), key)
    assert again.stream.stream_id == made.stream.stream_id
    # ... also from another connection, and after the stream has gone.
    assert connect(broker).admin(w.create_stream(s), key).stream.stream_id == made.stream.stream_id
    refused(lambda: client.admin(w.create_stream(s)), "AlreadyExists")
    client.admin(w.delete_stream(s))
    client.admin(w.create_stream(s), key)
    refused(lambda: client.admin(w.describe_stream(s), key=0), "NotFound")


def test_errors(broker, connect, name, refused):
    client, s = connect(broker), name()
    tenant = s.split("/")[0]
    refused(lambda: client.admin(w.create_stream(s, parents=False)), "NotFound")
    client.admin(w.create_stream(s))
    refused(lambda: client.admin(w.create_stream(s)), "AlreadyExists")
    refused(lambda: client.admin(w.create_tenant(tenant)), "AlreadyExists")
    refused(lambda: client.admin(w.create_namespace(f"{tenant}/ns")), "AlreadyExists")
    for durability in (1, 2, 3, 4):
        client.admin(w.create_stream(name(), w.settings(durability=durability)))
    refused(lambda: client.admin(w.create_stream(name(), w.settings(durability=9))), "InvalidArgument")
    for shards in (0, 1025):
        refused(lambda: client.admin(w.create_stream(name(), w.settings(shards=shards))), "InvalidArgument")
    other = connect(broker)
    other.send(0, w.admin(2, w.alter_stream(s, w.settings(shards=2))))
    assert other.wait_closed()[0] == w.CODES["UnknownMandatoryField"], "shards is no change"
    for bad in ("", "x", "a/b", "A/b/c", "a/b/c/d", "a//c", "-a/b/c", "a-/b/c", "a/b/-c", "a/b/c c", "a/b/" + "s" * 128,
                "a" * 64 + "/b/c", "a/b/é", "a/b/c\n"):
        refused(lambda: client.admin(w.create_stream(bad)), "InvalidName")
        refused(lambda: client.route(bad), "InvalidName")
    refused(lambda: client.admin(w.create_tenant("a/b")), "InvalidName")
    refused(lambda: client.admin(w.delete_stream(name())), "NotFound")
    refused(lambda: client.admin(w.alter_stream(name(), w.settings(retention_bytes=1 << 20))), "NotFound")
    refused(lambda: client.admin(w.delete_tenant(name().split("/")[0])), "NotFound")
    client.admin(w.create_stream("a1/b2/" + "s" * 127))


def test_quotas_of_a_tenant(broker, connect, name, refused):
    client, tenant = connect(broker), name().split("/")[0]
    client.admin(w.create_tenant(tenant, w.limits(streams=2, shards=4, retained=1 << 30)))
    client.admin(w.create_stream(f"{tenant}/n/a", w.settings(shards=3)))
    refused(lambda: client.admin(w.create_stream(f"{tenant}/n/b", w.settings(shards=2))), "QuotaExceeded")
    refused(lambda: client.admin(w.create_stream(f"{tenant}/n/b", w.settings(retention_bytes=1 << 30))), "QuotaExceeded")
    refused(lambda: client.admin(w.alter_stream(f"{tenant}/n/a", w.settings(retention_bytes=1 << 29))), "QuotaExceeded")
    client.admin(w.create_stream(f"{tenant}/n/b"))
    client.admin(w.alter_stream(f"{tenant}/n/a", w.settings(retention_bytes=1 << 20)))
    refused(lambda: client.admin(w.create_stream(f"{tenant}/n/c")), "QuotaExceeded")
    client.admin(w.delete_stream(f"{tenant}/n/b"))
    client.admin(w.create_stream(f"{tenant}/n/c"))


def test_malformed_documents_close_the_connection(broker, raw, connect):
    s = w.bytes16("a/b/c")
    for command in (b"", b"\x63", b"\x17", w.describe_stream("a/b/c") + b"x", b"\x14" + s + w.settings() + b"\2",
                    b"\x14" + s + w.bytes16(b"\1\x80\4\0\1"), b"\x18\2", b"\x17\2\0\xff\xfe"):
        client = connect(broker)
        client.send(0, w.admin(2, command))
        assert client.wait_closed()[0] == w.CODES["MalformedFrame"], command
    client = connect(broker)
    client.send(0, w.admin(2, b"\x14" + s + w.bytes16(w.setting(99, 1, 4)) + b"\1"))
    code = client.loop.wait(lambda: client.closed or client.control, what="answer")
    assert (client.closed or (w.read_error(client.control[0]).code,))[0] == w.CODES["UnknownMandatoryField"], code


def test_statistics(any_broker, connect, stream):
    client = connect(any_broker)
    s = stream(client)
    channel = client.channel(s)
    body = w.batch_body([w.Record(b"x" * 10) for _ in range(5)])
    channel.publish(body)
    channel.acked(1)
    sub = client.subscribe(s)
    sub.until(5)

    client.wait(lambda: (r := client.stats_of(s)) and r.records_in == r.records_out == 5 and client.stats().connections, 5, "statistics")
    r = client.stats_of(s)
    assert r.subscriptions == 1 and r.lag_records_max == 0 and r.gap_records == 0
    assert r.bytes_in == r.bytes_out == r.retained_bytes == len(body) + 80
