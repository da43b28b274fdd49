"""Metrics of a beat or worker, for Prometheus and for OpenTelemetry. Nothing rests on them.

`catalogue` has every metric once, `numbers` keeps them, `collect` fills them from the hooks and asks the leaderships.
`prometheus` and `otel` show them, each if its library is installed.
"""
