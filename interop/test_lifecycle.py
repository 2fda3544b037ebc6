"""The end of a broker: drain, crash, restart."""

import signal
import time

import felix_wire as w
from felix_client import Refused


def test_drain_on_sigterm(start, connect, stream):
    broker = start(2)
    clients = [connect(broker, core) for core in (0, 1)]
    s = stream(clients[0])
    channels = [c.channel(s) for c in clients]
    sub = clients[1].subscribe(s)
    broker.signal(signal.SIGTERM)
    for client in clients:
        client.wait(lambda: client.goaway, 3, "Goaway")
        assert w.CODE_NAMES[client.goaway.code] == "Draining" and 0 < client.goaway.drain_ms <= 5000
    # What is under way goes on.
    for i, channel in enumerate(channels):
        channel.publish(w.batch_body([w.Record(b"late")]))
        assert channel.acked(1) == [i]
    sub.until(2)
    begin = time.time()
    clients[0].close()
    code, _ = clients[1].wait_closed(8)
    assert code in (w.CODES["Draining"], 0) and time.time() - begin < 7
    broker.process.wait(5)
    assert broker.process.returncode == 0


def test_drain_ends_early_when_all_have_gone(start, connect):
    broker = start(2)
    client = connect(broker)
    broker.signal(signal.SIGTERM)
    client.wait(lambda: client.goaway, 3, "Goaway")
    client.close()
    begin = time.time()
    broker.process.wait(8)
    assert time.time() - begin < 3 and broker.process.returncode == 0


def test_stateless_reset_after_a_crash(start, connect, loop):
    broker = start(2)
    clients = [connect(broker, core) for core in (0, 1)]
    loop.idle(0.1)
    broker.kill()
    broker.start()
    for client in clients:
        begin = time.time()
        client.send(0, w.get_stats(9))
        client.wait_closed(3)
        assert client.stateless_reset, client.closed
        assert time.time() - begin < 2
    for core in (0, 1):
        assert connect(broker, core).welcome.core == core


def test_data_is_gone_and_said_so_after_a_crash(start, connect, stream, refused):
    """Ephemeral data: a position of before is never taken for one of now."""
    broker = start(2)
    client = connect(broker)
    s = stream(client)
    channel = client.channel(s)
    channel.publish(w.batch_body([w.Record(b"x")]))
    channel.acked(1)
    lineage = channel.opened.lineage
    broker.kill()
    client.drop()
    broker.start()
    client = connect(broker)
    assert client.route(s).shards[0].lineage != lineage
    refused(lambda: client.subscribe(s, start=w.POSITION, lineage=lineage, value=1), "LineageReset")


def test_metadata_outlives_a_crash(start, connect, name, refused):
    """What was answered is there after a kill, and a repeat under the same idempotency key is the same change."""
    broker = start(2)
    client = connect(broker)
    s = name()
    tenant = s.split("/")[0]
    create = w.create_stream(s, w.settings(shards=3, retention_bytes=1 << 20))
    made = client.admin(create, key=77)
    client.admin(w.create_namespace(f"{tenant}/other"), key=78)
    client.admin(w.delete_namespace(f"{tenant}/other"), key=79)
    for _ in range(2):
        broker.kill()
        client.drop()
        broker.start()
        client = connect(broker)
        again = client.admin(create, key=77)
        assert vars(again.stream) == vars(made.stream) and again.version == made.version
        assert vars(client.admin(w.describe_stream(s), key=0).stream) == vars(made.stream)
        assert client.admin(w.list_namespaces(tenant), key=0).items == [f"{tenant}/ns"]
        refused(lambda: client.admin(create, key=80), "AlreadyExists")
        refused(lambda: client.admin(w.delete_stream(s), key=77), "InvalidArgument")


def test_durable_settings_are_checked(broker, connect, name, refused):
    """Settings that do not go together are InvalidArgument; a broker without a store says NotSupported, one with a store
    takes them and gives them back."""
    client = connect(broker)

    def create(**settings):
        s = name()
        return lambda: client.admin(w.create_stream(s, w.settings(**settings)))

    for settings in ({"durability": 2, "interval_ms": 0}, {"durability": 2, "interval_ms": 60001},
                     {"durability": 3, "interval_ms": 50}, {"interval_ms": 50}, {"compact": 1}, {"encrypt": 1},
                     {"durability": 3, "tombstone_grace_ms": 1},
                     {"durability": 3, "compact": 1, "tombstone_grace_ms": 1 << 60}):
        refused(create(**settings), "InvalidArgument")
    good = {"durability": 2, "interval_ms": 50, "compact": 1, "tombstone_grace_ms": 5000, "encrypt": 1}
    try:
        made = create(**good)()
    except Refused as error:
        assert error.name == "NotSupported", str(error)
    else:
        assert [made.stream.settings[it] for it in (2, 7, 8, 9, 10)] == [2, 50, 1, 5000, 1]
