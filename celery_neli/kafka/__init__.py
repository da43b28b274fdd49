"""What the election asks of Kafka: clients, the leader topic, the journal of a role, the group; and a Kafka for tests.

In the order of reading: clients, kafkalog, deaf -> topic_spec, topic -> journal, group. Apart: relay -> mock_cluster,
the one behind `celery_neli.embedded`. (The schedule's own topic is in `celery_neli.schedule`.)
"""
