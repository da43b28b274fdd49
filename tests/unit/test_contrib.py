"""The dashboard and the alert rules in `contrib/`: every metric in them is exported, and Prometheus takes them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from celery_neli.metrics import catalogue
from tests import services

CONTRIB = Path(__file__).parents[2] / "contrib"
RULES = CONTRIB / "prometheus" / "celery-neli.rules.yml"
TESTS = CONTRIB / "prometheus" / "celery-neli.rules.test.yml"
DASHBOARD = CONTRIB / "grafana" / "celery-neli.json"
SELECTOR = re.compile(r"(celery_neli_\w+)(?:\{([^}]*)\})?")
ALERT = re.compile(r"^      - alert: (\w+)$", re.MULTILINE)
EXPRESSION = re.compile(r"^        expr: (.*\n(?: {10}.*\n)*)", re.MULTILINE)
#: What a scrape adds.
OF_THE_SCRAPE = {"instance", "job"}


def series() -> dict[str, set[str]]:
    """The names under which values are exported (test_metrics.py compares them with a scrape), with their labels."""
    found: dict[str, set[str]] = {}
    for each in catalogue.METRICS:
        labels = {*each.labels, *OF_THE_SCRAPE}
        if each.kind == catalogue.HISTOGRAM:
            found[f"{each.name}_bucket"] = {*labels, "le"}
            found[f"{each.name}_count"] = found[f"{each.name}_sum"] = labels
        else:
            found[each.name] = labels
    return found


def expressions() -> list[str]:
    """All PromQL of the dashboard, with its variables replaced."""
    document = json.loads(DASHBOARD.read_text())
    targets = [each["expr"] for panel in document["panels"] for each in panel.get("targets", [])]
    targets += [each["expr"] for each in document["annotations"]["list"] if "expr" in each]
    return [each.replace("$__rate_interval", "5m").replace("$group", ".*") for each in targets]


@pytest.fixture(scope="module")
def promtool() -> str:
    return services.require("promtool (Debian's prometheus)", services.promtool())


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(each) for each in command], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "text", [RULES.read_text(), TESTS.read_text(), "\n".join(expressions())], ids=["rules", "tests", "dashboard"]
)
def test_every_metric_and_label_is_exported(text: str) -> None:
    """A metric that was renamed would leave an alert that never fires, and an empty panel."""
    known = series()
    # A runbook may name a histogram by itself.
    found = SELECTOR.findall(re.sub(r"^ +runbook: (.*\n(?: {12}.*\n)*)", "", text, flags=re.MULTILINE))
    assert found
    for name, selector in found:
        assert name in known, name
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
        assert labels <= known[name], (name, labels - known[name])


def test_every_metric_is_on_the_dashboard() -> None:
    """Else why keep it."""
    shown = {name for each in expressions() for name, _ in SELECTOR.findall(each)}
    for each in catalogue.METRICS:
        name = f"{each.name}_bucket" if each.kind == catalogue.HISTOGRAM else each.name
        assert name in shown, name


def test_the_dashboard_is_whole() -> None:
    """Panels have ids of their own, do not overlap, and say what they show; nothing depends on one data source."""
    document = json.loads(DASHBOARD.read_text())
    panels: list[dict[str, Any]] = document["panels"]
    assert len({each["id"] for each in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for each in panels:
        place = each["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, each["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        if each["type"] != "row":
            assert each["description"]
            assert {target["datasource"]["uid"] for target in each["targets"]} == {"${datasource}"}


def test_every_alert_has_a_runbook() -> None:
    """Whoever is called at night reads it."""
    blocks = ALERT.split(RULES.read_text())[1:]
    for name, block in zip(blocks[::2], blocks[1::2], strict=True):
        for part in ("summary:", "description:", "runbook:", "severity:"):
            assert part in block, (name, part)


def test_prometheus_takes_the_rules(promtool: str) -> None:
    """By `promtool check rules`."""
    done = run(promtool, "check", "rules", RULES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_dashboards_expressions(promtool: str, tmp_path: Path) -> None:
    """As rules, which are checked."""
    rules = [{"record": f"panel:{n}", "expr": each} for n, each in enumerate(expressions())]
    path = tmp_path / "panels.yml"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))  # JSON is YAML, too
    done = run(promtool, "check", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_alarm_when_they_should(promtool: str) -> None:
    """And not otherwise: by `promtool test rules`."""
    done = run(promtool, "test", "rules", TESTS)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("always", [False, True], ids=["never", "always"])
def test_the_tests_of_the_rules_notice(promtool: str, tmp_path: Path, *, always: bool) -> None:
    """Alerts that never fire, or always, fail them: what `promtool` then says names each of them."""
    expression = 'group by (group) ({__name__=~"celery_neli_.+"})'
    text = re.sub(r"^        for: .*\n", "", RULES.read_text(), flags=re.MULTILINE)
    text = EXPRESSION.sub(f"        expr: {expression if always else 'vector(1) > 2'}\n", text)
    (tmp_path / RULES.name).write_text(text)
    (tmp_path / TESTS.name).write_text(TESTS.read_text())
    assert run(promtool, "check", "rules", tmp_path / RULES.name).returncode == 0
    done = run(promtool, "test", "rules", tmp_path / TESTS.name)
    assert done.returncode != 0
    told = done.stdout + done.stderr
    assert [alert for alert in ALERT.findall(text) if alert not in told] == []
