"""What a notebook, a container or a login script exports stands in no command's way."""

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text
from typer.testing import CliRunner

from kood import __version__, process
from kood.cli import app, doctor
from kood.conformal import Shift
from kood.errors import UserError
from kood.monitor import page as monitor_page
from kood.monitor.drift import Ties, drift
from kood.monitor.judge import Finding, Watched
from kood.monitor.stream import Seen
from kood.serving.answers import Answer, print_answers
from tests.conftest import handlers_restored

ROOT = Path(__file__).parents[1]
NAMES = ["x" * 150 + "1.png", "x" * 150 + "2.png", "[red]y[/red].png", ":smile:.png", "end\\"]


def kood(*arguments, **environment):
    outside = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "MPLBACKEND")}
    return subprocess.run(
        [sys.executable, "-m", "kood", *arguments], env={**outside, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip


@pytest.mark.parametrize(
    "backend",
    [
        "module://matplotlib_inline.backend_inline",
        pytest.param("inline", marks=pytest.mark.slow),
        pytest.param("TkAgg", marks=pytest.mark.slow),
        "no backend",
    ],
)
def test_a_notebooks_figures_stop_no_command(backend, tmp_path):
    done = kood("run", str(tmp_path / "none.toml"), MPLBACKEND=backend)
    assert done.returncode == 2 and "cannot read the recipe" in done.stderr
    code = "from kood import process; process.settle(); import matplotlib.pyplot as plt; print(plt.get_backend())"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "MPLBACKEND": backend}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.stdout == "agg\n", done.stderr


def test_a_library_leaves_the_environment_alone():
    outside = {**os.environ, "MPLBACKEND": "module://somewhere", "COLUMNS": "0"}
    code = "import os, kood, kood.cli, kood.process; print(os.environ['MPLBACKEND'], os.environ['COLUMNS'])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=outside, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.stdout == "module://somewhere 0\n"


def test_what_is_loaded_when_used_needs_no_import_of_its_own():
    light = ["diffusion.schedule", "diffusion.samplers", "intervals", "conformal", "recipe", "errors"]
    code = f"import sys, kood; {'; '.join(f'kood.{name}' for name in light)}; print('keras' in sys.modules)"
    code += "; kood.diffusion.label_mixup; print(hasattr(kood.diffusion, 'nothing'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout == "False\nFalse\n", done.stderr


def test_a_command_prints_no_warning_of_a_large_picture():
    """Pillow's has no name of a file in it."""
    code = "import sys; from kood import process; sys.argv[1:] and process.settle(); from PIL import Image; "
    code += "Image.MAX_IMAGE_PIXELS = 10; Image._decompression_bomb_check((4, 4))"
    said = [subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True).stderr
            for words in ([], ["settled"])]  # fmt: skip
    assert "exceeds limit" in said[0] and said[1] == ""


@pytest.mark.parametrize("columns", ["0", "-1", "abc", "1", "39", "", "٣٠"])
def test_a_width_that_is_none_is_not_taken(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys, "__stdout__", io.StringIO())
    assert process.console().width == 120
    monkeypatch.setenv("MPLBACKEND", "any")
    process.settle()
    assert "COLUMNS" not in os.environ
    monkeypatch.setenv("COLUMNS", "44")
    assert process.console().width == 44


def test_a_forced_colour_makes_no_terminal_of_a_pipe(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "__stdout__", io.StringIO())
    assert process.console(140).width == 140


def test_names_that_the_encoding_lacks_are_spelled_out(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "any")
    monkeypatch.setenv("COLUMNS", "80")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    process.settle()
    Console().print(Text("é漢"))
    assert written.getvalue() == b"\\xe9\\u6f22\n"


def test_messages_of_libraries_are_not_held_where_there_is_no_place_for_them(monkeypatch):
    def nowhere():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("tempfile.TemporaryFile", nowhere)
    with process.native_messages_held_back():
        done = True
    assert done
    monkeypatch.setattr(sys, "stderr", None)
    with process.native_messages_held_back():
        pass


