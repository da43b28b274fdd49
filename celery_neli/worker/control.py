"""`celery inspect neli` and `celery control neli_resign` on workers.

Imported by every `celery` command (cli.py), for it refuses a name that its own process does not know, and by every
worker that takes part (bootsteps.py). So it loads the rest of the package only when a command arrives. Handlers run on
the consumer's thread, between two tasks: they read memory, or ask the leadership's thread and do not wait for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.worker.control import control_command, inspect_command, nok, ok

if TYPE_CHECKING:
    from celery_neli.election.leadership import Leadership
    from celery_neli.election.shared_lease import SharedLease

OFF = (
    "this worker takes part in no election: add celery_neli.install(app), or imports = ['celery_neli.auto'], "
    "and do not switch neli_enabled off"
)


@inspect_command()
def neli(state: Any, **kwargs: Any) -> dict[str, Any]:
    """Show which roles this worker leads, in which term and until when, and what happened to tasks it could not run."""
    found = _found(state.app)
    if found is None:
        return dict(nok(OFF))
    leadership, lease = found
    return {
        "name": leadership.config.name,
        "group": leadership.config.group,
        "roles": {role: {"leader": leadership.leader(role), **_role(state.app, lease, role)} for role in lease.roles},
    }


@control_command(args=[("role", str)], signature="[role]")
def neli_resign(state: Any, role: str | None = None, **kwargs: Any) -> dict[str, Any]:
    """Hand over a role, or all that this worker leads."""
    found = _found(state.app)
    if found is None:
        return dict(nok(OFF))
    leadership, lease = found
    if role is not None and role not in lease.roles:
        return dict(nok(f"unknown role {role!r}: neli_roles has {', '.join(lease.roles)}"))
    asked = lease.roles if role is None else (role,)
    led = {each: term for each in asked if (term := lease.leading(each)) is not None}
    for each in led:
        leadership.resign(each)
    if led:
        return dict(ok("hands over " + ", ".join(f"{each} (term {term})" for each, term in led.items())))
    if role is None:
        return dict(ok("leads nothing"))
    return dict(ok(f"is handing over {role} already" if lease.standing(role).held else f"does not lead {role}"))


def _found(app: Any) -> tuple[Leadership, SharedLease] | None:
    """The worker's leadership and what it shares; None if it takes part in no election."""
    from celery_neli.election.leadership import leadership_for
    from celery_neli.election.shared_lease import shared
    from celery_neli.kafka.connect import connect

    lease = shared(app)
    return None if lease is None else (leadership_for(app, "worker", connect), lease)


def _role(app: Any, lease: SharedLease, role: str) -> dict[str, Any]:
    """`term`: in force, or the last one of this worker; `until`: seconds from now, None without a lease; `tasks`: since
    the worker's start; `singletons`: those that run here while it leads.
    """
    from celery_neli.election.lease import boottime
    from celery_neli.singletons.registry import registered
    from celery_neli.worker.counters import counts

    standing = lease.standing(role)
    return {
        "leading": standing.leading,
        "held": standing.held,
        "term": standing.term,
        "until": round(standing.until - boottime(), 3) if standing.held else None,
        "tasks": {what: of_roles.get(role, 0) for what, of_roles in counts.as_dict().items()},
        "singletons": [each.name for each in registered(app) if (each.role or lease.roles[0]) == role],
    }
