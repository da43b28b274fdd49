"""With the rights that docs/operations.md names everything works on a secured Kafka; one that is missing is named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from celery_neli.kafka.topic_spec import HISTORY, LEADER, SCHEDULE
from tests.kafka.secured import Right, SecuredKafka, User
from tests.processes import wait_until
from tests.smoke.members import Members, members

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.smoke.members import Process

pytestmark = [pytest.mark.smoke, pytest.mark.slow]

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
ROW = re.compile(
    r"^\| (?P<who>[^|]+?) \| (?P<leader>[^|]+) \| (?P<schedule>[^|]+) \| (?P<history>[^|]+) \| (?P<group>[^|]+) \|$",
    re.MULTILINE,
)
COLUMNS = ("leader", "schedule", "history", "group")


def documented(who: str) -> list[tuple[str, str]]:
    """The rights of the row of docs/operations.md that begins with `who`: column and operation."""
    section = OPERATIONS.read_text(encoding="utf-8").partition("## Rights")[2].partition("\n## ")[0]
    (row,) = [row for row in ROW.finditer(section) if row["who"].startswith(who)]
    return [(column, operation) for column in COLUMNS for operation in re.findall(r"`(\w+)`", row[column])]


def ids(rights: list[Any]) -> list[str]:
    return [f"{operation} on {column}" for column, operation in rights]


class Secured:
    """An election on the secured Kafka, whose topics exist, and a user without rights."""

    def __init__(self, started: Members, kafka: SecuredKafka, user: User) -> None:
        self.members, self.kafka, self.user = started, kafka, user

    def make_topics(self, election: str) -> None:
        """As members would, had they the right to."""
        topic = f"{self.members.group}.{election}.neli"
        self.kafka.create_topic(topic, config=LEADER)
        if election == "beat":
            self.kafka.create_topic(f"{topic}.schedule", partitions=17, config=SCHEDULE)
        self.kafka.create_topic(f"{self.members.group}.beat.neli.history", partitions=4, config=HISTORY)

    def right(self, election: str, column: str, operation: str) -> Right:
        group = f"{self.members.group}.{election}"
        history = f"{self.members.group}.beat.neli.history"
        names = {"leader": f"{group}.neli", "schedule": f"{group}.neli.schedule", "history": history, "group": group}
        return Right(operation, "group" if column == "group" else "topic", names[column])

    def grant(self, who: str, election: str, *, but: tuple[str, str] | None = None) -> Right | None:
        """Give what the documents name for `who`, `but` one; return that one."""
        given = [self.right(election, *each) for each in documented(who) if each != but]
        if given:
            self.kafka.grant(self.user, *given)
        return None if but is None else self.right(election, *but)


@pytest.fixture
def secured(tmp_path: Path, names: Callable[[str], str], secured_kafka: SecuredKafka) -> Iterator[Secured]:
    user = secured_kafka.create_user(names("user"))
    settings = {
        "neli_group": names("g"),
        "broker_url": "memory://",
        "neli_alarms": False,  # they have rights of their own, on which nothing rests: the last test
        "neli_kafka": secured_kafka.properties(user),
        "beat_schedule": {"tick": {"task": "smoke.tick", "schedule": 1.0}},
    }
    with members(tmp_path, **settings) as started:
        yield Secured(started, secured_kafka, user)


def complaints(member: Process) -> list[str]:
    """The lines of its log from WARNING on, but those of Celery's own."""
    lines = re.findall(r"^\[[^\]]*: (?:WARNING|ERROR|CRITICAL)/[^\]]*\] (.*)$", member.log, re.MULTILINE)
    return [line for line in lines if not line.startswith(("No hostname", "You're running"))]


def start(secured: Secured, election: str) -> Process:
    return secured.members.beat() if election == "beat" else secured.members.worker("-P", "solo", name="worker1")


@pytest.mark.parametrize(("who", "election"), [("a beat", "beat"), ("a worker", "worker")])
def test_a_member_with_the_documented_rights_leads(secured: Secured, who: str, election: str) -> None:
    """And complains of nothing."""
    secured.make_topics(election)
    secured.grant(who, election)
    member = start(secured, election)
    wait_until(lambda: "leadership acquired" in member.log, timeout=60, what="a leader")
    assert complaints(member) == []


MEMBERS = [("a beat", "beat", each) for each in documented("a beat")]
MEMBERS += [("a worker", "worker", each) for each in documented("a worker")]


