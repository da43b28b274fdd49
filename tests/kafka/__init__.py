"""Apache Kafka for the tests: real brokers as local processes, without Docker."""
