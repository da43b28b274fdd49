"""`@leader_only` in a worker: where such tasks are consumed, and what becomes of them when leadership goes.

In the order of reading: queues, working, counts -> marked -> gate; refusal, forward, kill -> drain -> tracked,
consuming -> strategy, handover, events; control. `celery_neli.worker.bootsteps` puts them in a worker.
"""
