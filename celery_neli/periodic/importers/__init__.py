"""Taking over the entries of other schedulers: RedBeat, django-celery-beat, the files of Celery's own and JSON."""
