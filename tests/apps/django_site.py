"""A whole Django site in one file: `write` migrates and fills the database, `read` checks it, elsewhere perhaps."""

import os
import sys
import time

import django
from django.conf import settings

settings.configure(
    INSTALLED_APPS=[
        "django.contrib.contenttypes",
        "django.contrib.auth",
        "django.contrib.sessions",
    ],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["DATABASE"]}},
    SECRET_KEY="not a secret",
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    USE_TZ=True,
)
django.setup()

from django.contrib.auth.models import Group, User  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import DatabaseError, connection, transaction  # noqa: E402

USERS = 60


def write():
    call_command("migrate", verbosity=0)
    call_command("check", verbosity=0)
    readers, _ = Group.objects.get_or_create(name="readers")
    User.objects.all().delete()
    for number in range(USERS):
        User.objects.create_user(f"user{number}", password="x").groups.add(readers)
    with transaction.atomic():
        User.objects.filter(pk__lt=30).update(last_name="changed")
        try:
            with transaction.atomic():
                User.objects.all().delete()
                raise ValueError("taken back")
        except ValueError:
            pass
    User.objects.get(username="user0").delete()
    call_command("migrate", "sessions", "zero", verbosity=0)
    call_command("migrate", verbosity=0)
    Group.objects.create(name="done")


def read():
    for _ in range(200):
        try:
            if Group.objects.filter(name="done").exists():
                break
        except DatabaseError:
            connection.close()
        time.sleep(0.1)
    else:
        sys.exit("the replica does not have what was written")
    assert User.objects.count() == USERS - 1
    assert Group.objects.get(name="readers").user_set.count() == USERS - 1
    assert User.objects.filter(last_name="changed").exists()
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA integrity_check")
        assert cursor.fetchone() == ("ok",)
    if os.environ["PRIMARY"] != os.environ["REPLICA"]:
        try:
            Group.objects.create(name="forbidden")
        except DatabaseError as error:
            assert "readonly" in str(error), error
        else:
            sys.exit("the replica accepted a write")


{"write": write, "read": read}[sys.argv[1]]()
