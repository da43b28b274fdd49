"""Django in the process of the tests: its settings, which can be made once, its tables, and a site with the admin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

APPS = ("django_celery_beat", "django_celery_results")
CONTRIB = ("admin", "auth", "contenttypes", "sessions", "messages", "staticfiles")
MIDDLEWARE = (
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
)
PROCESSORS = (
    "django.template.context_processors.request",
    "django.contrib.auth.context_processors.auth",
    "django.contrib.messages.context_processors.messages",
)
urlpatterns: list[Any] = []


def configure(directory: Path) -> None:
    """Settings and tables of Django's admin, celery-neli's, django-celery-beat and django-celery-results, once per
    process.
    """
    import django
    from django.conf import settings
    from django.core.management import call_command
    from django.test.utils import setup_test_environment

    if settings.configured:
        return
    settings.configure(
        INSTALLED_APPS=[*APPS, *(f"django.contrib.{each}" for each in CONTRIB), "celery_neli.django"],
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": str(directory / "db.sqlite3"),
                # The power is not cut.
                "OPTIONS": {"init_command": "PRAGMA synchronous=OFF"} if django.VERSION >= (5, 1) else {},
            }
        },
        # Tables straight from the models.
        MIGRATION_MODULES=dict.fromkeys((*APPS, "admin", "auth", "contenttypes", "sessions")),
        MIDDLEWARE=list(MIDDLEWARE),
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {"context_processors": list(PROCESSORS)},
            }
        ],
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        ROOT_URLCONF=__name__,
        SECRET_KEY="of the tests",
        STATIC_URL="static/",
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
        USE_TZ=True,
        TIME_ZONE="UTC",
    )
    django.setup()
    setup_test_environment()  # a client of the tests sees what a page was made of
    from django.contrib import admin
    from django.urls import path

    urlpatterns.append(path("admin/", admin.site.urls))
    call_command("migrate", run_syncdb=True, verbosity=0)
