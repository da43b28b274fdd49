"""Kafka as the package uses it: one reader, one writer, the topics, the journal of each role, the group; and a mock.

In the order of reading: causes, properties, client_log -> liveness -> reader, writer -> topic_spec, topic_admin ->
journal, group, connect. Apart from them: mock_cluster, behind `celery_neli.embedded`. Only these modules and those of
`schedule_topic`, `status`, `repair`, `embedded` and `cli` load confluent_kafka.
"""
