"""Who leads: the election of one process for each role.

The log of a leader topic decides, with one partition for each role. A member that wants to lead appends a *claim*. The
first claim after the last effective record wins, and its offset is the number of the *term*. The winner appends
*heartbeats*; each that it reads back extends its *lease*, counted from the moment it was sent (R1). To give the role
up, it appends a *release*. All members read the same log by the same rules, so they agree on who leads. They need not
agree at the same moment: a leader stops by its own clock before any other may claim (R2). The consumer group only says
which member tries first: it *induces*.

So leadership is a value with a term and an end, not a flag, and work asks twice: *may I start*, and *may I finish*.
Between the two lies the handover. This is one role, as its owner in one process sees it:

    +---------+   claim read back   +---------+   resign, request,   +----------+
    | standby | ------------------> | leading | -------------------> | draining |
    +---------+   LeaderAcquired    +---------+   stall, close:      +----------+
      ^   ^                              |        LeaderRevoked         |    |
      |   |        lease ran out         |    lease or drain_timeout    |    |
      |   +------------------------------+---------- ran out -----------+    |
      |                            LeaderFenced                              |
      +----------------------------------------------------------------------+
                        the barrier returned, a release was sent

    may start:     no                    yes                       no
    may finish:    no                    yes                       yes

A fence is the one change that no member chose: a frozen process, a lost network, another log. Another member may lead
already, and the owner must stop at once. Safety never depends on an event or a signal that arrives: each question asks
the lease, with the clock, at that moment. And nothing that may block runs on the thread that renews: requests reach it
through a queue, and events leave it through another.

Read on in this order: `records`, `lease`, `role_state`, `member`, `renewal`, `shared_lease`, `neli`,
`leadership`. `docs/protocol.md` states the rules and why they hold.
"""
