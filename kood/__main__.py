"""`python -m kood`."""

from kood.cli import main

main()
