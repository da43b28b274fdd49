"""Kafka as the package uses it: one reader, one writer, the topics, the journal of each role, the group; and a mock.

In the order of reading: causes, properties, client_log -> liveness -> reader, writer -> topic_spec,
topic_admin -> journal, group. Apart from them: mock_cluster, the one behind `celery_neli.embedded`. With
`schedule_topic`, `status`, `repair`, `embedded` and `cli` these are the only modules that load confluent_kafka.
"""
