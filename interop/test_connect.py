"""Handshake, steering, Welcome (PROTOCOL.md 1, 4, 6.1)."""

import time

import felix_wire as w


def test_welcome(any_broker, connect):
    client = connect(any_broker)
    welcome = client.welcome
    assert client.tls_done == "felix/1"
    assert welcome.core_count == any_broker.cores
    assert welcome.features == w.DATAGRAM | w.COMPRESSION | w.PRODUCERS
    assert welcome.cluster and welcome.node and welcome.session
    assert abs(welcome.time / 1e9 - time.time()) < 5
    assert welcome.channels_max > 0 and welcome.subscriptions_max > 0 and welcome.requests_max > 0
    assert welcome.principal


def test_first_byte_of_the_connection_id_chooses_the_core(any_broker, connect):
    for _ in range(3):
        for core in range(any_broker.cores):
            client = connect(any_broker, core)
            assert client.welcome.core == core
            assert len(client.quic._peer_cid.cid) == 16
            assert client.quic._peer_cid.cid[0] % any_broker.cores == core
            client.close()



def test_features_are_what_both_have(broker, connect):
    assert connect(broker, hello={"features": w.PRODUCERS | 1 << 40}).welcome.features == w.PRODUCERS
    assert connect(broker, hello={"features": 0}).welcome.features == 0


def test_known_cluster_is_welcome(broker, connect):
    cluster = connect(broker).welcome.cluster
    assert connect(broker, hello={"cluster": cluster}).welcome.cluster == cluster


def test_session_grows_with_every_start(start, connect):
    broker = start(2)
    first = connect(broker).welcome
    broker.stop()
    broker.start()
    second = connect(broker).welcome
    assert second.session > first.session
    assert (second.node, second.cluster) == (first.node, first.cluster)


def test_retry(start, connect):
    broker = start(2, "--retry-above", "0")
    for core in (0, 1, 0, 1):
        client = connect(broker, core)
        assert client.quic._retry_count == 1, "no Retry came"
        assert client.welcome.core == core


def test_connection_id_change_keeps_the_connection(any_broker, connect):
    client = connect(any_broker, 1)
    client.loop.wait(lambda: client.quic._peer_cid_available, 2, "spare connection id")
    for _ in range(2):
        client.quic.change_connection_id()
        assert client.quic._peer_cid.cid[0] % any_broker.cores == 1
        client.stats()
        client.loop.wait(lambda: client.quic._peer_cid_available, 2, "spare connection id")
