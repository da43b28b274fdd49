"""Celery signals of leadership.

Each is sent as ``signal.send(sender=leadership, election="beat", role="leader", term=219)``, in order, on the
leadership's own thread (a greenlet under gevent). Celery logs and swallows what a receiver raises: nothing may be
*safe* because of a receiver. Ask the lease for that (`Leadership.snapshot`).
"""

from __future__ import annotations

from celery.utils.dispatch import Signal

__all__ = ["leadership_acquired", "leadership_fenced", "leadership_revoked"]

_ARGUMENTS = {"election", "role", "term"}

leadership_acquired = Signal(name="leadership_acquired", providing_args=_ARGUMENTS)
"""This process leads `role` since a moment; `leading` is already true."""

leadership_revoked = Signal(name="leadership_revoked", providing_args=_ARGUMENTS)
"""This process hands `role` over: `leading` is already false, `held` still true. The hand-over waits until all
receivers have returned, for `neli_drain_timeout` at most, while heartbeats go on.
"""

leadership_fenced = Signal(name="leadership_fenced", providing_args=_ARGUMENTS)
"""This process holds `role` no more and could not choose: stop at once. May be followed by another acquisition in the
same term, if late heartbeats are read back.
"""
