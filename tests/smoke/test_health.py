"""Probes of real processes, over HTTP and by `celery neli health`: beats, and workers with each pool."""

from __future__ import annotations

import json
import signal
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from celery import Celery

from celery_neli.election.lease import boottime
from tests import services
from tests.kafka.cluster import KafkaCluster
from tests.processes import free_ports, wait_until

if TYPE_CHECKING:
    from tests.brokers.redis_server import RedisServer
    from tests.smoke.members import Members, Process

pytestmark = [pytest.mark.smoke, pytest.mark.slow]

POOLS = ("prefork", "threads", "solo", "gevent")


def ask(port: int, path: str, *, timeout: float = 5.0) -> tuple[int, str]:
    """Return status and text of a page."""
    connection = HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def status(port: int, path: str) -> int:
    """Return the status of a page; 0 while nobody answers."""
    try:
        return ask(port, path)[0]
    except OSError:
        return 0


def at(port: int, *, election: str = "beat") -> dict[str, Any]:
    """Settings with which a process answers there."""
    return {"neli_http": {election: f"127.0.0.1:{port}"}}


def wait_for(port: int, path: str, wanted: int, *, timeout: float = 40.0) -> None:
    wait_until(lambda: status(port, path) == wanted, timeout=timeout, what=f"{wanted} from :{port}{path}")


@pytest.fixture
def noted(on_node: Members, tmp_path: Path) -> Members:
    """An election whose processes keep their notes in the test's directory."""
    on_node.settings["neli_health_dir"] = str(tmp_path / "health")
    return on_node


def probe(members: Members, *arguments: str) -> tuple[int, str]:
    """Return exit status and output of `celery neli health`."""
    done = members.run("neli", "health", *arguments)
    return done.returncode, done.stdout + done.stderr


def test_beats_show_who_is_well_ready_and_leads(noted: Members) -> None:
    """A standby is ready, `/leader` follows a handover within a second, a stopped process is found, the dead go."""
    ports = dict(zip(("one", "two"), free_ports(2), strict=True))
    beats = {name: noted.beat(name=name, **at(port)) for name, port in ports.items()}
    for port in ports.values():
        wait_for(port, "/readyz", 200)
        assert ask(port, "/livez") == (200, "ok\n")
    leader = noted.wait_leader()
    other = next(each for each in beats.values() if each is not leader)
    wait_for(ports[leader.name], "/leader", 200, timeout=1)
    assert ask(ports[leader.name], "/leader?role=leader") == (200, "leads leader\n")
    assert ask(ports[other.name], "/leader/leader") == (503, "it does not lead leader\n")

    wait_until(lambda: probe(noted, "--leader", "--ready")[0] == 0, timeout=10, what="both notes")
    code, said = probe(noted)
    assert code == 0
    assert f"beat {leader.name} pid={leader.process.pid}: well, leads leader\n" in said
    assert f"beat {other.name} pid={other.process.pid}: well\n" in said
    assert probe(noted, "--leader", "mail")[0] == 1
    assert probe(noted, "--election", "worker")[0] == 1

    began = boottime()
    assert noted.run("neli", "resign").returncode == 0
    _, acquired = noted.wait_acquired(began, but=leader)
    wait_for(ports[other.name], "/leader", 200, timeout=1)
    print(f"\n/leader followed {boottime() - acquired.at:.2f} s after the acquisition (and the end of the command)")
    assert status(ports[leader.name], "/leader") == 503

    leader.signal(signal.SIGSTOP)
    code, said = probe(noted, "--json")
    assert code == 1
    found = {each["name"]: each for each in json.loads(said)["processes"]}
    assert found[leader.name]["why"][0] == "a signal or a debugger has stopped it"
    assert found[other.name]["live"]
    leader.signal(signal.SIGCONT)
    assert ask(ports[leader.name], "/livez") == (200, "ok\n")
    wait_until(lambda: probe(noted)[0] == 0, timeout=10, what="all well again")

    other.signal(signal.SIGKILL)
    other.wait_end()
    code, said = probe(noted)
    assert code == 0
    assert f"{other.name} pid={other.process.pid}: has ended without a word" in said
    assert other.name not in probe(noted)[1]
    leader.signal(signal.SIGTERM)
    assert leader.wait_end() == 0
    assert probe(noted)[0] == 1
    assert list(Path(noted.settings["neli_health_dir"]).rglob("*.json")) == []


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_answers_while_tasks_run(pool: str, noted: Members) -> None:
    """With every pool, also on a busy main thread; and no child holds the server's socket, so the port ends with it."""
    (port,) = free_ports(1)
    options = ("--max-tasks-per-child", "1") if pool == "prefork" else ()
    worker = noted.worker("-P", pool, "-c", "1", *options, name="one", **at(port, election="worker"))
    wait_for(port, "/readyz", 200)
    with Celery("client", broker=noted.settings["broker_url"], set_as_current=False) as client:
        for seconds in (0.1, 8):  # prefork: the second runs in a child that was forked after the server began
            client.send_task("smoke.sleep", [seconds])
    wait_until(lambda: worker.log.count("smoke.sleep") >= 2, timeout=20, what="both tasks")
    end = time.monotonic() + 4
    while time.monotonic() < end:
        assert ask(port, "/livez", timeout=1) == (200, "ok\n")
        time.sleep(0.1)
    assert probe(noted)[0] == 0
    if pool == "prefork":
        children = psutil.Process(worker.process.pid).children(recursive=True)
        assert len(children) == 1
        held = [each for each in children[0].net_connections("tcp") if each.laddr and each.laddr.port == port]
        assert held == []
        descriptors = {str(each.readlink()) for each in Path(f"/proc/{children[0].pid}/fd").iterdir()}
        assert not descriptors & {listening(worker.process.pid, port)}
    assert status(port, "/leader") == 200


