"""The runtime schedule in Django's admin: `INSTALLED_APPS += ["celery_neli.django"]`.

It has no table and no migration: what is shown and changed stands in Kafka, and `celery_neli.periodic` reads and writes
it. Django's database keeps the permissions and the log of the admin. Inside this package, `import django` is Django.
"""
