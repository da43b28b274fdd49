"""What this machine has to test with, and what to do about what it lacks."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")


def in_ci() -> bool:
    """Whether a missing service is a failure (`CI=true`) and not a reason to skip."""
    return os.environ.get("CI", "").lower() in ("true", "1")


def require(what: str, present: T | None) -> T:
    """Return `present` if it is true; else skip the test that asks, or fail it in CI, naming `what` is missing."""
    if present:
        return present
    if in_ci():
        pytest.fail(f"missing, and required as CI is set: {what}", pytrace=False)
    pytest.skip(f"missing: {what}")


@functools.cache
def java() -> str | None:
    """Return the path of a Java that runs Kafka 4 (17 or newer; `JAVA_HOME` first), or None."""
    home = os.environ.get("JAVA_HOME")
    path = shutil.which("java", path=str(Path(home, "bin"))) if home else shutil.which("java")
    if path is None:
        return None
    told = subprocess.run([path, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', told)
    return path if version and int(version[1]) >= 17 else None


def maven() -> str | None:
    """Return the path of Maven, or None."""
    return shutil.which("mvn")


def redis_server() -> str | None:
    """Return the path of Redis' server, or None."""
    return shutil.which("redis-server")


def rabbitmq_server() -> str | None:
    """Return the path of RabbitMQ's own start script, or None.

    Debian's on the path, a wrapper, insists on root or the user rabbitmq, and on the system's directories.
    """
    return shutil.which("/usr/lib/rabbitmq/bin/rabbitmq-server") or shutil.which("rabbitmq-server")


def promtool() -> str | None:
    """Return the path of Prometheus' tool that checks rules, or None."""
    return shutil.which("promtool")


def chromium() -> tuple[str, str] | None:
    """Return the paths of Chromium and of its driver, or None if one is missing."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    return None if browser is None or driver is None else (browser, driver)
