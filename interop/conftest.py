"""Starts real brokers for the tests. The binary: $FELIX_BROKER, or target/debug/felix-broker."""

import fcntl
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import felix_wire as w  # noqa: E402
from felix_client import Client, Loop, Refused  # noqa: E402

ROOT = Path(__file__).parent.parent
BINARY = os.environ.get("FELIX_BROKER", str(ROOT / "target/debug/felix-broker"))
NAMES = itertools.count()


PORTS = []


def free_port(kind):
    """A port of this process's own until it ends, over restarts of a broker: outside those that the kernel hands to clients,
    which come while the broker is down. The Rust tests take the same locks (broker/tests/broker_process/ports.rs)."""
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    # Where all are handed out, the locks must do.
    outside = [port for port in range(10_000, 65_000) if not low <= port <= high] or list(range(10_000, 65_000))
    folder = Path(tempfile.gettempdir()) / f"felix-test-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    begin = os.getpid() * 61 % len(outside)
    for port in outside[begin:] + outside[:begin]:
        lock = open(folder / str(port), "w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket(socket.AF_INET, kind) as s:
                s.bind(("127.0.0.1", port))
        except OSError:
            lock.close()
            continue
        PORTS.append(lock)
        return port
    raise RuntimeError(f"no port is free outside {low} to {high}")


class Broker:
    def __init__(self, folder, cores, *options):
        # More cores than CPUs are only allowed by name: they share then.
        cpus = sorted(os.sched_getaffinity(0))
        shared = () if cores <= len(cpus) else ("--cpus", ",".join(str(cpus[i % len(cpus)]) for i in range(cores)))
        self.folder, self.cores, self.options = Path(folder), cores, (*shared, *options)
        self.port, self.http_port = free_port(socket.SOCK_DGRAM), free_port(socket.SOCK_STREAM)
        self.process = None
        self.start()

    @property
    def context(self):
        return self.folder / "context.toml"

    @property
    def address(self):
        return ("127.0.0.1", self.port)

    def start(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = open(self.folder / "log.jsonl", "ab")
        self.process = subprocess.Popen(
            [BINARY, "dev", "--data", str(self.folder), "--listen", f"127.0.0.1:{self.port}", "--http", f"127.0.0.1:{self.http_port}",
             "--cores", str(self.cores), "--wait", "park", *self.options], stdout=self.log, stderr=self.log)
        end = time.time() + 15
        while time.time() < end:
            assert self.process.poll() is None, f"the broker did not start:\n{self.log_text()}"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/readyz", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except (OSError, urllib.error.URLError):
                pass
            time.sleep(0.02)
        raise TimeoutError(f"the broker is not ready:\n{self.log_text()}")

    def log_text(self):
        return (self.folder / "log.jsonl").read_text(errors="replace")[-4000:]

    def signal(self, number):
        self.process.send_signal(number)

    def stop(self):
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
                raise
        self.log.close()

    def kill(self):
        self.process.kill()
        self.process.wait(5)

    def alive(self):
        return self.process.poll() is None

    def metrics(self):
        """Every metric, summed over its labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/metrics", timeout=5) as answer:
            out = {}
            for line in answer.read().decode().splitlines():
                if match := re.match(r"(\w+)(?:\{.*\})? (\S+)$", line):
                    out[match[1]] = out.get(match[1], 0) + float(match[2])
            return out

    def metric(self, name):
        return self.metrics()[name]

    def wait_metric(self, name, least, loop=None, timeout=4.0):
        """Metrics are as old as the cores' last report: waits until one is at least `least`."""
        end = time.time() + timeout
        while (value := self.metric(name)) < least:
            assert time.time() < end, f"{name} is {value}, {least} wanted"
            loop.idle(0.05) if loop else time.sleep(0.05)
        return value

    def settled(self, name, loop=None):
        """A metric after it stood still for longer than the half second that an idle core may leave it as it was."""
        value, still = self.metric(name), 0
        while still < 5:
            loop.idle(0.15) if loop else time.sleep(0.15)
            now = self.metric(name)
            still = still + 1 if now == value else 0
            value = now
        return value

    def rss(self):
        """Resident bytes."""
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


def broker_fixture(cores, folder):
    broker = Broker(folder, cores)
    yield broker
    broken = None if broker.alive() else broker.log_text()
    broker.stop()
    assert broken is None, f"the broker died:\n{broken}"


@pytest.fixture(scope="session")
def broker_of_2(tmp_path_factory):
    yield from broker_fixture(2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="session")
def broker_of_4(tmp_path_factory):
    yield from broker_fixture(4, tmp_path_factory.mktemp("four"))


@pytest.fixture
def broker(broker_of_2):
    return broker_of_2


@pytest.fixture(params=[2, 4], ids=["2cores", "4cores"])
def any_broker(request):
    return request.getfixturevalue(f"broker_of_{request.param}")


@pytest.fixture
def start(tmp_path):
    """Starts brokers of this test alone."""
    brokers = []

    def make(cores=2, *options):
        brokers.append(Broker(tmp_path / f"b{len(brokers)}", cores, *options))
        return brokers[-1]

    yield make
    for broker in brokers:
        broker.stop()


@pytest.fixture
def loop():
    loop = Loop()
    yield loop
    for client in list(loop.clients):
        client.close()


@pytest.fixture
def connect(loop):
    """Connects to a broker: handshake, Hello, Welcome."""

    def make(broker, core=None, hello=None, **options):
        client = Client(loop, broker.context, core=core, cores=broker.cores, **options)
        return client.connect(**(hello or {}))

    return make


@pytest.fixture
def raw(loop):
    """Connects without Hello."""

    def make(broker, core=None, handshake=True, **options):
        client = Client(loop, broker.context, core=core, cores=broker.cores, **options)
        if handshake:
            client.wait(lambda: client.tls_done, 5, "TLS handshake")
        return client

    return make


@pytest.fixture
def name():
    """A stream name nobody else uses."""
    return lambda: f"t{next(NAMES)}/ns/s"


@pytest.fixture
def stream(name):
    """Creates a stream under a fresh name."""

    def make(client, shards=1, **settings):
        fresh = name()
        client.admin(w.create_stream(fresh, w.settings(shards=shards, **settings)))
        return fresh

    return make


@pytest.fixture
def refused():
    """refused(call, "NotFound"): the call is answered with that Error."""

    def check(call, code):
        with pytest.raises(Refused) as caught:
            call()
        assert caught.value.name == code, str(caught.value)
        return caught.value

    return check
