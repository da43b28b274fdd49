"""Our own scheduler: an engine with a ledger of slots. Alone it is a faster Celery scheduler; led, it claims slots."""