@pytest.mark.parametrize(
    ("who", "election", "but"), MEMBERS, ids=[f"{election}, {but[1]} on {but[0]}" for _, election, but in MEMBERS]
)
def test_a_member_names_the_right_that_is_missing(
    secured: Secured, who: str, election: str, but: tuple[str, str]
) -> None:
    """In one line with the command, once. Without a right on a topic it does not claim, but for the history topic, on
    which nothing rests; given the right it leads, and records.
    """
    secured.make_topics(election)
    missing = secured.grant(who, election, but=but)
    assert missing is not None
    member = start(secured, election)
    command = f"--add --allow-principal User:{secured.user.name} --operation {missing.operation} "
    command += f"--{missing.kind} {missing.name}"
    wait_until(lambda: command in member.log, timeout=60, what=f"the missing right, see {member.directory}")
    if but[0] in ("group", "history"):  # the lease works without the group, only later
        wait_until(lambda: "leadership acquired" in member.log, timeout=60, what="a leader")
    else:
        assert "leadership acquired" not in member.log
    (line,) = complaints(member)
    assert command in line
    secured.kafka.grant(secured.user, missing)
    again = "group joined, after all" if missing.kind == "group" else "topic usable again"
    wait_until(lambda: "leadership acquired" in member.log and again in member.log, timeout=60, what="a leader")
    assert complaints(member) == [line]


def test_a_member_that_may_not_create_its_topics_says_who_can(secured: Secured) -> None:
    """Of each topic, with the command that makes it and the right that would do; given that, it makes them."""
    secured.grant("a beat", "beat")
    create = [secured.right("beat", column, "Create") for column in ("leader", "schedule", "history")]
    beat, address = secured.members.beat(), secured.kafka.address("SASL_SSL")

    def says_who_can(right: Right) -> None:
        wait_until(lambda: f"lacks the right {right}: " in beat.log, timeout=60, what=str(right))
        assert f"kafka-topics.sh --bootstrap-server {address} --create --topic {right.name} " in beat.log

    *needed, history = create
    for right in needed:
        says_who_can(right)
    assert len(complaints(beat)) == 2
    secured.kafka.grant(secured.user, *needed)
    wait_until(lambda: "leadership acquired" in beat.log, timeout=60, what="a leader")
    says_who_can(history)  # once there is something to record; it leads all the same
    assert len(complaints(beat)) == 3
    assert beat.log.count("topic usable again") == 2
    secured.kafka.grant(secured.user, history)
    wait_until(lambda: beat.log.count("topic usable again") == 3, timeout=60, what="history")
    assert len(complaints(beat)) == 3


def test_a_member_that_may_not_add_partitions_says_who_can(secured: Secured) -> None:
    """For a role that was appended; given the right, it adds them."""
    secured.make_topics("worker")
    secured.grant("a worker", "worker")
    alter = secured.right("worker", "leader", "Alter")
    worker = secured.members.worker("-P", "solo", name="worker1", neli_roles=["a", "b"])
    wait_until(lambda: f"lacks the right {alter}: " in worker.log, timeout=60, what="the missing right")
    (line,) = complaints(worker)
    assert f"--alter --topic {alter.name} --partitions 2" in line
    secured.kafka.grant(secured.user, alter)
    wait_until(lambda: worker.log.count("leadership acquired") == 2, timeout=60, what="both roles")
    assert complaints(worker) == [line]


@pytest.mark.parametrize("column", ["leader", "schedule"])
@pytest.mark.parametrize("operation", ["Read", "Write"])
def test_a_leader_that_loses_a_right_says_so(secured: Secured, column: str, operation: str) -> None:
    """It leads no more, names the right once, and leads again when it has it."""
    secured.make_topics("beat")
    secured.grant("a beat", "beat")
    member = secured.members.beat()
    wait_until(lambda: "leadership acquired" in member.log, timeout=60, what="a leader")
    lost = secured.right("beat", column, operation)
    secured.kafka.revoke(secured.user, lost)
    command = f"--operation {operation} --topic {lost.name}"
    ended = re.compile("leadership (revoked|fenced)")
    wait_until(lambda: command in member.log and ended.search(member.log), timeout=60, what="the end of its term")
    secured.kafka.grant(secured.user, lost)
    wait_until(lambda: member.log.count("leadership acquired") == 2, timeout=60, what="another term")
    assert member.log.count(command) == 1
    assert member.log.count("topic usable again") == 1
    assert "deaf" not in member.log
    assert "stands still" not in member.log


PERIODIC = documented("a web application")


def test_a_web_application_with_the_documented_rights_manages_entries(secured: Secured) -> None:
    """It needs no right on a group, and none on the leader topic."""
    secured.make_topics("beat")
    secured.grant("a web application", "beat")
    for command in (
        ["add", "e", "smoke.tick", "PT1M"],
        ["list"],
        ["pause", "e"],
        ["resume", "e"],
        ["show", "e"],
        ["remove", "e"],
    ):
        done = secured.members.run("neli", "schedule", *command)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout


@pytest.mark.parametrize("but", PERIODIC, ids=ids(PERIODIC))
def test_a_web_application_is_told_which_right_is_missing(secured: Secured, but: tuple[str, str]) -> None:
    """In one line."""
    secured.make_topics("beat")
    missing = secured.grant("a web application", "beat", but=but)
    done = secured.members.run("neli", "schedule", "add", "e", "t", "PT1M")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"lacks the right {missing}: kafka-acls.sh" in line


