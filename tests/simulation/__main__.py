"""Run the simulation by hand: see the package's docstring."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.simulation.judge import Failure
from tests.simulation.mutants import MUTANTS, find
from tests.simulation.scenarios import SCENARIOS
from tests.simulation.world import run


def one(name: str, seed: int) -> int:
    try:
        world = run(name, seed)
    except Failure as failure:
        print(failure.schedule)
        print(failure)
        return 1
    for spans in world.judge.spans:
        print(*spans, sep="\n")
    settled, bound = world.judge.settled(), world.judge.bound()
    print(f"{name} {seed}: sound; {world.steps} steps, settled after {settled:.1f} s, allowed are {bound:.1f} s")
    return 0


def many(seeds: int, first: int, names: list[str]) -> int:
    failed = 0
    for name in names:
        began, verdicts, settled, spans, steps = time.perf_counter(), Counter(), 0.0, 0, 0
        for seed in range(first, first + seeds):
            try:
                world = run(name, seed)
            except Failure as failure:
                verdicts[failure.kind] += 1
                print(f"  {failure}", flush=True)
            else:
                settled = max(settled, world.judge.settled() / world.judge.bound())
                spans += sum(len(each) for each in world.judge.spans)
                steps += world.steps
        failed += verdicts.total()
        took = time.perf_counter() - began
        print(
            f"{name}: {seeds} runs, {dict(verdicts) or 'sound'}, {spans} terms or resumptions, "
            f"slowest to settle at {settled:.0%} of the bound, "
            f"{steps} steps, {took / seeds * 1000:.0f} ms each",
            flush=True,
        )
    return min(failed, 1)


def mutants(names: list[str]) -> int:
    survivors = 0
    for mutant in MUTANTS:
        if names and mutant.name not in names:
            continue
        began = time.perf_counter()
        found = find(mutant)
        survivors += found is None
        print(f"{mutant.name}: {found or 'NOT FOUND'} ({time.perf_counter() - began:.1f} s)", flush=True)
    return min(survivors, 1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("scenario", nargs="*", help=", ".join(SCENARIOS))
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--mutants", action="store_true")
    options = parser.parse_args()
    if options.mutants:
        return mutants(options.scenario)
    if options.seeds is not None:
        return many(options.seeds, options.first, options.scenario or list(SCENARIOS))
    name, seed = options.scenario
    return one(name, int(seed))


if __name__ == "__main__":
    sys.exit(main())
