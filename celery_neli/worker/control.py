"""`celery inspect neli` and `celery control neli_resign` on workers.

Every `celery` command imports this file (cli.py), since it refuses a name that its own process does not know. So it
loads the rest of the package only when a command arrives. Handlers run on the consumer's thread, between two tasks:
they read memory, or ask the leadership's thread and do not wait for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.worker.control import control_command, inspect_command, nok, ok

if TYPE_CHECKING:
    from celery_neli.election.leadership import Leadership

OFF = (
    "this worker takes part in no election: add celery_neli.install(app), or imports = ['celery_neli.auto'], "
    "and do not switch neli_enabled off"
)


@inspect_command()
def neli(state: Any, **kwargs: Any) -> dict[str, Any]:
    """Show which roles this worker leads, in which term and until when, and what happened to tasks it could not run."""
    from celery_neli.election.lease import boottime
    from celery_neli.worker.redelivery import counts

    leadership = _leadership(state.app)
    if leadership is None:
        return dict(nok(OFF))
    singletons = getattr(state.app, "neli_singletons", ())  # `celery_neli.singletons` notes them there
    roles = {}
    for name in leadership.roles:
        role, standing = leadership.role(name), leadership.role(name).standing()
        roles[name] = {  # docs/workers.md ("Watching workers") explains the keys
            "leader": role.leader(),
            "leading": standing.leading,
            "held": standing.held,
            "term": standing.term,
            "until": round(standing.until - boottime(), 3) if standing.held else None,
            "tasks": counts.of_role(name),
            "singletons": [each.name for each in singletons if (each.role or leadership.roles[0]) == name],
        }
    return {"name": leadership.config.name, "group": leadership.config.group, "roles": roles}


@control_command(args=[("role", str)], signature="[role]")
def neli_resign(state: Any, role: str | None = None, **kwargs: Any) -> dict[str, Any]:
    """Hand over a role, or all that this worker leads."""
    leadership = _leadership(state.app)
    if leadership is None:
        return dict(nok(OFF))
    if role is not None and role not in leadership.roles:
        return dict(nok(f"unknown role {role!r}: neli_roles has {', '.join(leadership.roles)}"))
    asked = [leadership.role(each) for each in (leadership.roles if role is None else (role,))]
    led = [(each, term) for each in asked if (term := each.leading_term()) is not None]
    for each, _ in led:
        each.resign()
    if led:
        return dict(ok("hands over " + ", ".join(f"{each.name} (term {term})" for each, term in led)))
    if role is None:
        return dict(ok("leads nothing"))
    return dict(ok(f"is handing over {role} already" if asked[0].may_finish() else f"does not lead {role}"))


def _leadership(app: Any) -> Leadership | None:
    from celery_neli.election.leadership import leadership_for
    from celery_neli.election.shared_lease import shared
    from celery_neli.kafka import connect

    return None if shared(app) is None else leadership_for(app, "worker", connect)
