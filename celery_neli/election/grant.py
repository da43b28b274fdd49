"""Old names of what is in `role_state`."""

from celery_neli.election.role_state import (
    Grant,
    LeaderAcquired,
    LeaderEvent,
    LeaderFenced,
    LeaderRevoked,
    Payload,
)

Told = Payload

__all__ = ["Grant", "LeaderAcquired", "LeaderEvent", "LeaderFenced", "LeaderRevoked", "Payload", "Told"]
