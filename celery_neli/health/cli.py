"""`celery neli health`: the health of the processes of an app on this machine, without HTTP and without Kafka."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click
from celery.bin.base import CeleryCommand

from celery_neli.config import ELECTIONS, enabled, from_app, setting
from celery_neli.exceptions import NeliError
from celery_neli.printable import failure, say, say_json

if TYPE_CHECKING:
    from celery_neli.health.survey import Health, Survey

ANY = ""


@click.command(cls=CeleryCommand)
@click.option("--election", type=click.Choice(ELECTIONS), help="Only processes of this one; by default, of both.")
@click.option("--ready", is_flag=True, help="Each process must also be able to take a role over.")
@click.option(
    "--leader", is_flag=False, flag_value=ANY, metavar="[ROLE]", help="One of the processes must lead, this role."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def health(ctx: click.Context, election: str | None, ready: bool, leader: str | None, as_json: bool) -> None:
    """Say if the processes of this app on this machine, or in this container, are well: a probe that needs no Kafka.
    The exit status is 1 if one is not, or if there is none.
    """
    from celery_neli.health.directory import REMEDY, DirectoryError, path_of
    from celery_neli.health.survey import survey

    app = ctx.obj.app
    try:
        if not enabled(app):
            raise NeliError("neli_enabled = False: processes with this setting take part in no election")
        directory = setting(app, "neli_health_dir")
        if directory == "":
            raise NeliError("neli_health_dir is empty, so no process notes that it is well: give it a directory")
        groups = [from_app(app, each).group for each in ([election] if election else ELECTIONS)]
        path = path_of(directory)
        found = survey(path, groups)
        problem = _problem(found, groups, ready, leader)
    except (NeliError, DirectoryError) as exc:
        if not as_json:
            raise failure(exc) from None
        say_json(json.dumps({"well": False, "error": str(exc), "processes": [], "ended": []}))
        ctx.exit(1)
    if problem == _NONE:
        problem = (
            f"no process of {' or '.join(groups)} has a note in {path}: none runs here, or it runs as another user or "
            f"with another neli_health_dir or TMPDIR, or it cannot write there{_because(found.trouble)}: then {REMEDY}"
        )
    if as_json:
        say_json(json.dumps(_as_dict(found, problem)))
    else:
        _print(found, problem)
    ctx.exit(1 if problem else 0)


_NONE = "none"


def _problem(found: Survey, groups: list[str], ready: bool, leader: str | None) -> str:
    """Return why the probe fails, "" if it does not."""
    if not found.found:
        return _NONE
    if bad := [each for each in found.found if not (each.ready if ready else each.well)]:
        return f"{len(bad)} of {len(found.found)} processes not {'ready' if ready else 'well'}"
    if leader is None or any(leader in each.leads if leader else each.leads for each in found.found):
        return ""
    return f"no process here leads {f'the role {leader}' if leader else 'any role'}"


def _because(trouble: str) -> str:
    return f" ({trouble})" if trouble else ""


def _print(found: Survey, problem: str) -> None:
    for each in found.found:
        say(f"{each.election} {each.name} pid={each.pid}: {_verdict(each)}")
    for note in found.ended:
        say(f"{note.election} {note.name} pid={note.pid}: has ended without a word; its note was removed")
    if problem:
        say(problem, err=True)


def _verdict(each: Health) -> str:
    if not each.well:
        return f"NOT WELL: {'; '.join(each.hung)}"
    leads = f", leads {', '.join(each.leads)}" if each.leads else ""
    return f"well{leads}" if each.ready else f"well, not ready: {'; '.join(each.missing)}{leads}"


def _as_dict(found: Survey, problem: str) -> dict[str, Any]:
    return {
        "well": not problem,
        "problem": problem,
        "processes": [
            {
                "election": each.election, "group": each.group, "name": each.name, "pid": each.pid, "live": each.well,
                "ready": each.ready, "leads": list(each.leads), "why": [*each.hung, *each.missing],
            }
            for each in found.found
        ],
        "ended": [{"election": each.election, "name": each.name, "pid": each.pid} for each in found.ended],
    }  # fmt: skip