def test_the_command_that_doctor_prints_is_whole(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    console = Console(file=io.StringIO(), width=120)
    doctor.report(console)
    for backend in ("jax", "torch"):
        assert f"pip install 'kood[{backend}]'" in console.file.getvalue()


@pytest.mark.parametrize("width", [30, 80, 120])
def test_no_name_is_cut_or_read_as_markup(width, tmp_path, monkeypatch):
    said = {"label": 0, "class_name": "z" * 150 + "1", "probability": 0.5, "ood_score": 1.0, "p_value": 1.0}
    found = [Answer(Path(name), {**said, "is_ood": False, "threshold": 2.0, "version": 1}) for name in NAMES]
    predicted = Console(file=io.StringIO(), width=width)
    print_answers(found, len(found), title="[red]t", console=predicted)
    watched = Console(file=io.StringIO(), width=width)
    seen = [Seen(**{**dict.fromkeys(Seen.__dataclass_fields__, ""), "image": name, "class_name": "z" * 150 + "1",
                    "ood_score": 1.0, "p_value": 0.5, "is_ood": True}) for name in NAMES]  # fmt: skip
    flags = np.ones(len(seen), bool)
    found = drift(flags, 100, 0.95, Ties(95, 1, ~flags), Shift(0.01, 0.5, 1.0))
    finding = Finding("1", ("[red]a", "b"), 0.5, 0.95, seen, found)
    monitor_page.print_findings(watched, Watched((finding,), [":smile: [red]"], 0, []), 0.01, 9)
    for console in (predicted, watched):
        # The first column, in a frame or followed by two blanks.
        first = (re.split(r" {2,}| *│", line.strip("│ "))[0] for line in console.file.getvalue().splitlines())
        shown = "".join(first)
        for name in NAMES:
            assert name in shown
        assert "…" not in console.file.getvalue()
    assert ":smile: [red]" in watched.file.getvalue()


def test_a_recipe_that_is_shown_into_a_file_is_a_recipe(tmp_path):
    (tmp_path / "recipes").mkdir()
    long = tmp_path / "recipes" / "[red] :smile:.toml"
    long.write_text((ROOT / "recipes" / "digits_softmax.toml").read_text(encoding="utf-8"), encoding="utf-8")
    done = CliRunner().invoke(
        app, ["show", str(long), "--set", f"name={'n' * 100}", "--set", "evaluate.scores=['msp']"]
    )
    assert done.exit_code == 0, done.output
    assert f'name = "{"n" * 100}"' in done.output
    listed = subprocess.run(
        [sys.executable, "-m", "kood", "list", "recipes"], env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert listed.stdout.startswith("[red] :smile:.toml")


#: The C library's own end of a process runs this, as it runs the destructors of native libraries.
ABORTS_AT_THE_END = "import ctypes; c = ctypes.CDLL(None); c.__cxa_atexit(c.abort, None, None); "


@pytest.mark.skipif(sys.platform != "linux", reason="speaks to the C library of Linux")
@pytest.mark.parametrize(
    "work, code, said",
    [
        ("print('done')", 0, "done"),
        ("sys.exit(143)", 143, ""),
        ("sys.exit(None)", 0, ""),
        ("sys.exit('no such file')", 1, "no such file"),
        ("atexit.register(print, 'closed'); sys.exit(2)", 2, "closed"),
    ],
)
def test_native_libraries_do_not_abort_a_process_that_has_ended(work, code, said):
    script = f"{ABORTS_AT_THE_END}import atexit, sys\nfrom kood.process import alone\ndef work():\n    {work}\n"
    for ending, expected in (("alone(work)", code), ("work()", -6)):
        done = subprocess.run(
            [sys.executable, "-c", script + ending], env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == expected, done.stderr
        assert said in done.stdout + done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_what_could_not_be_written_is_no_success():
    script = f"{ABORTS_AT_THE_END}import sys; from kood.process import alone; alone(lambda: sys.stdout.write('x'))"
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", script], env={**buffered, "PYTHONPATH": str(ROOT)}, stdout=full, check=False
        )
    assert done.returncode == 120


def test_an_error_that_nobody_foresaw_is_shown_by_python():
    done = subprocess.run(
        [sys.executable, "-c", "from kood.process import alone; alone(lambda: 1 / 0)"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["demo", "none"], ["attach", "none.keras", "--id", "x"], ["attach", __file__, "--id", "x", "--accept", "2"],
     ["attach", __file__, "--id", "x", "--name", "a b"]],
)  # fmt: skip
def test_what_needs_no_backend_to_be_refused_loads_none(arguments, tmp_path):
    script = (
        "import sys; from kood.cli import main\n"
        "try: main()\nfinally: print(sorted({'keras', 'tensorflow', 'jax', 'torch', 'gradio'} & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout.strip() == "[]" and len(done.stderr.splitlines()) == 1, done


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (UserError("a.toml: one\na.toml: two \x1b[2J.png"), "kood: a.toml: one\na.toml: two \\x1b[2J.png\n"),
        (PermissionError(13, "Permission denied", "\x1b[2J.png"), "kood: \\x1b[2J.png: Permission denied\n"),
        (
            OSError(28, "No space left on device"),
            "kood: the output or a file cannot be written: No space left on device\n",
        ),
        (  # TensorFlow's errors have the system's words in them.
            RuntimeError("{{function_node __wrapped__SaveV2}} v/2/x.tempstate3; No space left on device [Op:SaveV2]"),
            "kood: the output or a file cannot be written: No space left on device\n",
        ),
        (AssertionError(), "kood: AssertionError: raise error ("),
        (ValueError("\x1b[2J http://me:secret@host"), "kood: ValueError: \\x1b[2J http://***@host (KOOD_TRACEBACK=1"),
    ],
)
def test_no_name_in_a_message_speaks_to_the_terminal(monkeypatch, capsys, error, told):
    from kood import cli

    def failing(**_):
        raise error

    monkeypatch.delenv("KOOD_TRACEBACK", raising=False)
    for name, what in (("app", failing), ("settle", int), ("stop_on_signals", int)):
        monkeypatch.setattr(cli, name, what)
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err.startswith(told)


def test_a_current_folder_that_is_gone_is_called_that(tmp_path, monkeypatch, capsys):
    from kood import cli

    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.delenv("KOOD_TRACEBACK", raising=False)
    for name, what in (("app", lambda **_: Path("x").absolute()), ("settle", int), ("stop_on_signals", int)):
        monkeypatch.setattr(cli, name, what)
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err == "kood: the current folder has been removed; go to another\n"


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="Windows has none")
def test_whoever_reads_no_more_makes_no_failure():
    begun = subprocess.Popen(
        [sys.executable, "-m", "kood", "list", "heads"], env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    begun.stdout.close()
    assert begun.stderr.read() == b"" and begun.wait() == 128 + signal.SIGPIPE


@pytest.mark.parametrize(
    "arguments", [["predict", "r", "i"], ["monitor", "r", "--data", "i"], ["single-signature", "r", "t"]]
)
def test_what_asks_a_savedmodel_needs_tensorflow_alone(arguments, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "none")
    CliRunner().invoke(app, arguments)
    assert os.environ["KERAS_BACKEND"] == "tensorflow"


def test_a_file_that_cannot_be_read_is_named_without_what_a_terminal_would_do():
    out = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    print_answers([Answer(Path("x"), None, "\x1b[2J.png cannot be read")], 1, console=out)
    assert out.file.getvalue() == "\\x1b[2J.png cannot be read\n"


@pytest.mark.parametrize(("command", "goes_on"), [("demo", False), ("monitor", False), ("run", True), ("attach", True)])
def test_only_what_goes_on_says_so_when_it_is_stopped(monkeypatch, capsys, command, goes_on):
    from kood import cli

    def stopped(**_):
        raise process.Stopped(signal.SIGINT)

    monkeypatch.setattr(sys, "argv", ["kood", command, "saved/run"])
    for name, what in (("app", stopped), ("settle", int), ("stop_on_signals", int)):
        monkeypatch.setattr(cli, name, what)
    with pytest.raises(SystemExit) as done:
        cli.main()
    told = capsys.readouterr().err
    assert done.value.code == 130 and told.startswith("kood: stopped") and ("goes on" in told) == goes_on


def test_a_stop_that_is_swallowed_is_not_told(monkeypatch, capsys):
    """Python swallows what is raised in a finaliser; the next one stops the run."""
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    with handlers_restored():
        process.stop_on_signals()

    class Ending:
        def __init__(self, error):
            self.error = error

        def __del__(self):
            raise self.error

    Ending(process.Stopped(signal.SIGTERM))
    assert capsys.readouterr().err == ""
    Ending(ValueError("something else"))
    assert "something else" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has none")
def test_a_closed_terminal_stops_a_command_but_not_under_nohup(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    with handlers_restored():
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        process.stop_on_signals()
        with pytest.raises(process.Stopped):
            signal.raise_signal(signal.SIGHUP)
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        process.stop_on_signals()
        signal.raise_signal(signal.SIGHUP)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has none")
def test_what_is_said_to_a_terminal_that_is_gone_changes_no_exit_code():
    code = (
        "import os, pty, signal; from kood import cli\n"
        "ours, theirs = pty.openpty(); os.dup2(theirs, 1); os.dup2(theirs, 2); os.close(theirs)\n"
        "def app(**_):\n"
        "    os.close(ours)\n"
        "    try: signal.raise_signal(signal.SIGHUP)\n"
        "    finally: print('on the way out', flush=True)\n"
        "cli.app = app; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 128 + signal.SIGHUP


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("run --sett a=1 x", "No such option: --sett (Possible options: --saved, --set). See `kood run --help`."),
        ("run", "Missing argument 'RECIPE'. See `kood run --help`."),
        ("run x --set", "Option '--set' requires an argument. See `kood run --help`."),
        ("rnu x", "No such command 'rnu'. Did you mean 'run'? See `kood --help`."),
        ("compare x --format csb", "one of 'table', 'markdown', 'latex', 'csv'. See `kood compare --help`."),
    ],
)
def test_a_command_line_that_is_wrong_is_told_on_one_line(invoke, tmp_path, arguments, told):
    done = invoke(*arguments.split(), cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("kood: ") and done.stderr.endswith(f"{told}\n")
    assert len(done.stderr.splitlines()) == 1


def test_kood_alone_shows_its_help(invoke, tmp_path):
    done = invoke(cwd=tmp_path)
    assert done.returncode == 0 and "single-signature" in done.stdout


def test_kood_says_which_version_it_is(invoke, tmp_path):
    done = invoke("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"kood {__version__}\n")
