"""The documents say what the code does: their tables, links and commands agree with it, and their Python runs."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from celery import Celery
from celery.worker.control import Panel
from click.testing import CliRunner

from celery_neli.config import Config
from celery_neli.election import records
from celery_neli.election.records import Record, encode
from celery_neli.kafka.topic_spec import leader_topic, schedule_topic
from celery_neli.periodic.text import parse
from celery_neli.settings import MAX_LEASE, MISFIRE_POLICIES

ROOT = Path(__file__).parents[2]
README, OPERATIONS, PROTOCOL = ROOT / "README.md", ROOT / "docs" / "operations.md", ROOT / "docs" / "protocol.md"
WORKERS, SCHEDULE = ROOT / "docs" / "workers.md", ROOT / "docs" / "schedule.md"
GUARANTEES, REFERENCE = ROOT / "docs" / "guarantees.md", ROOT / "docs" / "reference.md"
SETTINGS, GLOSSARY = ROOT / "docs" / "settings.md", ROOT / "docs" / "glossary.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def between(page: Path, begin: str, end: str) -> str:
    return text_of(page).partition(begin)[2].partition(end)[0]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of `page` in `language`, in order."""
    return [text for found, text in BLOCK.findall(text_of(page)) if found == language]


def commands(*pages: Path) -> list[list[str]]:
    """The commands of the console blocks, as words."""
    lines = [line for page in pages for block in blocks(page, "console") for line in block.splitlines()]
    return [shlex.split(line[2:]) for line in lines if line.startswith("$ ")]


def celery_commands() -> list[list[str]]:
    """The `celery` commands of the documents, also of running text and tables; optional parts count as given."""
    pages = README, OPERATIONS, WORKERS, SCHEDULE, REFERENCE
    text = "\n".join(map(text_of, pages))
    spans = [re.sub(r"[\[\]]", "", span) for span in re.findall(r"`(celery -A shop [^`\n]+)`", text)]
    return [*(words for words in commands(*pages) if words[0] == "celery"), *map(shlex.split, spans)]


def schedules() -> list[str]:
    """The schedules that docs/schedule.md shows: those of its table, and of the commands that add one."""
    table = between(SCHEDULE, "| schedule, as text | |", "\n\n")
    spans = [
        span for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for span in re.findall(r"`([^`]+)`", row)
    ]
    return [*spans, *(words[8] for words in commands(SCHEDULE) if words[3:6] == ["neli", "schedule", "add"])]


def python(code: str, *arguments: str) -> str:
    """What `code` prints in an interpreter of its own: apps and receivers that it makes concern no other test."""
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_settings_page() -> None:
    """The page of settings is what `python -m celery_neli.settings` prints."""
    assert text_of(SETTINGS) == python("import runpy; runpy.run_module('celery_neli.settings', run_name='__main__')")


def test_the_readme_is_short() -> None:
    """A reader gives it ten minutes."""
    assert len(text_of(README).split()) <= 900


def test_the_glossary_is_short() -> None:
    """Twenty terms at most, in alphabetical order, each once."""
    terms = re.findall(r"^\| \*\*(.+?)\*\* \|", text_of(GLOSSARY), re.MULTILINE)
    assert terms == sorted(set(terms))
    assert 0 < len(terms) <= 20


def test_every_page_is_in_the_index() -> None:
    """What to read when: no page of `docs/` is forgotten."""
    linked = {target for target, _ in LINK.findall(text_of(ROOT / "docs" / "index.md"))}
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"} <= linked


@pytest.mark.parametrize(
    "page", [README, OPERATIONS, WORKERS, SCHEDULE, GUARANTEES, REFERENCE], ids=lambda page: page.name
)
def test_python_runs(page: Path) -> None:
    """Every Python block runs behind those before it, but for those that need a Kafka: smoke tests run these."""
    ran = [
        text for text in blocks(page, "python") if not re.search(r"Neli\(|^(tenant = )?periodic\.", text, re.MULTILINE)
    ]
    assert ran
    python("import sys\nshop = {'__name__': 'shop'}\nfor each in sys.argv[1:]: exec(each, shop)", *ran)


def test_a_repeat_is_recognised() -> None:
    """The task that shows how, run twice with one id, works once; a run that failed may be repeated."""
    (shown,) = [text for text in blocks(SCHEDULE, "python") if "bill" in text and "sqlite3" in text]
    judge = """
import sys
shop = {"__name__": "shop"}
exec(sys.argv[1], shop)
for task_id, slot in ("a", "one"), ("a", "one"), ("b", {}), ("b", "two"):
    shop["bill"].push_request(id=task_id, neli_beat_slot=slot)
    try:
        print(shop["bill"].run())
    except Exception:
        print("failed")
print(shop["database"].execute("SELECT slot FROM invoices").fetchall())
"""
    assert python(judge, shown).splitlines() == [
        "billed for one",
        "ran before",
        "failed",
        "billed for two",
        "[('one',), ('two',)]",
    ]


