"""What a tick costs when nothing is due, by the number of entries."""

from __future__ import annotations

from functools import partial

from benchmarks.brokers import broker
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.measure import Timed, alternate, per_call, ratio
from benchmarks.results import Results

SIZES = (10, 1_000, 10_000, 100_000)
#: RedBeat writes each entry of a large schedule to Redis by itself: a minute and more.
REDBEATS_MOST = 1_000
#: So many of our ticks a round; of Celery's, which look at every entry, so many looks; RedBeat asks Redis.
TICKS, LOOKS, ASKS = 1_000, 20_000, 200


def run(bench: Results) -> None:
    built: dict[str, Contender] = {}
    sizes = bench.options.chosen(SIZES)
    redbeats_most = max(SIZES) if bench.options.full else REDBEATS_MOST
    with broker("memory") as memory:
        assert memory is not None
        for size in sizes:
            for case in ("neli", "neli led", "celery", "redbeat"):
                if case == "redbeat" and (memory.redis is None or size > redbeats_most):
                    why = (
                        "RedBeat's large schedules take minutes to write (--full)"
                        if memory.redis
                        else "no redis-server"
                    )
                    bench.left_out("tick", case, "an idle tick", "µs", why, size=size)
                else:
                    built[f"{case}/{size}"] = CONTENDERS[case](memory, size)
        for each in built.values():
            each.build()
        found = alternate({name: partial(_ticks, name, each) for name, each in built.items()}, bench.options.rounds)
        for each in built.values():
            each.close()
    walls = {name: [took.wall for took in rounds] for name, rounds in found.items()}
    for name, samples in walls.items():
        case, size = name.split("/")
        bench.add("tick", case, "an idle tick", "µs", [1e6 * sample for sample in samples], size=int(size))
    least, most = sizes[0], sizes[-1]
    for case in ("neli", "neli led"):
        what = f"idle tick of {case}: {most:,} entries / {least:,} entries"
        bench.claim(what, ratio(walls[f"{case}/{most}"], walls[f"{case}/{least}"]), most=2)
    if most >= 100_000:
        what = f"idle tick at {most:,} entries: Celery's / ours"
        bench.claim(what, ratio(walls[f"celery/{most}"], walls[f"neli/{most}"]), least=1_000)


def _ticks(name: str, each: Contender) -> Timed:
    times = {"celery": max(1, LOOKS // each.count), "redbeat": ASKS}.get(name.partition("/")[0], TICKS)
    return per_call(each.tick, times)
