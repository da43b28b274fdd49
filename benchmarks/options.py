"""What of the benchmarks runs, and how much of it."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

#: In the order in which they run.
PARTS = (
    *("tick", "dispatch", "lateness", "startup", "takeover", "memory"),
    *("ask", "gate", "throughput", "idle", "history", "metrics", "runtime"),
)
TRANSPORTS = ("memory", "redis", "rabbitmq", "rabbitmq-confirm")
RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`sizes`: numbers of entries, or of due ones, in place of the parts' own. `seconds`: how long lateness is watched.
    `full`: also what takes long.
    """

    only: tuple[str, ...] = PARTS
    sizes: tuple[int, ...] | None = None
    transports: tuple[str, ...] = TRANSPORTS
    rounds: int = 5
    seconds: float = 30.0
    full: bool = False
    output: Path = RESULTS

    def chosen(self, default: tuple[int, ...], *, most: int | None = None) -> tuple[int, ...]:
        """The sizes for a part: its own, or those asked for; none above `most`."""
        return tuple(sorted(size for size in self.sizes or default if most is None or size <= most))


def parse(arguments: list[str] | None = None) -> Options:
    """From the command line; ends the process with a message if it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__import__("benchmarks").__doc__)
    parser.add_argument("--only", type=_names(PARTS), default=PARTS, help=f"of {','.join(PARTS)}")
    parser.add_argument(
        "--sizes", type=_numbers, help="such as 10,1000: entries, or due entries, in place of all sizes"
    )
    parser.add_argument("--transports", type=_names(TRANSPORTS), default=TRANSPORTS, help=f"of {','.join(TRANSPORTS)}")
    parser.add_argument("--rounds", type=int, default=5, help="how often each case runs, where it is quick (5)")
    parser.add_argument("--seconds", type=float, default=30.0, help="for which lateness is watched (30)")
    parser.add_argument("--full", action="store_true", help="100,000 due on all transports, RedBeat's large schedules")
    parser.add_argument(
        "--output", type=Path, default=RESULTS / time.strftime("%Y%m%d-%H%M%S"), help="directory of the JSON and PNG"
    )
    return Options(**vars(parser.parse_args(arguments)))


def _names(known: tuple[str, ...]):  # type: ignore[no-untyped-def]
    def parse_names(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: give some of {','.join(known)}")
        return tuple(name for name in known if name in names)

    return parse_names


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number.replace("_", "")) for number in text.split(","))
