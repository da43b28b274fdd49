"""The page while Kafka is frozen and restarted: it shows what it knows, says since when, and goes on by itself."""

from __future__ import annotations

import re
import urllib.request
from typing import TYPE_CHECKING

import pytest

from tests import services
from tests.kafka.cluster import KafkaCluster
from tests.processes import wait_until
from tests.smoke.members import SCHEDULE, members
from tests.ui.command import command

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.smoke, pytest.mark.slow]


def test_kafka_frozen_and_restarted(
    names: Callable[[str], str], redis_url: str, kafka_libs: Path, tmp_path: Path
) -> None:
    """Within seconds the page says that it is old, and each of its pages answers; and that is over when Kafka is back.
    The beat sends on, and its runs appear.
    """
    cluster = KafkaCluster(nodes=1, java=services.java() or "", libs=kafka_libs, directory=tmp_path / "kafka")

    def page(path: str = "/") -> str:
        with urllib.request.urlopen(f"{address}{path}", timeout=5) as answer:  # noqa: S310 - http
            return " ".join(re.sub(r"<[^>]*>", " ", answer.read().decode()).split())

    def see(what: str, path: str = "/", timeout: float = 60.0) -> None:
        wait_until(lambda: re.search(what, page(path)), timeout=timeout, what=what, interval=0.2)

    try:
        cluster.start()
        with members(
            tmp_path, neli_group=names("g"), neli_kafka=cluster.bootstrap_servers, broker_url=redis_url,
            beat_schedule=SCHEDULE,
        ) as election, command(election) as address:  # fmt: skip
            election.beat(name="one")
            see(r"beat leader one \d+")
            see(r"tick slot \d")
            assert "Kafka does not answer" not in page()
            cluster.node(1).freeze()
            see("Kafka does not answer. What you see is from .* ago", timeout=30)
            assert "1–2 of 2 entries" in page("/schedule")
            assert "smoke.tick" in page("/entry?name=tick")
            cluster.node(1).thaw()
            wait_until(lambda: "Kafka does not answer" not in page(), timeout=30, what="the page is right again")
            cluster.stop()
            cluster.start()
            see(r"beat leader one \d+ \d\d:\d\d:\d\d [1-4]\.\d of 4 s", timeout=60)
            wait_until(lambda: "Kafka does not answer" not in page(), timeout=30, what="the page is right again")
    finally:
        cluster.stop()
