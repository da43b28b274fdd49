"""Any scheduler under a lease: `celery_neli.beat.scheduler.Scheduler` is what Celery sees, these are its parts.

In the order of reading: tenure, publish, reservation -> leased -> inner, alarm -> desk, facade.
"""
