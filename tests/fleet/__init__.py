"""Fleets of workers whose leader alone runs the tasks marked `@leader_only`, under faults; see `test_faults.py`."""
