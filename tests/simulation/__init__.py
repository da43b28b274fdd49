"""Many members on one fake log with fake clocks, under random faults: one at most holds a role, and nobody is stuck.

`python -m tests.simulation --seeds 20` runs every scenario; `python -m tests.simulation SCENARIO SEED` repeats one run
and prints its schedule; `python -m tests.simulation --mutants` takes the rules out one at a time.
"""
