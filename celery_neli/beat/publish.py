"""The last step before the wire: a kombu Producer that asks the lease for each message, and names its term and slot."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from hashlib import sha1
from typing import TYPE_CHECKING, Any
from uuid import UUID

from celery.schedules import crontab, schedule
from celery.utils.time import maybe_make_aware, remaining

if TYPE_CHECKING:
    from celery_neli.beat.tenure import Tenure

__all__ = ["beat_headers", "due_slot", "is_unconfirmed", "leased_producer", "slot_id"]

#: Of the ids of slots.
NAMESPACE = UUID("5b9ad6f0-7c0e-5d8e-9d57-0d4c4e4c4931")
_NAMESPACE = NAMESPACE.bytes


class _LeasedProducer:
    """Mixed into the app's Producer class by :func:`leased_producer`."""

    neli_tenure: Tenure

    def _publish(
        self,
        body: Any,
        priority: Any,
        content_type: Any,
        content_encoding: Any,
        headers: dict[str, Any],
        properties: Any,
        routing_key: Any,
        mandatory: Any,
        immediate: Any,
        exchange: Any,
        declare: Any,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
        retry: bool = False,
        retry_policy: dict[str, Any] | None = None,
    ) -> Any:
        """Send one message, if the lease still allows it (kombu.messaging.Producer._publish).

        ``publish`` retries below itself by calling this again, so every attempt asks. Connecting and declaring come
        first, for both may wait for the task broker: between the question and the wire nothing waits.

        :raises LeaseEnded: the term is over; nothing was sent.
        """
        producer: Any = self
        tenure = self.neli_tenure
        tenure.in_transport = True
        channel = producer.channel  # a lazy property: connects
        for entity in declare or ():
            if not _is_declared(entity, channel):
                producer.maybe_declare(entity, retry=retry, **(retry_policy or {}))
        if tenure.headers is not None:
            headers.update(tenure.headers)
        tenure.ask_finish()
        tenure.wired = True
        result = super()._publish(  # type: ignore[misc]
            body, priority, content_type, content_encoding, headers, properties, routing_key, mandatory, immediate,
            exchange, None, timeout, confirm_timeout, retry, retry_policy,
        )  # fmt: skip
        tenure.message_left()
        return result

    def batch(self, max_size: int = 1) -> Any:
        """Batches (kombu 5.7) of one: a message that waits in a buffer would leave after the lease was asked."""
        return super().batch(max_size=1)  # type: ignore[misc]


def _is_declared(entity: Any, channel: Any) -> bool:
    """What kombu.common.maybe_declare asks in the end, after it has got ready to ask again and again."""
    if not channel.connection or not entity.can_cache_declaration:
        return False
    return hash(entity) in channel.connection.client.declared_entities


def leased_producer(base: type[Any], tenure: Tenure) -> type[Any]:
    """A subclass of the producer class ``base`` that sends only while ``tenure`` lasts."""
    return type(base.__name__, (_LeasedProducer, base), {"neli_tenure": tenure})


def due_slot(entry: Any) -> datetime:
    """The slot (UTC) for which ``entry`` is sent: its first due time after its last run.

    Exact for intervals and crontabs; for other schedules now plus ``remaining_estimate`` (to the millisecond); now for
    an entry that never ran or whose schedule cannot tell. Never blocks.
    """
    now = datetime.now(timezone.utc)
    last, when = entry.last_run_at, entry.schedule
    if last is None:
        return now
    try:
        if isinstance(when, crontab):
            start = maybe_make_aware(last, when.tz).astimezone(when.tz)
            # Celery 5.5 and 5.6 reckon from the present hour when the last run is long past: let it be that moment.
            then = object.__new__(type(when))
            then.__dict__.update(vars(when), nowfun=lambda: start)
            start, ahead, _ = then.remaining_delta(start)
            due = start + remaining(start, ahead, start)
        elif type(when) is schedule:
            start = maybe_make_aware(last, when.tz)
            due = start + remaining(start, when.run_every, start, when.relative)
        else:
            due = now + when.remaining_estimate(last)
            due = due.replace(microsecond=due.microsecond // 1000 * 1000)
    except Exception:  # noqa: BLE001 - of a schedule of the user's own: the entry is sent all the same
        return now
    # A start date in the far past (django-celery-beat's start_time) is no slot of anybody's.
    return now if due < now - timedelta(days=3650) else due.astimezone(timezone.utc)


def beat_headers(entry: Any, *, term: int, slot: datetime | None = None) -> dict[str, Any]:
    """The message headers of ``entry``: neli_beat_term (int), neli_beat_slot (ISO 8601, UTC), neli_beat_entry (name).

    ``slot``: what a scheduler with slots runs; else it is reckoned (:func:`due_slot`). The term is a fencing token: it
    rises from leader to leader (offset of the claim).
    """
    return {
        "neli_beat_term": term,
        "neli_beat_slot": (slot or due_slot(entry)).isoformat(),
        "neli_beat_entry": str(entry.name),
    }


def slot_id(group: str, entry: str, slot: str) -> str:
    """The task id of a slot, the same whoever sends it: UUIDv5 of group, entry and slot (ISO 8601, UTC)."""
    # What str(uuid5(…)) is (RFC 9562, 5.5), in a third of the time.
    name = f"{group}\n{entry}\n{slot}".encode("utf-8", "surrogatepass")
    digest = sha1(_NAMESPACE + name, usedforsecurity=False).hexdigest()
    variant = "89ab"[int(digest[16], 16) & 3]
    return f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-{variant}{digest[17:20]}-{digest[20:32]}"


def is_unconfirmed(app: Any) -> bool:
    """Whether the task broker could confirm what is published (AMQP), and is not asked to. Connects nowhere."""
    with app.connection_for_write() as connection:
        amqp = connection.get_transport_cls().driver_type == "amqp"
        return amqp and not (connection.transport_options or {}).get("confirm_publish")
