"""When entries are due: the slots of Celery's schedules, what becomes of missed ones, and the heap of due times. Pure:
no clock, no thread, no Kafka.
"""
