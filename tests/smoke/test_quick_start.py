"""The README's quick start, pasted by somebody who has nothing but the README."""

from __future__ import annotations

from importlib.metadata import metadata
from pathlib import Path

import pytest

from tests.smoke.pages import ROOT, FreshEnvironment, blocks, commands, lines_but_for_names_and_times

README = ROOT / "README.md"

pytestmark = pytest.mark.smoke


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> FreshEnvironment:
    """A fresh environment with what the README installs, in the README's words; this checkout stands for the clone."""
    made = FreshEnvironment(tmp_path_factory.mktemp("quick-start"))
    clone, *install = (command for command, _ in commands(blocks(README, "console", after="## Quick start")[0]))
    assert clone == f"git clone {metadata('celery-neli').get_all('Project-URL', [])[0].partition(', ')[2]}"
    (made.directory / "celery-neli").symlink_to(ROOT)
    made.install(install)
    (made.directory / "celery-neli").unlink()
    return made


def _start(fresh: FreshEnvironment, name: str) -> Path:
    """An empty directory in the fresh environment."""
    fresh.directory = fresh.directory.parent / name
    fresh.directory.mkdir()
    return fresh.directory


def _pasted() -> list[tuple[str, str]]:
    first, second = blocks(README, "console", after="save as `shop.py`")[:2]
    return commands(first) + commands(second)


def test_the_quick_start_works_as_pasted(fresh: FreshEnvironment) -> None:
    """Word by word: a leader, `kill -9`, the successor, and a task every five seconds; the outputs are those shown, but
    for names and times.
    """
    directory = _start(fresh, "plain")
    (directory / "shop.py").write_text(blocks(README, "python", after="save as `shop.py`")[0])
    pasted = _pasted()
    (leader_only, at_runtime) = blocks(README, "python", after="## Leader-only tasks")
    further = f"{leader_only}\n{at_runtime}"
    shown_last = ["cat > further.py <<'END'\nfrom shop import app\n" + further + "END", "python further.py"]
    shown_last.append("celery -A shop neli schedule list")
    printed = fresh.run([*(command for command, _ in pasted), *shown_last])
    assert "tidy-more" in printed.pop(), printed
    assert [printed.pop().strip(), printed.pop().strip()] == ["", ""]
    assert len(printed) == len(pasted)
    for (command, shown), text in zip(pasted, printed, strict=True):
        if shown:
            lines = [line for line in text.splitlines() if line and "Killed" not in line]
            assert lines_but_for_names_and_times("\n".join(lines)) == lines_but_for_names_and_times(shown), command


def test_the_quick_start_works_under_django(fresh: FreshEnvironment) -> None:
    """The README's settings in a project that `django-admin` made, with the `celery.py` of Celery's own guide."""
    _start(fresh, "django")
    fresh.install(["pip install --quiet django"])
    (settings,) = blocks(README, "python", after="### Django")[:1]
    entry = 'CELERY_BEAT_SCHEDULE = {"tidy": {"task": "shop.tasks.tidy", "schedule": 5.0}}\n'
    broker = 'CELERY_BROKER_URL = "redis://localhost:6379/0"\n'
    files = {
        "shop/celery.py": "import os\nfrom celery import Celery\n"
        'os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")\n'
        'app = Celery("shop")\napp.config_from_object("django.conf:settings", namespace="CELERY")\n'
        'app.autodiscover_tasks(["shop"])\n',
        "shop/__init__.py": "from .celery import app as celery_app\n",
        "shop/tasks.py": "import celery_neli\nfrom celery import shared_task\n\n\n@shared_task\n"
        "@celery_neli.leader_only\ndef tidy():\n    return 'tidied'\n",
    }
    setup = ["django-admin startproject shop ."]
    for name, text in files.items():
        setup.append(f"cat > {name} <<'END'\n{text}END")
    setup.append(f"cat >> shop/settings.py <<'END'\n{settings}{broker}{entry}END")
    pasted = _pasted()
    printed = fresh.run([*setup, *(command for command, _ in pasted), "cat worker.log"])[len(setup) :]
    statuses = [text for (command, _), text in zip(pasted, printed, strict=False) if " status" in command]
    assert len(statuses) == 2
    assert all(" leads " in text for text in statuses), printed
    assert "succeeded" in printed[-1], printed
