"""Cold starts: what a peer's time includes, fresh caches, the session's threads, allocator and limit."""

import json
import os
import subprocess
import sys
import types
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from segue.bench import cold_start
from segue.bench.allocator import KEPT
from segue.bench.suites import cold

TINY = "sit-s/2@64:64"
OPTIONS = [
    *("--model", TINY, "--device", "cpu", "--dtype", "float32", "--rule", "sgg"),
    *("--batch", "1", "--calls", "2", "--threads", "1", "--no-keep-memory"),
]


def stages(draw: float = 4.0) -> dict[str, float]:
    return {"import": 1.0, "build": 2.0, "first draw": draw, "second draw": 0.5}


def variant_of(arguments: list[str]) -> str:
    return arguments[arguments.index("--variant") + 1]


def test_the_time_to_the_first_image_is_all_but_the_weights(make_session):
    session = make_session(None, models=(TINY,))
    cold.run(session, lambda arguments, limit: stages(4.0 if variant_of(arguments) == "segue" else 9.0))
    first = {row.variant: row.value for row in session.rows if row.metric == "time to the first image"}
    assert first == {"segue": 5.0, "diffusers eager": 10.0, "diffusers compiled": 10.0}


@pytest.mark.parametrize("variant", ["diffusers eager", "diffusers compiled"])
def test_a_peer_is_imported_in_its_import_and_compiled_in_its_first_draw(monkeypatch, variant):
    events: list[str] = []

    class Peer(types.ModuleType):
        def __getattr__(self, name):
            events.append("peer asked")
            return type(name, (), {})

    class Block:
        def compile(self, dynamic):
            events.append("compiled")

    def make_module(*_):
        events.append("weights made")
        return types.SimpleNamespace(transformer_blocks=[Block()])

    class Loop:
        def __init__(self, *_):
            events.append("set up")

        def draw(self, rule):
            return rule

    monkeypatch.setitem(sys.modules, "diffusers", Peer("diffusers"))
    monkeypatch.setattr("segue.bench.diffusers_modules.diffusers_module", make_module)
    monkeypatch.setattr("segue.bench.diffusers_loop.DiffusersLoop", Loop)
    set_up, _ = cold_start.load_diffusers(cold_start.parse(["--variant", variant, *OPTIONS]), events.append)
    assert set_up() == "sgg"
    compiled = ["compiled"] if variant.endswith("compiled") else []
    assert list(dict.fromkeys(events)) == ["peer asked", "import", "weights made", "build", *compiled, "set up"]


def test_a_start_of_segue_ends_with_the_seconds_of_every_stage(capsys):
    cold_start.main(["--variant", "segue", *OPTIONS])
    seconds = json.loads(capsys.readouterr().out)
    assert tuple(seconds) == cold_start.STAGES
    assert all(value > 0 for value in seconds.values())


def test_what_is_not_finite_is_not_a_first_image(monkeypatch):
    def load(options, finish):
        return lambda: lambda: torch.tensor([1.0, torch.nan]), lambda: None

    monkeypatch.setattr(cold_start, "load_segue", load)
    with pytest.raises(SystemExit, match="segue drew numbers that are not finite"):
        cold_start.main(["--variant", "segue", *OPTIONS])


def test_every_start_has_caches_of_its_own_that_are_removed(monkeypatch):
    folders: list[Path] = []

    def fake(command, env, timeout, **_):
        assert command[-2:] == ["--batch", "7"]
        assert set(os.environ) <= set(env)
        assert timeout == 33.0
        for name in cold.CACHES:
            folders.append(Path(env[name]))
            folders[-1].mkdir()
            (folders[-1] / "kernel").touch()
        return subprocess.CompletedProcess(command, 0, f"some line\n{json.dumps(stages())}\n", "")

    monkeypatch.setattr(subprocess, "run", fake)
    for _ in range(2):
        assert cold.start_process(["--batch", "7"], 33.0) == stages()
    assert len(set(folders)) == 4
    assert not any(folder.parent.exists() for folder in folders)


@pytest.mark.parametrize(("allocator", "flag"), [(KEPT, "--keep-memory"), ("the C library's default", "--no-keep-memory")])
def test_a_start_runs_with_the_threads_and_the_allocator_that_its_rows_claim(make_session, allocator, flag):
    given: list[list[str]] = []
    session = make_session(None, models=(TINY,))
    session.environment = replace(session.environment, threads=3, versions={"allocator": allocator})
    cold.run(session, lambda arguments, limit: given.append(arguments) or stages())
    for arguments in given:
        options = cold_start.parse(arguments)
        assert (options.threads, options.keep_memory) == (3, allocator == KEPT)
        assert arguments[-1] == flag
    assert {row.threads for row in session.rows} == {3}


def test_no_start_is_given_more_than_is_left_of_the_session(make_session):
    """Two minutes, 50 s a start: the third has 20 s and is ended; what was measured before is kept, with its number."""
    clock, limits = [0.0], []

    def start(arguments, limit):
        limits.append(limit)
        clock[0] += min(50.0, limit)
        if limit < 50:
            raise TimeoutError(f"it was ended after the {limit:.0f} s that were left")
        return stages(46.5)

    session = make_session(None, models=(TINY,), now=lambda: clock[0], limit_minutes=2.0)
    cold.run(session, start)
    assert limits == [120.0, 70.0, 20.0]
    counts = {row.variant: row.n for row in session.rows}
    assert counts == {"segue": 1, "diffusers eager": 1}
    (line,) = [line for line in session.lines if "not measured" in line]
    assert line.endswith("diffusers compiled, start 1 not measured, it was ended after the 20 s that were left")
    assert (session.unfinished, session.failures) == (1, 0)


def test_a_start_that_fails_takes_its_variant_out_and_is_said(make_session):
    started: Counter = Counter()

    def start(arguments, limit):
        name = variant_of(arguments)
        started[name] += 1
        if name == "diffusers compiled" and started[name] == 2:
            raise RuntimeError("it drew numbers that are not finite")
        return stages()

    session = make_session(None, models=(TINY,))
    cold.run(session, start)
    assert {row.variant for row in session.rows} == {"segue", "diffusers eager"}
    assert started == {"segue": 3, "diffusers eager": 3, "diffusers compiled": 2}
    assert sum("diffusers compiled, start 2 not measured, it drew" in line for line in session.lines) == 1


def test_an_error_of_one_model_does_not_end_the_suite(make_session):
    def start(arguments, limit):
        if "sit-b/2@64:16" in arguments:
            raise TypeError("no such argument")
        return stages()

    session = make_session(None, models=(TINY, "sit-b/2@64:16"))
    cold.run(session, start)
    assert {row.case.split()[0] for row in session.rows} == {TINY}
    assert session.failures == 1
