"""`kood` and `python -m kood`: the command line in a process of its own."""

from kood.cli import main
from kood.process import alone


def run() -> None:
    """What the installed command `kood` calls."""
    alone(main)


if __name__ == "__main__":
    run()
