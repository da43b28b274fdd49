"""Celery signals of leadership.

Each is sent as ``signal.send(sender=leadership, election="beat", role="leader", term=219)``, in order, on the
leadership's own thread (a greenlet under gevent). Celery logs and swallows what a receiver raises, so safety must not
rest on a receiver, but on the lease (`celery_neli.still_leader`).
"""

from __future__ import annotations

from celery.utils.dispatch import Signal

__all__ = ["leadership_acquired", "leadership_fenced", "leadership_revoked"]

_ARGUMENTS = {"election", "role", "term"}

leadership_acquired = Signal(name="leadership_acquired", providing_args=_ARGUMENTS)
"""This process has begun to lead `role`."""

leadership_revoked = Signal(name="leadership_revoked", providing_args=_ARGUMENTS)
"""This process hands `role` over: it may finish work, but start none. The handover waits until all receivers have
returned, for `neli_drain_timeout` at most, while heartbeats go on.
"""

leadership_fenced = Signal(name="leadership_fenced", providing_args=_ARGUMENTS)
"""This process has lost `role`: stop at once. If late heartbeats are read back, it may acquire the role again in the
same term.
"""
