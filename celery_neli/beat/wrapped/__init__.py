"""Any other Celery scheduler, under a lease."""
