"""The run history: what became of each slot, and what its task did, in a topic of its own beside the leader topic.

Nothing rests on it. Beats and workers write it in the background (`recorder`), and drop what Kafka does not take in
time; a record that is lost costs nothing but itself. `records` are what the topic holds, and `runs` is what they say
together; `topic` reads them.
"""
