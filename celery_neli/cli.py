"""`celery neli …`: status, health, explain, watch, resign, repair, kafka, schedule.

Every `celery` command imports this module, so it loads confluent_kafka only when one of its own commands runs.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone, tzinfo
from typing import TYPE_CHECKING, Any

import click
from celery.bin.base import handle_preload_options
from celery.bin.beat import beat
from celery.bin.worker import worker

import celery_neli.backfill.cli  # `celery neli schedule backfill`
import celery_neli.worker.control  # noqa: F401 - `celery inspect neli` refuses a command that its process does not know
from celery_neli.config import ELECTIONS, enabled, from_app, owner, setting
from celery_neli.exceptions import NeliError
from celery_neli.health.cli import health
from celery_neli.ordinary_beat import guard, logger_of
from celery_neli.periodic.cli import UNLED, Command, schedule
from celery_neli.printable import hide_from_reports, printable, say, say_json
from celery_neli.ui.command import ui

if TYPE_CHECKING:
    from celery_neli.embedded import EmbeddedKafka
    from celery_neli.status import ElectionStatus
    from celery_neli.watch.watcher import Watcher

hide_from_reports()
guard(beat, worker)
_SECONDS = click.FloatRange(min=1)
_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60))
_GONE = "  does not answer: its lease has run out"


@click.group(name="neli")
@click.pass_context
@handle_preload_options
def neli(ctx: click.Context) -> None:
    """Leader election: show who leads and what ran, hand over, run a Kafka for development."""
    ctx.meta[UNLED] = _unled


neli.add_command(schedule)
neli.add_command(health)
neli.add_command(ui)


@neli.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--election", type=click.Choice(ELECTIONS), help="Show only this one; by default, every one whose topic exists."
)
@click.pass_context
def status(ctx: click.Context, as_json: bool, election: str | None) -> None:
    """Show who leads each role, in which term and since when, and the members. The exit status is 1 if a role has no
    leader, or if different apps share the group.
    """
    try:
        _note_switched_off(ctx.obj.app)
        found = _look(ctx.obj.app, election)
        shown = [each for each in found if each.exists or election] or found[:1]
        if all(not each.exists and each.missing_rights for each in shown):
            raise NeliError(shown[0].missing_rights[0])
    except NeliError as exc:
        if not as_json:
            raise
        say_json(json.dumps({"led": False, "error": str(exc), "elections": []}))
        ctx.exit(1)
    led = all(each.led for each in shown)
    if as_json:
        say_json(json.dumps({"led": led, "elections": [each.as_dict() for each in shown]}))
    else:
        for each in shown:
            _print(each)
        for each in found:
            for right in () if each.exists else each.missing_rights:
                say(f"could not be checked: {right}", err=True)
    ctx.exit(0 if led and not any(each.sharing for each in shown) else 1)


@neli.command(cls=Command)
@click.option("--election", type=click.Choice(ELECTIONS), default="beat", show_default=True, help="The election.")
@click.option("--role", help="The role; you may leave it out if there is only one.")
@click.option("--to", help="Name of the member that should lead next; by default, the one that the group prefers.")
@click.option("--timeout", type=_SECONDS, default=15.0, show_default=True, help="Seconds to wait for the next leader.")
@click.pass_context
def resign(ctx: click.Context, election: str, role: str | None, to: str | None, timeout: float) -> None:
    """Ask the leader to hand over, and wait for the next one. The exit status is 1 if none leads in time."""
    from celery_neli.handover import hand_over

    config = from_app(ctx.obj.app, election)
    _note_switched_off(ctx.obj.app)
    before, after, seconds = hand_over(config, election, role=role, to=to, timeout=timeout, log=logger_of(__name__))
    if to not in (None, after.leader):
        raise NeliError(
            f"{before.leader} handed role {before.role} over, but {after.leader} leads it now (term {after.term}), "
            f"not {to}"
        )
    say(
        f"{election} role {before.role}: {printable(before.leader)} (term {before.term}) handed over to "
        f"{printable(after.leader)} (term {after.term}) in {seconds:.1f} s"
    )


@neli.command(cls=Command)
@click.option("--dry-run", is_flag=True, help="Show what would be done; write nothing.")
@click.option("--timeout", type=_SECONDS, default=30.0, show_default=True, help="Seconds to wait for the roles.")
@click.pass_context
def repair(ctx: click.Context, dry_run: bool, timeout: float) -> None:
    """Make the records of the beats' roles fit neli_shards, after you lowered it or if a record was forged. The command
    refuses while a beat serves a role: to lower neli_shards, stop all beats first.
    """
    from celery_neli.handover import repair as run

    config = from_app(ctx.obj.app, "beat")
    changes = run(config, dry_run=dry_run, timeout=timeout, log=logger_of(__name__))
    for each in changes:
        say(f"role {each.role}: {each.what}")
    done = "dry run: nothing was written" if dry_run else "done"
    say(done if changes else f"nothing to repair: beats with neli_shards = {len(config.roles)} can serve")


@neli.command(cls=Command)
@click.argument("entry")
@click.argument("slot", default="last")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def explain(ctx: click.Context, entry: str, slot: str, as_json: bool) -> None:
    """Tell what became of one slot of ENTRY: who sent it and when, what its task did, or why nothing ran.

    SLOT is an ISO time, 07:00, "today 07:00", "yesterday 07:00", or "last", the last slot that was due; without an
    offset, it is in the time zone of the app. The exit status is 0 if the slot's task was sent and was not revoked,
    1 if not, or if that cannot be known.
    """
    from celery_neli.explain.gather import tell
    from celery_neli.explain.report import lines_of
    from celery_neli.explain.when import window

    app = ctx.obj.app
    app.loader.import_default_modules()
    try:
        window(slot, app.timezone, time.time())
    except NeliError as exc:
        raise click.UsageError(printable(str(exc)), ctx) from None
    story = tell(app, entry, slot, log=logger_of(__name__))
    if as_json:
        say_json(json.dumps(story.as_dict()))
    else:
        for line in lines_of(story, app.timezone):
            say(line)
    ctx.exit(0 if story.ran else 1)


@neli.command(cls=Command)
@click.option("--plain", is_flag=True, help="Print lines, also in a terminal. Without a terminal this is the default.")
@click.pass_context
def watch(ctx: click.Context, plain: bool) -> None:
    """Show roles, terms, leases, members, handovers and slots as they happen, until Ctrl-C. While Kafka does not
    answer, it says so and goes on.
    """
    from celery_neli.watch.plain import watch_plainly
    from celery_neli.watch.watcher import Watcher, quiet_logger

    app = ctx.obj.app
    app.loader.import_default_modules()
    _note_switched_off(app)
    live = _live_view() if not plain and sys.stdout.isatty() else None
    watcher = Watcher(app, log=quiet_logger())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background
    try:
        if live is None:
            watch_plainly(watcher, say, app.timezone)
        else:
            live(watcher, app.timezone)
    except KeyboardInterrupt:
        pass  # the way to end it
    finally:
        watcher.close()


def _live_view() -> Callable[[Watcher, tzinfo], None] | None:
    try:
        from celery_neli.watch.live import watch_live
    except ImportError as exc:
        needs = 'the live view of celery neli watch needs rich: pip install "celery-neli[watch]"'
        say(f"note: {needs} ({exc}); until then it prints lines", err=True)
        return None
    return watch_live


@neli.command(cls=Command)
@click.option("--port", type=click.IntRange(1, 65535), default=9092, show_default=True, help="Port on 127.0.0.1.")
@click.pass_context
def kafka(ctx: click.Context, port: int) -> None:
    """Run the embedded Kafka until you interrupt it. It is for development, never for production. It forgets everything
    when it stops. The topics of the app (`-A`) exist from the start.
    """
    from celery_neli.embedded import EmbeddedKafka

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    with EmbeddedKafka(port=port) as running:
        _make_topics(ctx.obj.app, running)
        print(f"embedded Kafka on {running.bootstrap_servers}; press Ctrl-C to stop it", flush=True)
        threading.Event().wait()


def _note_switched_off(app: Any) -> None:
    if not enabled(app):
        say("note: neli_enabled = False: processes with this setting take part in no election", err=True)


def _make_topics(app: Any, running: EmbeddedKafka) -> None:
    """Create the topics of the app, which its members cannot: the embedded Kafka answers no such request of another
    process, and a topic that it makes by itself has four partitions.
    """
    from celery_neli.kafka.topic_spec import history_topic, schedule_topic

    if not app.conf.get("neli_group"):
        return
    for config in (from_app(app, election) for election in ELECTIONS):
        if len(config.roles) > 1:
            running.create_topic(config.topic, partitions=len(config.roles))
    config = from_app(app, "beat")
    for spec in (schedule_topic(config), history_topic(config, setting(app, "neli_history_retention"))):
        running.create_topic(spec.name, partitions=spec.partitions)


def _look(app: Any, election: str | None) -> list[ElectionStatus]:
    from concurrent.futures import ThreadPoolExecutor

    from celery_neli.status import look

    names = [election] if election else list(ELECTIONS)
    configs, log = [from_app(app, name) for name in names], logger_of(__name__)
    with ThreadPoolExecutor(len(names)) as pool:
        return list(
            pool.map(lambda config, name: look(config, name, log=log, schedules=name == "beat"), configs, names)
        )


def _unled(app: Any, name: str) -> str | None:
    """Return why no beat runs the entry of this name, if Kafka says so."""
    from celery_neli.status import look

    config = from_app(app, "beat")
    try:
        found = look(config, "beat", log=logger_of(__name__), schedules=True)
    except NeliError:
        return None  # Kafka answered before, and stored the entry
    if not found.exists:
        if found.missing_rights:
            return None  # a user who only manages entries needs no right to see who leads
        return f"the leader topic {config.topic} does not exist: the entry runs once a beat of this group has started"
    role = config.roles[owner(name, len(config.roles))]
    if all(each.leader is None for each in found.roles if each.role == role):
        return (
            f"no beat leads role {role} of neli_group = {app.conf.neli_group!r}, so the entry does not run yet: start "
            "one with celery beat -S celery_neli.Scheduler"
        )
    return found.sharing


def _print(status: ElectionStatus) -> None:
    say(f"{status.election}  topic={status.topic} group={status.group}")
    if not status.exists:
        say("  the leader topic does not exist: no member has started yet")
        return
    width = max(len(role.role) for role in status.roles) + 1
    for role in status.roles:
        name = f"{role.role}:".ljust(width)
        if role.leader is None:
            say(f"  role {name} NO LEADER ({role.reason}) last term {'-' if role.term is None else role.term}")
        else:
            since = "?" if role.since is None else _when(role.since)
            leads = f"{printable(role.leader)} leads  term {role.term}  since {since}"
            say(f"  role {name} {leads}  last heartbeat {role.heartbeat_age or 0:.1f} s ago")
    _print_members(status)
    for line in filter(None, (status.sharing, status.disagreement)):
        say(f"  {line}")
    for pause in status.pauses:
        say(f"  paused: {printable(pause.line)}")
    for right in status.missing_rights:
        say(f"  could not be checked: {right}")


def _print_members(status: ElectionStatus) -> None:
    schedules = {each.name: f"  schedule {printable(each.shown)}" for each in status.schedules}
    heard = {each.name: f"  last heard {each.age:.0f} s ago" for each in status.schedules if each.silent}
    if status.members is None:
        unknown = "unknown (Kafka does not describe the group; the embedded Kafka cannot)"
        say("  members, by their own notes:" if schedules else f"  members: {unknown}")
        for name, text in schedules.items():
            say(f"    {printable(name)}{text}" + (_GONE if name in status.gone else heard.get(name, "")))
        return
    say(f"  members: {len(status.members)} (group {status.group_state})")
    for member in status.members:
        say(
            f"    {printable(member.name)}  {printable(member.host)}"
            + (f"  leads {', '.join(member.leads)}" if member.leads else "")
            + (f"  induced for {', '.join(member.induced)}" if member.induced else "")
            + schedules.get(member.name, "")
            + ("" if member.answers else heard.get(member.name, _GONE))
        )


def _when(seconds: float) -> str:
    try:
        moment = datetime.fromtimestamp(seconds, timezone.utc)
    except (ValueError, OverflowError, OSError):  # a record's time may be anything
        return f"{seconds:g}"
    ago = max(0.0, time.time() - seconds)
    unit, size = next((each for each in _UNITS if ago >= 2 * each[1]), ("s", 1))
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC ({ago / size:.0f} {unit})"
