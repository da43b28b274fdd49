"""What leadership costs, as ratios within one run: `make bench`."""
