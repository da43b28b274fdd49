"""Send the slots of a span of time that did not run, with their own ids: `celery_neli.periodic.backfill`.

`span` says which slots there are, `plan` what is known of each and what is to be done, and `sending` does it.
"""
