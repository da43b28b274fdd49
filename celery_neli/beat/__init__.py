"""The beat: one process of several sends periodic tasks, and another goes on where it stopped.

`celery beat` runs `celery_neli.beat.scheduler.Scheduler`, which Celery takes for an ordinary scheduler. It joins the
election with its first tick. For each role (one, or one for each shard of the schedule) a `RoleRunner` watches the
lease, and a `Host` does the work of a term:

    the role's runner                      lease held by another
                                     ┌───────────────────────────────┐
                                     v                               │
      start ──> standby ── lease won ──> begins ── host is ready ──> leads ── resign, close ──> drains
                  ^ ^                      │                           │                          │
                  │ │   not ready, fails   │                           │  lease lost (fenced):    │ states written,
                  │ └── (back off) ────────┘                           │  nothing is written      │ lease released
                  └────────────────────────────────────────────────────┴──────────────────────────┘

- *Standby.* A wrapped scheduler does not exist. The replicated one follows the schedule topic, so that it can begin at
  once. Nothing is written and nothing is sent.
- *Begins.* A wrapped scheduler is built from its store. The replicated one reads the topic to its end and takes over
  the watermarks of its predecessor: what was settled, what is in doubt, what was missed.
- *Leads.* Each entry asks the lease before it starts, and each message asks it again right before the wire. The
  replicated scheduler has its ledger claim a slot in the leader topic before it sends it.
- *Drains.* No new entry starts. What is under way is finished, states are written, then the lease is released.
- *Fenced.* The lease is over. An entry in the middle of a tick is cut off by `LeaseEnded`, and what was not sent counts
  as not run. A message that was on the wire is in doubt for the next leader.

Two seams carry this: `role_runner.Host` (what serves a role; two kinds, `wrapped` and `replicated`) and
`replicated.ledger.SlotLedger` (what learns of each slot; one claims, one does nothing and belongs to a
`ReplicatedScheduler` that stands alone). Read `tenure`, `publish`, `role_runner`, `scheduler`; then
`replicated`: `ledger`, `entries`, `sender`, `engine`, `standalone`, `claims`, `term`, `states`, `outcomes`, `host`.
"""
