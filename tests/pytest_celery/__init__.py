"""The same as `tests/fleet` in small, through pytest-celery's API: in Docker where it answers, else as processes."""
