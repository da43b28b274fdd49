"""A Django project with the admin of the schedule, as a process: `python -m tests.ui.mysite.serve`."""
