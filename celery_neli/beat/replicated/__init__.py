"""The scheduler of our own: slots in place of moments, claimed in the leader topic, with their state in Kafka."""
