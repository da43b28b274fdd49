"""`celery inspect neli` and `celery control neli_resign`, as their handlers answer on a worker."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from celery.worker.control import Panel

from celery_neli import singleton
from celery_neli.config import Config
from celery_neli.election.lease import boottime
from celery_neli.election.role_state import Grant
from celery_neli.election.shared_lease import SharedLease, share
from celery_neli.worker import control
from celery_neli.worker.redelivery import counts

if TYPE_CHECKING:
    from collections.abc import Callable

ROLES = ("billing", "mail")


class FakeLeadership:
    """Has the roles of `leases`, and remembers which of them it was asked to hand over."""

    def __init__(self, app: Celery, leases: SharedLease) -> None:
        self.app, self.roles, self._leases = app, leases.roles, leases
        self.config = Config(group="shop.worker", name="one", roles=ROLES)
        self.resigned: list[str | None] = []

    def role(self, name: str) -> Any:
        lease = self._leases.role(name)
        return SimpleNamespace(
            name=name, standing=lease.standing, leading_term=lease.leading_term, may_finish=lease.may_finish,
            leader=lambda: {"billing": "one", "mail": "two"}[name], resign=lambda: self.resigned.append(name),
        )  # fmt: skip


@pytest.fixture
def app() -> Celery:
    return Celery("shop", set_as_current=False)


@pytest.fixture
def lease(app: Celery) -> SharedLease:
    return share(app, SharedLease(ROLES))


@pytest.fixture
def leadership(monkeypatch: pytest.MonkeyPatch, app: Celery, lease: SharedLease) -> FakeLeadership:
    fake = FakeLeadership(app, lease)
    monkeypatch.setattr("celery_neli.election.leadership.leadership_for", lambda *_: fake)
    return fake


@pytest.fixture
def ask(app: Celery) -> Callable[..., Any]:
    """Ask as the worker's mailbox does: by name; answers are JSON on their way."""

    def ask(command: str, **arguments: Any) -> Any:
        return json.loads(json.dumps(Panel.data[command](SimpleNamespace(app=app), **arguments)))

    return ask


def test_inspect_tells_of_every_role(ask: Callable[..., Any], lease: SharedLease, leadership: FakeLeadership) -> None:
    """Leading, handing over, or neither; how long the lease runs from now on, not on a clock nobody else has."""
    lease.write(0, Grant(219, boottime() + 3.5))
    told = ask("neli")
    assert (told["name"], told["group"]) == ("one", "shop.worker")
    billing = told["roles"]["billing"]
    assert (billing["leading"], billing["held"], billing["term"]) == (True, True, 219)
    assert 3.0 < billing["until"] <= 3.5
    mail = told["roles"]["mail"]
    assert (mail["leading"], mail["held"], mail["term"], mail["until"]) == (False, False, None, None)
    assert (billing["leader"], mail["leader"]) == ("one", "two")

    lease.write(0, Grant(219, boottime() + 3.5, resigning=True))
    lease.write(1, Grant(12, boottime() - 1))
    told = ask("neli")["roles"]
    assert (told["billing"]["leading"], told["billing"]["held"]) == (False, True)
    mail = told["mail"]
    assert (mail["leading"], mail["held"], mail["term"], mail["until"]) == (False, False, 12, None)


def test_inspect_counts_the_tasks_that_met_no_leader(
    ask: Callable[..., Any], lease: SharedLease, leadership: FakeLeadership
) -> None:
    """By role: what was forwarded, sent back or skipped since the worker's start."""
    before = ask("neli")["roles"]
    counts.forwarded["mail"] += 3
    counts.sent_back["mail"] += 2
    counts.skipped["billing"] += 1
    after = ask("neli")["roles"]
    more = {
        role: {what: after[role]["tasks"][what] - before[role]["tasks"][what] for what in after[role]["tasks"]}
        for role in ROLES
    }
    assert more == {
        "billing": {"forwarded": 0, "sent_back": 0, "skipped": 1},
        "mail": {"forwarded": 3, "sent_back": 2, "skipped": 0},
    }


