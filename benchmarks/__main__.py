"""`make bench`, or `python -m benchmarks --only tick,dispatch --sizes 10,1000`. Compare ratios, not times."""

from __future__ import annotations

import gc
import importlib
import json
import logging
import time

from benchmarks import plots, table
from benchmarks.options import parse
from benchmarks.results import Results


def main() -> None:
    options = parse()
    logging.disable(logging.WARNING)
    bench = Results(options)
    for part in options.only:
        gc.collect()
        gc.freeze()  # what earlier parts left is not looked at again
        before, began = len(bench.figures), time.monotonic()
        importlib.import_module(f"benchmarks.{part}").run(bench)
        bench.took[part] = round(time.monotonic() - began, 1)
        table.print_part(bench.figures[before:])
        print(f"  ({bench.took[part]:g} s)", flush=True)
    if bench.claims:
        table.print_claims(bench.claims)
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "bench.json"
    file.write_text(json.dumps(bench.document(), indent=1))
    print("\nwritten:", *(str(path) for path in [file, *plots.draw(bench, options.output)]), sep="\n  ")


if __name__ == "__main__":
    main()
