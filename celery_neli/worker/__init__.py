"""`@leader_only` tasks: one worker of the fleet runs them, the one that leads their role.

A marked task is published to its role's queue (`task_marking`). The worker that leads consumes that queue
(`consumer_step`) and hands the task to its pool (`strategy`), where the lease is checked once more, right before the
body (`leader_only`). Another worker that receives such a message forwards it, and one that has lost the lead
since it took the message gives it back (`redelivery`). A handover sends back what waits and waits for what runs
(`in_flight`). `bootsteps.install` puts all of it into the workers of an app; `events` and `control` report on it.
"""