HISTORY_READER = documented("`periodic.runs`")


def test_the_run_history_with_the_documented_right_is_read(secured: Secured) -> None:
    """It needs no other; without it, one line names it."""
    secured.make_topics("beat")
    (missing,) = [secured.right("beat", *each) for each in HISTORY_READER]
    done = secured.members.run("neli", "schedule", "runs")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"lacks the right {missing}: kafka-acls.sh" in line
    secured.kafka.grant(secured.user, missing)
    done = secured.members.run("neli", "schedule", "runs", "--since", "2h")
    assert (done.returncode, done.stdout, done.stderr) == (0, "no runs recorded\n", "")


def status(secured: Secured, *arguments: str) -> tuple[int, str, str]:
    done = secured.members.run("neli", "status", *arguments)
    return done.returncode, done.stdout, done.stderr


STATUS = documented("`celery neli status`")


@pytest.fixture
def led(secured: Secured) -> Process:
    """A beat of another user leads."""
    secured.make_topics("beat")
    beat = secured.members.beat(neli_kafka=secured.kafka.properties())
    wait_until(lambda: "leadership acquired" in beat.log, timeout=60, what="a leader")
    return beat


def test_status_with_the_documented_rights_tells_all(secured: Secured, led: Process) -> None:
    """Who leads, the members, and their schedules."""
    secured.grant("`celery neli status`", "beat")

    def everything() -> bool:
        code, out, _ = status(secured, "--election", "beat")
        return code == 0 and f"{led.name} leads" in out and "members: 1" in out and "schedule " in out

    wait_until(everything, timeout=90, what="the member's note", interval=0.5)
    assert "could not be checked" not in status(secured, "--election", "beat")[1]


@pytest.mark.parametrize("but", STATUS, ids=ids(STATUS))
@pytest.mark.usefixtures("led")
def test_status_names_the_right_that_is_missing(secured: Secured, but: tuple[str, str]) -> None:
    """It never says that the topic does not exist; what can be told is told."""
    missing = secured.grant("`celery neli status`", "beat", but=but)
    code, out, error = status(secured, "--election", "beat")
    assert (out + error).count(f"lacks the right {missing}: kafka-acls.sh") == 1
    assert "does not exist" not in out + error
    assert code == (1 if but[0] == "leader" else 0)
    told = json.loads(status(secured, "--json", "--election", "beat")[1])
    assert f"lacks the right {missing}" in json.dumps(told)


@pytest.mark.usefixtures("led")
def test_status_of_all_elections_is_no_failure_for_want_of_rights_on_another(secured: Secured) -> None:
    """Whoever runs beats alone has none on the workers' topic, which need not exist: it is a remark, not an error."""
    secured.grant("`celery neli status`", "beat")
    code, out, error = status(secured)
    assert (code, "leads" in out) == (0, True)
    assert f"could not be checked: the user {secured.user.name} lacks the right Read on the topic" in error
    assert [each["election"] for each in json.loads(status(secured, "--json")[1])["elections"]] == ["beat"]


def test_status_before_any_member_has_started_says_so(secured: Secured) -> None:
    """With the right to look; what other elections lack is a remark."""
    secured.grant("`celery neli status`", "beat")
    code, out, error = status(secured)
    assert code == 1
    assert "the leader topic does not exist: no member has started yet" in out
    assert "worker.neli" in error


RESIGN = documented("`celery neli resign`")


@pytest.mark.usefixtures("led")
def test_resign_with_the_documented_rights_is_heard(secured: Secured) -> None:
    """By the leader, which is the only member, and takes over from itself."""
    secured.grant("`celery neli resign`", "beat")
    done = secured.members.run("neli", "resign", "--timeout", "30")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("but", RESIGN, ids=ids(RESIGN))
@pytest.mark.usefixtures("led")
def test_resign_is_told_which_right_is_missing(secured: Secured, but: tuple[str, str]) -> None:
    """In one line."""
    missing = secured.grant("`celery neli resign`", "beat", but=but)
    done = secured.members.run("neli", "resign")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"lacks the right {missing}: kafka-acls.sh" in line


def test_a_member_without_the_rights_for_alarms_leads_and_says_once_what_they_need(secured: Secured) -> None:
    """Given them, it watches."""
    secured.make_topics("beat")
    secured.grant("a beat", "beat")
    topic = f"{secured.members.group}.watch.neli"
    secured.kafka.create_topic(topic, config=LEADER)
    member = secured.members.beat(neli_alarms=True)
    wait_until(lambda: "leadership acquired" in member.log and topic in member.log, timeout=60, what="both")
    lines = [line for line in complaints(member) if "history" not in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"Kafka does not let this member see the watch topic {topic}")
    assert f"--operation Read --operation Write --topic {topic}" in lines[0]
