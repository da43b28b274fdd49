"""Who leads: the records, the rules R1 to R9 over them, a member, and the curator that runs one on a thread of its own.

In the order of reading: records, lease -> events, grant, rebalance -> member -> report, progress, delivery, pulser ->
curator -> presence, shared -> leadership. `lease` and `member` are pure: no clock, no thread, no Kafka.
"""
