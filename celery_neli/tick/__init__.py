"""The scheduler of our own, without Kafka: what is due, what was missed, and a quick way to send it.

In the order of reading: zones -> crontabs, sun, expiry; once, heap, slots -> forecast, misfire, entries, heapview,
due -> heaped; genuine, template, redis_client -> fastpath; overlap -> replicated.
"""
