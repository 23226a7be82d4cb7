"""`python -m queryloop` is the command `queryloop`."""

from queryloop.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
