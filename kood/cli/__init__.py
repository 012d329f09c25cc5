"""The command line: parses, sets the process up, calls the pipeline. Imports nothing heavy at load."""

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from kood import __version__
from kood.cli import finished, recipes
from kood.errors import UserError
from kood.files import no_room
from kood.process import Stopped, settle, stop_on_signals
from kood.text import clean, masked, printable

__all__ = ["app", "main"]

#: The commands that go on where they were stopped.
GO_ON = ("run", "attach")

app = typer.Typer(
    name="kood",
    help="Image classifiers that know what they do not know.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(recipes.commands)
app.add_typer(finished.commands)


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"kood {__version__}")
        raise typer.Exit


@app.callback()
def _of_all(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Show kood's version and exit.")
    ] = False,
) -> None:
    """What is asked of kood itself."""


def main() -> None:
    """Runs the command line; every error a user can mend is one message and an exit code."""
    settle()
    stop_on_signals()
    sys.argv[1:] = sys.argv[1:] or ["--help"]
    try:
        sys.exit(app(prog_name="kood", standalone_mode=False))
    except typer.TyperException as error:
        _say(_misused(error))
        sys.exit(error.exit_code)
    except UserError as error:
        _say(str(error))
        sys.exit(error.exit_code)
    except Stopped as stop:
        if hasattr(signal, "setitimer"):  # Windows has neither this nor SIGPIPE.
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        further = "; the same command goes on where this one was" if _command() in GO_ON else ""
        typer.echo(f"kood: stopped{further}", err=True)
        sys.exit(128 + stop.args[0])
    except (BrokenPipeError, SystemExit) as error:
        # Typer ends a command so, with 1 as of one that failed.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        # Whoever read the output has enough of it, as `head` does; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(128 + getattr(signal, "SIGPIPE", 13))
    except Exception as error:
        if os.environ.get("KOOD_TRACEBACK"):
            raise
        _say(_unforeseen(error))
        sys.exit(1)


def _command() -> str:
    """Which command was called, as far as it can be told before the command line is understood."""
    return next((word for word in sys.argv[1:] if not word.startswith("-")), "")


def _misused(error: typer.TyperException) -> str:
    """What Typer has against a command line, on one line, and where to look."""
    said = clean(error.format_message())
    known = getattr(getattr(error, "ctx", None), "command_path", f"kood {_command()}".strip())
    return f"{said if said[-1:] in '.?' else f'{said}.'} See `{known} --help`."


def _unforeseen(error: Exception) -> str:
    """What to say of an error that no command expects."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if full := no_room(error):  # The output has no name, and what a framework writes has its own words.
        return f"the output or a file cannot be written: {full}"
    if isinstance(error, FileNotFoundError):
        try:
            Path.cwd()
        except FileNotFoundError:
            return "the current folder has been removed; go to another"
    last = traceback.extract_tb(error.__traceback__)[-1]
    said = str(error) or f"{last.line} ({last.filename})"  # An assertion has no words.
    return f"{type(error).__name__}: {said} (KOOD_TRACEBACK=1 shows where)"


def _say(message: str) -> None:
    """Prints what went wrong; it may hold names from a disk or a server."""
    typer.echo(f"kood: {printable(masked(message))}", err=True)
