"""Several processes on one run: what the first tells the others, here between two threads."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from kood.errors import UserError
from kood.pipeline import team as teams
from kood.pipeline.team import Team
from kood.runs import Run


def test_a_cell_that_the_first_process_alone_is_refused_leaves_the_next_ones_in_step(tmp_path):
    run, both = Run(tmp_path / "run"), threading.Barrier(2, timeout=30)
    refused = threading.Event()

    def takes_part(rank):
        team = Team(SimpleNamespace(rank=rank, processes=2, wait=both.wait), run)
        found = []
        with team.gathered():
            for number in (1, 2, 3):
                try:
                    with team.cell(number):
                        if number == 2 and team.leads:
                            refused.set()
                            raise UserError("no such score")
                        if number == 3:
                            assert refused.wait(30)
                        made = team.ensure("stage", {"cell": number}, lambda _, number=number: {"of": number}, None)
                        found.append(made.facts["of"])
                except UserError as error:
                    found.append(f"{error}")
        return found

    with run.held(), ThreadPoolExecutor(2) as threads:
        others = threads.submit(takes_part, 1)
        first = threads.submit(takes_part, 0)
        assert first.result(60) == [1, "no such score", 3]
        assert others.result(60) == [1, "the first process failed: no such score", 3]
    assert not (tmp_path / "run" / ".team").exists()


def test_a_process_that_fails_alone_ends_though_the_first_waits_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(teams, "PATIENCE", 0.3)
    run, ended, met = Run(tmp_path / "run"), threading.Event(), []
    barrier = threading.Barrier(2, timeout=30)

    def takes_part(rank):
        team = Team(SimpleNamespace(rank=rank, processes=2, wait=barrier.wait), run)

        def make(_):
            if rank == 1:
                raise OSError("no room")
            assert ended.wait(20)  # As in a sum over both.
            raise KeyboardInterrupt  # By who launched them.

        with team.gathered():
            for number in (1, 2):
                try:
                    with team.cell(number):
                        team.ensure("stage", {}, make, nullcontext)
                except Exception as error:
                    met.append((number, error))

    with run.held(), ThreadPoolExecutor(2) as threads:
        first, other = threads.submit(takes_part, 0), threads.submit(takes_part, 1)
        other.add_done_callback(lambda _: ended.set())
        with pytest.raises(OSError, match="no room"):
            other.result(60)
        with pytest.raises(KeyboardInterrupt):
            first.result(60)
    assert [(number, f"{error}") for number, error in met] == [(1, "no room"), (2, "no room")]
