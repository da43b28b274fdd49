"""The schedule in Kafka: its topic, and the periodic tasks that are put, changed and read at runtime.

In the order of reading: strict_json -> records -> writes, found, end, follow -> topic, notes, client; then text ->
defined -> editor, view -> importing (from RedBeat, django-celery-beat and a file) -> cli. What users call is
`celery_neli.periodic`.
"""
