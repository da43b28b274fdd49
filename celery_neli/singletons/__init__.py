"""`@singleton`: a function that one worker of the fleet calls again and again, while it leads a role.

    @celery_neli.singleton(app, every=1.0)
    def relay() -> None:
        ...

Importing the module only registers the function (`decorator`). A worker that has joined the election runs it, in a
thread of its main process for each singleton (`runner`), or with `isolate=True` in a process of its own (`session`).
Beats, children of a pool, web processes and commands do not.

A *session* is a time in which this worker leads the role without a break. `setup` runs before its first run of the
function, and again until it returns once; `teardown` runs after the last, if `setup` had returned. Right before each
call the lease is checked (R3 of docs/protocol.md), so nothing starts once the role is lost.

A handover waits for the run and for `teardown`, for `neli_drain_timeout` at most, while heartbeats go on. At a fence,
a thread learns from `still_leader()` that the lease is gone, and a process is terminated (SIGTERM, then SIGKILL 2 s
later; it misses its `teardown`). The same happens to a run that outlasts `neli_drain_timeout`. A thread cannot be
stopped from outside: it is abandoned when the worker exits. Runs in one process never overlap.

After `max_failures` in a row the worker resigns the role, with its tasks and its sound singletons. So that workers with
the same fault do not pass it to and fro, this worker's singleton then rests: 10 s, doubled each time in a row without
one run that returned, up to 5 min. If the worker leads the role in that time, it does the role's other work.
"""
