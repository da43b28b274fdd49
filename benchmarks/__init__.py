"""What celery-neli costs and gains, against its rivals in one run: `make bench`.

Rounds of the cases alternate, so that what else the machine does falls on all of them; figures are medians, and what
counts are ratios within one run. One part to a file; each is a function `run(bench)` that adds to the results.
"""