def test_inspect_names_the_singletons_of_each_role(
    ask: Callable[..., Any], app: Celery, lease: SharedLease, leadership: FakeLeadership
) -> None:
    """So that one sees what a handover takes along."""

    def relay() -> None: ...

    singleton(app, role="mail")(relay)
    told = ask("neli")["roles"]
    assert told["billing"]["singletons"] == []
    (name,) = told["mail"]["singletons"]
    assert name.endswith("relay")


def test_resign_hands_over_what_is_led(ask: Callable[..., Any], lease: SharedLease, leadership: FakeLeadership) -> None:
    """One role, or all; the answer names each with its term."""
    lease.write(0, Grant(219, boottime() + 9))
    lease.write(1, Grant(12, boottime() + 9))
    assert ask("neli_resign", role="mail") == {"ok": "hands over mail (term 12)"}
    assert leadership.resigned == ["mail"]
    assert ask("neli_resign") == {"ok": "hands over billing (term 219), mail (term 12)"}
    assert leadership.resigned == ["mail", "billing", "mail"]


def test_resign_of_what_is_not_led_does_nothing_and_says_so(
    ask: Callable[..., Any], lease: SharedLease, leadership: FakeLeadership
) -> None:
    """Standbys get the command too, and must not stand back from claiming by it."""
    lease.write(0, Grant(219, boottime() + 9, resigning=True))
    assert ask("neli_resign") == {"ok": "leads nothing"}
    assert ask("neli_resign", role="billing") == {"ok": "is handing over billing already"}
    assert ask("neli_resign", role="mail") == {"ok": "does not lead mail"}
    assert leadership.resigned == []


def test_resign_of_an_unknown_role_is_an_error_with_the_known_ones(
    ask: Callable[..., Any], lease: SharedLease, leadership: FakeLeadership
) -> None:
    """And hands over nothing."""
    lease.write(0, Grant(219, boottime() + 9))
    assert ask("neli_resign", role="post") == {"error": "unknown role 'post': neli_roles has billing, mail"}
    assert leadership.resigned == []


@pytest.mark.parametrize("command", ["neli", "neli_resign"])
def test_a_worker_without_an_election_says_so(command: str, ask: Callable[..., Any]) -> None:
    """Any worker on a machine with this package knows the commands; no leadership is made by asking."""
    told = ask(command)
    assert list(told) == ["error"]
    assert "takes part in no election" in told["error"]
    assert "celery_neli.install(app)" in told["error"]


def test_every_celery_command_knows_both_and_pays_little() -> None:
    """`celery inspect` and `celery control` refuse names that their own process has not got; what they load for it,
    `celery report` and `celery beat` load too.
    """
    code = """
import sys
import celery.bin.celery
from celery.worker.control import Panel
print(Panel.meta["neli"].type, Panel.meta["neli_resign"].type)
print(*(each for each in sys.modules if each.startswith(("celery_neli.", "confluent_kafka"))))
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    types, loaded = told.splitlines()
    assert types == "inspect control"
    packages = ("backfill", "health", "periodic", "periodic.cli", "ui", "worker")
    modules = (
        "cli",
        "config",
        "exceptions",
        "ordinary_beat",
        "printable",
        "settings",
        "backfill.cli",
        "health.cli",
        *(f"periodic.cli.{each}" for each in ("as_code", "base", "entries", "pauses", "slots", "transfer")),
        "ui.command",
        "worker.control",
    )
    assert set(loaded.split()) == {f"celery_neli.{each}" for each in (*packages, *modules)}


def test_both_are_commands_with_help() -> None:
    """As `celery inspect --list` and `celery control --list` show them."""
    assert control.neli is Panel.data["neli"]
    assert (Panel.meta["neli"].type, Panel.meta["neli"].visible) == ("inspect", True)
    resign = Panel.meta["neli_resign"]
    assert (resign.type, resign.signature) == ("control", "[role]")
    assert resign.help == "Hand over a role, or all that this worker leads."
