"""Lets ``python -m numbadrop`` do what ``numbadrop`` does."""

from numbadrop.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
