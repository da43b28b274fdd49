"""Failovers of beats: no slot is lost, none is sent twice in silence; see `test_failovers.py`."""
