"""The whole story of a run: the stages of each of its cells, in order.

    recipe -> data -> diffusion model -> judge -> outliers, pure samples -> classifier -> baseline -> evaluation
    -> audit -> comparison with the baseline -> SavedModel -> report

The list is `kood.pipeline.cell.Cell`. Stages hand each other only files. What a stage's result depends on it says
itself; where nothing of that changed, its result is taken as it lies.
"""

import io
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import keras
from rich.console import Console
from rich.text import Text

from kood import report
from kood.backends import obtain
from kood.errors import UserError
from kood.files import no_room, write_atomically
from kood.pipeline.belonging import Belonging
from kood.pipeline.budget import Budget
from kood.pipeline.environment import origin_of, versions
from kood.pipeline.make import make_cell
from kood.pipeline.matrix import run_matrix
from kood.pipeline.prepare import Data
from kood.pipeline.stage import Work
from kood.pipeline.summary import write_report
from kood.pipeline.team import Team
from kood.process import keras_defaults
from kood.recipe import Recipe, load, of_its_file
from kood.recipe.idle import idle_settings
from kood.runs import Run
from kood.serving.client import newest_version
from kood.text import masked

__all__ = ["run"]


@keras_defaults()
def run(
    recipe: str | Path | Recipe,
    overrides: tuple[str, ...] | list[str] = (),
    *,
    fresh: bool = False,
    quick: bool = False,
    any_backend: bool = False,
    other_data: bool = False,
    began: float | None = None,
    saved: str | Path = "saved",
    console: Console | None = None,
) -> dict[str, Any]:
    """Runs a recipe from its file to its report.

    Where the backend's launcher started several processes, each of them calls this; the first one reports.

    Example:
        ```python
        import kood

        report = kood.run("recipes/digits_softmax.toml", ["outliers.use=[]"], quick=True)
        report["id"]["accuracy"]
        ```

    Args:
        recipe: A recipe, or its file.
        overrides: `KEY=VALUE` settings, of a file alone.
        fresh: Make every stage again.
        quick: Smoke run, of a file alone.
        any_backend: Take stages that another backend finished, and go on with those that it left half made.
        other_data: Go on in a run folder that belongs to other classes or to another data set; its report is kept.
        began: When the command began, on `time.monotonic`; `budget.minutes` count from there, or from now on.
        saved: Where run folders go.
        console: Where to print.

    Returns:
        What `report.json` holds.

    Raises:
        UserError: the recipe, the data or the environment cannot do it.
    """
    console = console or Console()
    if not isinstance(recipe, Recipe):
        recipe = load(recipe, overrides, quick=quick)
    elif overrides or quick:
        raise UserError(
            "overrides and quick change a recipe's file, and this is a Recipe; give them to kood.recipe.load, or "
            "kood.run the file"
        )
    if not recipe.name:
        raise UserError(f"name: this Recipe has none; give one, which names its folder under {saved}")
    with of_its_file(recipe):
        budget, backend = Budget(recipe, began), keras.backend.backend()
        folder = Run(
            Path(saved) / recipe.name, fresh=fresh, backend=backend, any_backend=any_backend, versions=versions()
        )
        return _run(recipe, budget, folder, other_data, console)


def _run(recipe: Recipe, budget: Budget, folder: Run, other_data: bool, console: Console) -> dict[str, Any]:
    asked = [cell.train.devices for _, cell in recipe.cells()]
    devices = obtain(recipe.train.devices, most=max(1 if number == "auto" else number for number in asked))
    if devices.processes > 1 and recipe.budget.minutes is not None:
        raise UserError("budget.minutes: several processes have no common clock; run it in one, or without --minutes")
    team = Team(devices, folder)
    if not team.leads:
        console = Console(file=io.StringIO())
    folder.on_damage = lambda message: console.print(Text(message, "yellow"), soft_wrap=True)
    held = folder.held(", or give this run another name (--set name=...)") if team.leads else nullcontext()
    with held, team.gathered():
        refused, belonging = team.leads, Belonging(folder, other_data)

        def accepted(data: Data, class_names: Sequence[str]) -> None:
            nonlocal refused
            if team.leads:
                belonging.accept(data, class_names)
            if refused:
                write_atomically(folder.folder / "recipe.toml", recipe.to_toml().encode())
            refused = False

        try:
            progress = report.StageProgress(console)
            work = Work(
                recipe, team, progress, devices, budget, origin=origin_of(recipe.file, recipe.overrides),
                notes=idle_settings(recipe), accepted=accepted,
            )  # fmt: skip
            for note in work.notes:
                progress.say(note, style="yellow")
            if recipe.matrix:
                result = run_matrix(work)
            else:
                result, cell = make_cell(work)
                if team.leads:
                    write_report(result, work, cell)
        except UserError:
            if refused:
                folder.withdraw()
            raise
        except Exception as error:
            if not team.leads:
                raise
            if full := no_room(error):
                raise UserError(
                    f"{folder.folder}: cannot write there ({full}); make room, and the same command goes on where this "
                    "one was",
                    exit_code=1,
                ) from error
            log = folder.folder / "error.log"
            write_atomically(log, masked(traceback.format_exc()).encode("utf-8", "backslashreplace"))
            raise UserError(f"{type(error).__name__}: {error} (details in {log})", exit_code=1) from error
        if team.leads:
            (report.print_matrix if recipe.matrix else report.print_cell)(console, result)
            (folder.folder / "error.log").unlink(missing_ok=True)  # Of an earlier run, which this one has mended.
            _say_where(console, folder.folder, result)
    return result


#: The stages that train something.
_TRAININGS = {
    "diffusion", "judge", "classifier_head", "classifier", "baseline_classifier_head", "baseline_classifier", "folds",
}  # fmt: skip


def _say_where(console: Console, folder: Path, result: dict[str, Any]) -> None:
    cells = result.get("cells", [result])
    made = {name for cell in cells for name, stage in cell["stages"].items() if not stage["cached"]}
    is_attached = any(cell.get("attached") for cell in cells)  # Nothing of it is trained anyway.
    if not made:
        done = "made again" if is_attached else "trained"
        console.print(f"Nothing was {done}: the results of an earlier run fit this recipe.", highlight=False)
    elif made.isdisjoint(_TRAININGS) and not is_attached:
        console.print("Nothing was trained: what an earlier run trained fits this recipe.", highlight=False)
    console.print(Text(f"Report: {folder / 'report.html'}"), soft_wrap=True)
    if result.get("version"):
        published, served = folder / str(result["version"]), newest_version(folder)
        console.print(Text(f"SavedModel: {published}"), soft_wrap=True)
        if served != published:  # An earlier recipe was gone back to, or the version calibrated anew.
            told = f"{served} is a later version, and the one that is served; move it away to serve {published}"
            console.print(Text(told, "yellow"), soft_wrap=True)
