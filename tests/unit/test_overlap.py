"""The overlap policy, and what a result backend knows of an entry's last task."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from celery.beat import ScheduleEntry

from celery_neli.exceptions import ConfigurationError
from celery_neli.schedule.policies import Overlap, unfinished

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")  # Celery calls it

HOUR = 3600.0
NOW = 1_767_225_600.0


def app_with(backend: str | None, **conf: Any) -> Celery:
    app = Celery("overlap", broker="memory://", backend=backend, set_as_current=False)
    app.conf.update(conf)

    @app.task(name="import", shared=False)
    def import_() -> None: ...

    @app.task(name="forget", shared=False, ignore_result=True)
    def forget() -> None: ...

    return app


def entry(app: Celery, *, task: str = "import", **options: Any) -> ScheduleEntry:
    return ScheduleEntry(name="hourly", task=task, schedule=60.0, options=options, app=app)


@pytest.fixture
def app() -> Celery:
    return app_with("redis://127.0.0.1:1/0")


def test_tasks_may_overlap_unless_an_entry_says_otherwise(app: Celery) -> None:
    """The default is Celery's own behaviour."""
    assert not Overlap.of(entry(app)).asks
    assert not Overlap.of(entry(app, queue="q", neli_overlap_age=5)).asks
    assert Overlap.of(entry(app, neli_overlap="skip")) == Overlap(policy="skip", age=HOUR)
    assert Overlap.of(entry(app, neli_overlap="skip", neli_overlap_age=5)) == Overlap(policy="skip", age=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neli_overlap": "never"}, "neli_overlap = 'never': give one of allow, skip, queue_one, cancel_other"),
        ({"neli_overlap": True}, "neli_overlap = True: give one of allow, skip, queue_one, cancel_other"),
        *(
            ({"neli_overlap": "skip", "neli_overlap_age": age}, f"neli_overlap_age = {age!r}: give a number of seconds")
            for age in (0, -1, "60", True, float("inf"))
        ),
    ],
)
def test_options_that_do_not_exist_are_refused(app: Celery, options: dict[str, Any], message: str) -> None:
    """The error names the entry, the option and its value."""
    with pytest.raises(ConfigurationError, match=message) as raised:
        Overlap.of(entry(app, **options))
    assert str(raised.value).startswith("beat entry 'hourly': neli_overlap")


@pytest.mark.parametrize(
    ("backend", "conf", "options", "reason"),
    [
        (None, {}, {}, "there is no result backend: set result_backend"),
        ("rpc://", {}, {}, "rpc:// answers only the process that sent the task"),
        ("cache+memory://", {}, {}, "cache[+]memory:// answers only the process that ran the task"),
        ("nonsense://", {}, {}, "the result backend cannot be made: .*nonsense"),
        ("redis://", {}, {"task": "forget"}, "results of forget are ignored: set ignore_result to False"),
        ("redis://", {}, {"ignore_result": True}, "results of import are ignored"),
        ("redis://", {}, {"task_id": "x"}, "its options name a task_id"),
        ("redis://", {"result_expires": 600}, {}, "neli_overlap_age = 3600 s is above result_expires = 600 s"),
        ("redis://", {"result_failure_expires": 60}, {}, "neli_overlap_age = 3600 s is above result_failure_expires"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*result_failure_expires:UserWarning")  # backends without it say so
@pytest.mark.parametrize("policy", ["skip", "queue_one", "cancel_other"])
def test_a_policy_is_refused_where_nothing_tells_when_a_task_has_finished(
    backend: str | None, conf: dict[str, Any], options: dict[str, Any], reason: str, policy: str
) -> None:
    """When the schedule is built, not when the first slot is due. No such entry is refused that allows overlaps."""
    app = app_with(backend, **conf)
    given = entry(app, neli_overlap=policy, **options)
    with pytest.raises(ConfigurationError, match=f"^beat entry 'hourly': neli_overlap = '{policy}', but .*{reason}"):
        Overlap.of(given).check(app, given)
    harmless = entry(app, **options)
    Overlap.of(harmless).check(app, harmless)


@pytest.mark.parametrize(
    ("conf", "options"),
    [
        ({}, {}),
        ({}, {"task": "elsewhere"}),
        ({}, {"task": "forget", "ignore_result": False}),
        ({"result_expires": None}, {"neli_overlap_age": 10 * 86400}),
        ({"result_expires": 7200}, {}),
    ],
)
def test_skip_is_accepted_where_a_result_backend_can_tell(conf: dict[str, Any], options: dict[str, Any]) -> None:
    """Also for tasks that this process has not imported."""
    app = app_with("redis://127.0.0.1:1/0", **conf)
    given = entry(app, neli_overlap="skip", **options)
    Overlap.of(given).check(app, given)


@pytest.mark.parametrize(
    ("state", "answer"),
    [
        ("PENDING", True),
        ("STARTED", True),
        ("RETRY", True),
        ("HALF WAY", True),
        ("SUCCESS", False),
        ("FAILURE", False),
        ("REVOKED", False),
        ("IGNORED", False),
    ],
)
def test_what_a_state_means(redis_url: str, state: str, answer: bool) -> None:
    """Unfinished is whatever has not come to an end; in a real Redis, as workers write it there."""
    app = app_with(redis_url)
    if state != "PENDING":
        app.backend.store_result("id", ValueError("for failures") if state == "FAILURE" else None, state)
    assert unfinished(app, "id", NOW - 60, NOW, HOUR) is answer


def test_a_task_that_is_too_old_counts_as_finished(app: Celery) -> None:
    """A lost task looks unfinished for ever. The result backend is not even asked: there is none at that port."""
    assert not unfinished(app, "id", NOW - HOUR - 1, NOW, HOUR)
    with pytest.raises(app.backend.connection_errors):
        unfinished(app, "id", NOW - HOUR + 1, NOW, HOUR)


def test_a_task_s_own_result_backend_is_asked(redis_url: str) -> None:
    """A task may be given one that is not the app's."""
    app, other = app_with("redis://127.0.0.1:1/0"), app_with(redis_url)
    other.backend.store_result("id", None, "SUCCESS")
    app.tasks["import"].backend = other.backend
    assert not unfinished(app, "id", NOW, NOW, HOUR, task="import")


def test_answers_are_not_kept_in_memory(redis_url: str) -> None:
    """A cache of the backend's would hold the results of all these tasks."""
    app = app_with(redis_url, result_cache_max=1000)
    app.backend.store_result("id", "x" * 1000, "SUCCESS")
    assert not unfinished(app, "id", NOW, NOW, HOUR)
    app_with(redis_url).backend.forget("id")
    assert unfinished(app, "id", NOW, NOW, HOUR)
