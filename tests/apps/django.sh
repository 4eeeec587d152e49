# A Django project, SQLite backend with default settings: migrated and written on the primary, read on the replica.
set -eu
venv="$CACHE/django"
if ! "$venv/bin/python" -c 'import django' 2>/dev/null; then
    python3 -m venv "$venv" >/dev/null 2>&1 && "$venv/bin/pip" install -q 'django>=5,<6' >/dev/null 2>&1 || {
        echo "skipped: django: the package does not install"
        exit 77
    }
fi
DATABASE="$PRIMARY/django.sqlite3" "$venv/bin/python" "$APPS/django_site.py" write
DATABASE="$REPLICA/django.sqlite3" "$venv/bin/python" "$APPS/django_site.py" read