def listening(pid: int, port: int) -> str:
    """Return the name of the listening socket, as /proc/PID/fd shows it."""
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(f":{port:04X}") and fields[3] == "0A":
            return f"socket:[{fields[9]}]"
    raise AssertionError(f"nobody listens on {port}")


def test_a_loop_that_hangs_is_found(noted: Members) -> None:
    """The main thread of a beat and of workers, and gevent's hub; not sooner than it may take, and nothing else is."""
    noted.settings["neli_stall_timeout"] = 2
    ports = free_ports(1 + len(POOLS))
    processes: list[Process] = [noted.beat(name="beat", **at(ports[0]))]
    for pool, port in zip(POOLS, ports[1:], strict=True):
        processes.append(noted.worker("-P", pool, "-c", "1", name=pool, **at(port, election="worker")))
    for port in ports:
        wait_for(port, "/readyz", 200, timeout=90)
    for each in processes[1:]:  # then it knows what to do with the signal
        wait_until(lambda each=each: " ready." in each.log, timeout=30, what="the worker")
    began = time.monotonic()
    for each in processes:
        each.process.send_signal(signal.SIGUSR2)
    for each, port in zip(processes, ports, strict=True):
        wait_for(port, "/livez", 503, timeout=60)
        print(f"\n{each.name}: {time.monotonic() - began:.0f} s: {ask(port, '/livez')[1]}", end="")
        assert time.monotonic() - began > 12
        assert "has not moved for" in ask(port, "/livez")[1]
        assert "the thread that renews" not in ask(port, "/livez")[1]
    wait_until(lambda: probe(noted)[1].count("NOT WELL") == len(processes), timeout=20, what="all in the notes")
    assert "gevent's hub" in probe(noted)[1]
    assert probe(noted)[0] == 1


def test_a_task_broker_away_is_no_reason_to_restart(noted: Members, own_redis: RedisServer) -> None:
    """Processes stay live while it is, for longer than anything may stand still; a worker is not ready."""
    noted.settings.update(broker_url=own_redis.url, neli_stall_timeout=2)
    ports = free_ports(3)
    noted.beat(name="beat", **at(ports[0]))
    for pool, port in zip(("prefork", "gevent"), ports[1:], strict=True):
        noted.worker("-P", pool, "-c", "1", name=pool, **at(port, election="worker"))
    for port in ports:
        wait_for(port, "/readyz", 200)
    own_redis.stop()
    for port in ports[1:]:
        wait_until(lambda port=port: "task broker" in ask(port, "/readyz")[1], timeout=20, what="the reason")
    end = time.monotonic() + 25
    while time.monotonic() < end:
        assert [ask(port, "/livez")[0] for port in ports] == [200, 200, 200]
        time.sleep(0.5)
    own_redis.start()
    for port in ports:
        wait_for(port, "/readyz", 200)


def test_kafka_away_is_no_reason_to_restart(election: Members, kafka_libs: Path, tmp_path: Path) -> None:
    """Processes stay live, and say that they are not ready until Kafka is back."""
    election.settings["neli_health_dir"] = str(tmp_path / "health")
    cluster = KafkaCluster(nodes=1, java=services.java() or "", libs=kafka_libs, directory=tmp_path / "kafka")
    election.settings["neli_kafka"] = cluster.bootstrap_servers
    election.settings["neli_stall_timeout"] = 2
    ports = free_ports(2)
    try:
        election.beat(name="beat", **at(ports[0]))
        election.worker("-P", "threads", name="worker", **at(ports[1], election="worker"))
        for port in ports:
            wait_for(port, "/livez", 200)
            assert ask(port, "/readyz")[0] == 503
        cluster.start()
        for port in ports:
            wait_for(port, "/readyz", 200)
        cluster.stop()
        for port in ports:
            wait_for(port, "/readyz", 503)
            wait_until(lambda port=port: "no broker of Kafka" in ask(port, "/readyz")[1], timeout=20, what="the reason")
        end = time.monotonic() + 20  # longer than anything may stand still
        while time.monotonic() < end:
            assert [ask(port, "/livez")[0] for port in ports] == [200, 200]
            time.sleep(0.5)
        assert probe(election)[0] == 0
        code, said = probe(election, "--ready")
        assert code == 1
        assert "well, not ready: no broker of Kafka answers" in said or "; no broker of Kafka answers" in said
        cluster.start()
        for port in ports:
            wait_for(port, "/readyz", 200, timeout=60)
    finally:
        election.stop()
        cluster.stop()
