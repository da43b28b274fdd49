"""What `make bench` compares still runs: else nobody would notice before the next measurement."""

from __future__ import annotations

import pytest

from benchmarks.brokers import Broker
from benchmarks.contenders import Celerys, CelerysLed, Contender, Neli, NeliLed, SendTask


@pytest.mark.parametrize("contender", [SendTask, Celerys, CelerysLed, Neli, NeliLed])
def test_a_contender_sends_what_is_due(contender: type[Contender]) -> None:
    """On the memory transport, and nothing else."""
    with Broker("memory", "memory://") as there:
        each = contender(there, 5)
        each.build()
        try:
            each.overdue(3)
            each.send(3)
            assert there.waiting() == 3
        finally:
            each.close()
            there.purge()
