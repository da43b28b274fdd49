"""The scheduler of our own, led: slots are claimed in the leader topic, and states kept in the schedule topic.

In the order of reading: claims -> shards, keeper -> term, states; batch, publishers -> flights, overlap_gate ->
settling -> dispatching -> mixin. The rules are in docs/protocol.md ("Slots").
"""
