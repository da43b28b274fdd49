"""Celery's own tests of beat pass with its scheduler replaced by ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import celery
import pytest

from tests import services
from tests.conformance import sdist

#: Tests that cannot pass, by name, each with its reason. There are none.
EXCEPTIONS: dict[str, str] = {}
#: Celery's other tests of beat, each with the reason why it does not run here.
NOT_RUN = {
    "t/smoke/tests/test_beat_remote_control.py": "starts beat in a Docker container",
    "t/smoke/tests/test_beat_shutdown.py": "starts beat in a Docker container",
}


@pytest.fixture(scope="module")
def celerys_tests() -> Path:
    """The directory of Celery's tests, fetched once."""
    if not celery.__version__.startswith("5.7."):
        pytest.skip(f"they are those of Celery 5.7, and this is {celery.__version__}")
    try:
        return sdist.fetch()
    except RuntimeError as error:
        services.require(f"Celery's source distribution ({error})", present=False)
        raise


def outcomes(directory: Path, name: str, tmp_path: Path, **environment: str) -> dict[str, str]:
    """Run Celery's test file with our scheduler in a pytest of its own: each test's outcome."""
    report = tmp_path / "report.xml"
    repository = Path(__file__).parents[2]
    path = os.pathsep.join([str(repository), str(directory), *filter(None, [os.environ.get("PYTHONPATH")])])
    options = ["-p", "tests.conformance.plugin", "-p", "no:cacheprovider", "-c", "pyproject.toml", "-v"]
    deselected = [f"--deselect={name}" for name in EXCEPTIONS]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"--junitxml={report}", name, *deselected],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert "celery.beat.Scheduler is ReplicatedScheduler" in done.stdout, done.stdout + done.stderr
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        bad = [each for each in case if each.tag in ("failure", "error", "skipped")]
        found[f"{case.get('classname')}::{case.get('name')}"] = bad[0].tag if bad else "passed"
        for each in bad:
            print(case.get("name"), each.tag, each.get("message"))
    print(done.stdout[-8000:])
    return found


def not_passed(found: dict[str, str]) -> dict[str, str]:
    return {name: outcome for name, outcome in found.items() if outcome != "passed"}


def test_celerys_unit_tests_of_beat_pass(celerys_tests: Path, tmp_path: Path) -> None:
    """All 169, none skipped."""
    found = outcomes(celerys_tests, "t/unit/app/test_beat.py", tmp_path)
    assert not_passed(found) == {}
    assert len(found) == 169 - len(EXCEPTIONS)


@pytest.mark.slow
def test_celerys_integration_tests_of_beat_pass(celerys_tests: Path, tmp_path: Path, redis_url: str) -> None:
    """All 32, none skipped: with a worker, Redis as broker and as result backend."""
    backend = redis_url.removesuffix("/0") + "/1"
    found = outcomes(celerys_tests, "t/integration/test_beat.py", tmp_path, TEST_BROKER=redis_url, TEST_BACKEND=backend)
    assert not_passed(found) == {}
    assert len(found) == 32 - len(EXCEPTIONS)


def test_what_is_not_run_is_known_by_name(celerys_tests: Path) -> None:
    """No other file of Celery's tests is about beat's scheduler."""
    files = {str(path.relative_to(celerys_tests)) for path in celerys_tests.glob("t/**/test_beat*.py")}
    command = {"t/unit/apps/test_beat.py", "t/unit/bin/test_beat.py"}  # the command line's, which no scheduler changes
    assert files == {"t/unit/app/test_beat.py", "t/integration/test_beat.py", *NOT_RUN, *command}
