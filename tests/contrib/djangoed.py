"""A Django with the recipe of docs/gunicorn.rst, for tests with a real gunicorn: its sessions are in a sqlite file."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import django
from django.conf import settings

DATABASE = os.environ["DJANGO_DATABASE"]
COOKIE = "sessionid"

settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": DATABASE, "CONN_MAX_AGE": 600}},
    INSTALLED_APPS=["django.contrib.sessions"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="for tests",
    SESSION_ENGINE="django.contrib.sessions.backends.db",
    SESSION_COOKIE_NAME=COOKIE,
)
django.setup()

from django.core.management import call_command  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402

urlpatterns: list[Any] = []


def recipe() -> str:
    """Return the recipe as the page shows it."""
    page = (Path(__file__).resolve().parent.parent.parent / "docs/gunicorn.rst").read_text()
    found = re.search(r"with Django's session.*?\.\. code-block:: python\n\n(.*?)\n\n\S", page, re.DOTALL)
    assert found
    return textwrap.dedent(found[1])


def make_session() -> str:
    """Return the key of a session of a user."""
    from django.contrib.sessions.backends.db import SessionStore

    call_command("migrate", verbosity=0)
    session = SessionStore()
    session["user"] = "ada"
    session.create()
    return str(session.session_key)


def _open_files(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer with the number of open descriptors of the database, and the number of all."""
    names = []
    for number in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:
            continue  # that of listdir itself
    body = b"%d\n" % sum(name.startswith(DATABASE) for name in names)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def make_application() -> Any:
    """Return what the workers serve (called by gunicorn)."""
    from gmultisocket.contrib.wsgi import mount
    from tests.contrib.served import _make

    get_wsgi_application()
    scope: dict[str, Any] = {"make_socket": _make, "application": _open_files, "mount": mount}
    exec(recipe(), scope)
    return scope["application"]
