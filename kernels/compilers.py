"""Candidates compiled by other processes while this one times: what cannot be launched is known, the rest is in the cache."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from multiprocessing.synchronize import Event
from typing import Any

from .agenda import users
from .launch import Key, LaunchConfig
from .launch_lookup import table_architecture, using
from .resources import Specialisation, case_launches, compile_specialisation, runs_on

FP8_ARCHITECTURE = "sm_89"  # the first with fp8, which the entries of sm_80 serve
Job = tuple[Key, LaunchConfig, str]  # entry, candidate, architecture of the device


def misfit(job: Job, spills: bool = False) -> str | None:
    """Why a candidate cannot be launched for every case of its entry, or None.

    It does not compile, needs more shared memory than there is, or more programs are given to a multiprocessor than that
    holds; with ``spills`` also that it spills registers.
    """
    key, config, architecture = job
    served = table_architecture(architecture)
    seen: set[Specialisation] = set()
    for case in users(served)[key]:
        if _stop is not None and _stop.is_set():
            return "the tuner has ended"
        with using(*key, config):
            launches = case_launches(case, served)
        for launch in launches:
            specialisation = Specialisation.of(launch, architecture if runs_on(case, architecture) else FP8_ARCHITECTURE)
            if specialisation in seen:
                continue
            seen.add(specialisation)
            try:
                row = compile_specialisation(specialisation, launch, ())
            except Exception as error:  # the compiler, its passes and ptxas raise what they like
                return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if not row.launches:
                return f"{row.shared} bytes of shared memory are more than there are"
            if getattr(config, "resident", 1) > row.blocks:
                return f"a multiprocessor holds {row.blocks} programs, fewer than it is given"
            if spills and row.spilled:
                return f"{row.spilled} bytes of stack"
    return None


_stop: Event | None = None  # of this process, where it compiles for another


def _listen(stop: Event) -> None:
    global _stop
    _stop = stop


class Compilers:
    """``jobs`` processes that work through candidates in the order given; with 0 each is compiled when it is asked for."""

    def __init__(self, jobs: int, work: Iterable[Job]):
        self._jobs, self._work = jobs, list(work)
        self._pool: ProcessPoolExecutor | None = None
        self._found: dict[Job, Future] = {}

    def __enter__(self) -> Compilers:
        if self._jobs:
            context = multiprocessing.get_context("spawn")
            self._stop = context.Event()
            self._pool = ProcessPoolExecutor(self._jobs, context, _listen, (self._stop,))
            self._found = {job: self._pool.submit(misfit, job) for job in self._work}
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._stop.set()  # what is being compiled is the last
            self._pool.shutdown(cancel_futures=True)

    def wait(self, key: Key, seconds: float) -> bool:
        """Whether the candidates of an entry are compiled before so many seconds have passed."""
        begun = [future for (other, _, _), future in self._found.items() if other == key]
        return not wait_for(begun, None if seconds == float("inf") else seconds).not_done

    def obstacle(self, job: Job) -> str | None:
        """:func:`misfit` of a candidate; where its process died, None: it is compiled again by its launch."""
        if job not in self._found:
            return misfit(job)
        try:
            return self._found[job].result()
        except Exception as error:  # a broken pool
            print(f"{job[0]}: {job[1]} was not compiled ahead of time, {type(error).__name__}", flush=True)
            return None

    def map(self, function: Callable[[Any], Any], work: list[Any]) -> Iterable[Any]:
        """``function`` of every item, in their order."""
        return self._pool.map(function, work) if self._pool else map(function, work)
