"""``python -m active_restore`` is the ``active-restore`` command."""

from active_restore.cli.main import run

if __name__ == "__main__":
    run()
