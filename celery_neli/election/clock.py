"""Old name of `lease.boottime`."""

from celery_neli.election.lease import boottime

__all__ = ["boottime"]