def test_the_policies_exist() -> None:
    """Every misfire and overlap policy of the examples is one, and every policy has its line in the table."""
    judge = """
import sys
from celery_neli import ReplicatedScheduler
from celery_neli.schedule.policies import Overlap
for text in sys.argv[1:]:
    shop = {"__name__": "shop"}
    exec(text, shop)
    shop["app"].conf.neli_enabled = False
    scheduler = ReplicatedScheduler(shop["app"])
    assert scheduler.schedule.keys() >= shop["app"].conf.beat_schedule.keys(), "none is left out"
    for entry in scheduler.schedule.values():
        Overlap.of(entry).check(shop["app"], entry)
"""
    shown = [text for text in blocks(SCHEDULE, "python") if "beat_schedule" in text]
    assert len(shown) == 7
    python(judge, *shown)
    told = between(SCHEDULE, "## Missed slots", "\n## ")
    assert set(re.findall(r"^\| `(\w+)`", told, re.MULTILINE)) == set(MISFIRE_POLICIES)


@pytest.mark.parametrize("text", schedules())
def test_schedules_as_text(text: str) -> None:
    """Each schedule of the table, and of the commands, can be read."""
    assert parse(text, app=Celery("shop", set_as_current=False))


def test_adoption() -> None:
    """The lines that the README tells users to add make a valid configuration, and Django's mean the same."""
    judge = """
import sys
from types import SimpleNamespace
from celery import Celery
from celery_neli.config import from_app
shop, settings = {"__name__": "shop"}, {}
exec(sys.argv[1], shop)
exec(sys.argv[2], {}, settings)
django = Celery("shop")
django.config_from_object(SimpleNamespace(**settings), namespace="CELERY")
for app in shop["app"], django:
    made = from_app(app, "beat")
    print(made.group, made.topic, made.properties["bootstrap.servers"], app.conf.beat_scheduler)
"""
    plain, django = python(judge, *blocks(README, "python")[:2]).splitlines()
    assert plain == "shop-production.beat shop-production.beat.neli localhost:9092 celery_neli.Scheduler"
    assert django == plain.replace("shop-", "mysite-")


@pytest.mark.filterwarnings("ignore:The parameter -d is used more than once:UserWarning")  # Celery's own `events`
@pytest.mark.parametrize("words", celery_commands(), ids=" ".join)
def test_celery_command_exists(words: list[str]) -> None:
    """Celery knows each command of the documents, and all of its options."""
    from celery.bin.celery import celery

    arguments = [each for each in words[1:] if each not in ("-A", "shop")]
    # Options are parsed before --help is served, so an unknown one is an error.
    result = CliRunner().invoke(celery, [*arguments, "--help"])
    assert result.exit_code == 0, result.output
    if arguments[0] in ("inspect", "control"):
        assert Panel.meta[arguments[1]].type == arguments[0]


def test_make_targets() -> None:
    """Each `make` command has its target."""
    targets = set(re.findall(r"`make (\w+)`", text_of(README)))
    assert targets == {"demo", "dist", "test"}
    for target in targets:
        assert re.search(rf"^{target}:", text_of(ROOT / "Makefile"), re.MULTILINE)


def test_make_help() -> None:
    """`make help` lists every target that is one to call."""
    makefile = text_of(ROOT / "Makefile")
    targets = re.findall(r"\w+", re.findall(r"^\.PHONY:(.*)$", makefile, re.MULTILINE)[0])
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert sorted(re.findall(r"^make (\w+) +\S", shown, re.MULTILINE)) == sorted(targets)


def test_topic_command() -> None:
    """The commands that create the topics by hand are those that an error would show."""
    shown = [" ".join(words) for words in commands(OPERATIONS) if words[0] == "kafka-topics.sh"]
    config = Config(group="shop-production.beat")
    assert shown == [leader_topic(config).create_command(replicas=3), schedule_topic(config).create_command(replicas=3)]


@pytest.mark.parametrize(
    "page", [README, CONTRIBUTING, *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_links(page: Path) -> None:
    """Links within the project lead somewhere, their anchors too."""
    for target, anchor in LINK.findall(text_of(page)):
        found = page.parent / target if target else page
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", text_of(found), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings]


def test_the_map() -> None:
    """CONTRIBUTING stays short, and names every package and every file of the package that it points to."""
    text = CONTRIBUTING.read_text()
    assert len(text.split()) <= 900
    package = ROOT / "celery_neli"
    packages = {each.parent.name for each in package.rglob("__init__.py")} - {"celery_neli"}
    assert {each for each in packages if f"{each}/" not in text} == set()
    files = {each.name for each in package.rglob("*.py")} | {each.name for each in (ROOT / "tests").rglob("*.py")}
    assert set(re.findall(r"(\w+\.py)\b", text)) <= files


def test_record_fields() -> None:
    """The protocol names every field of a record, and the bounds that the code has."""
    told = between(PROTOCOL, "## Records", "## The fold")
    every = [
        Record(kind="claim", member="m", seq=1, lease=4.0, end=1, data={}),
        Record(kind="beat", member="m", seq=1, lease=4.0, seen=1, term=1),
        Record(kind="request", member="m", seq=0, lease=0.0, to="m"),
    ]
    fields = {key for record in every for key in json.loads(encode(record))}
    assert set(re.findall(r"^\| `(\w+)` \|", told, re.MULTILINE)) == fields
    for bound in (
        f"longer than {records.MAX_BYTES:,} bytes",
        f"{records.MAX_DATA:,} characters",
        f"at most {MAX_LEASE:g}",
        f"1 to {records.MAX_NAME} characters",
        f"{records.MAX_DIGITS} characters",
        f"{records.MAX_BRACKETS} opening brackets",
    ):
        assert bound in told
