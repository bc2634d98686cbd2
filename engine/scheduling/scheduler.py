"""Requests from any thread, drawn by one: a queue in front of the slots."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from ..numeric_input import counting_number, real_number, whole_number
from ..running.sampler import NonFiniteError
from .clean_estimate import CleanEstimate
from .drawing import Drawing
from .errors import DeadlineError, QueueFullError, SchedulerClosedError
from .request import Deadline, Progress, Request
from .sizes import Sizes
from .slots import AnyRun, Slots
from .stats import SchedulerStats

MOST_SLOTS = 256


class StepScheduler:
    """Draws requests that come at any time, each with a rule, a number of steps and a seed of its own.

    A request joins at the next tick, makes one network call at each, and leaves when it is done.  All that run share the
    forwards of a tick, whatever their rules; every picture is that of the same request alone.  Made by ``engine.scheduler()``;
    a context manager, which drains when it is left.
    """

    def __init__(
        self,
        engine: Any,
        draw: Callable[..., Drawing],
        *,
        slots: int = 8,
        queue: int = 64,
        sizes: Sequence[int] | None = None,
        memory: int | None = None,
        start: bool = True,
    ):
        """``draw(what, guidance, **options)`` understands a request, or raises.

        ``slots`` requests run at once and ``queue`` more wait; ``sizes``: see :class:`.sizes.Sizes`.  ``memory``: the bytes
        that their buffers may take, by default most of the device's.  With ``start=False``
        nothing runs until :meth:`tick` is called: for tests, and for loops of others.
        """
        slots = counting_number(slots, "slots")
        if slots > MOST_SLOTS:
            raise ValueError(f"slots must be at most {MOST_SLOTS}, got {slots}")
        self.engine, self._draw = engine, draw
        if (queue := whole_number(queue, "queue must be a whole number")) < 0:
            raise ValueError(f"queue must be 0 or more, got {queue}")
        self._limit = queue
        self._slots = Slots(engine, slots, Sizes.of(sizes, engine.capture is not None), memory)
        self._running: dict[AnyRun, Request] = {}
        self._waiting: deque[Request] = deque()
        self._coming = 0  # requests that are being understood
        self._finishing = 0  # requests whose pictures are yet to be made of their latents
        self._change = threading.Condition()
        self._closed = self._draining = False
        self._stats = SchedulerStats(slots, self._limit)
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="segue-finish")
        self._thread: threading.Thread | None = None
        if start:
            self._thread = threading.Thread(target=self._loop, name="segue-steps", daemon=True)
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.close(drain=kind is None)

    # --- from any thread -----------------------------------------------------------------------------------------------

    def submit(
        self,
        what: Any,
        guidance: Any = None,
        *,
        previews: int = 0,
        deadline: float | None = None,
        listener: Callable[[Progress], None] | None = None,
        **options: Any,
    ) -> Request:
        """Ask for one picture: of a label or a class name, or of a prompt, as the engine takes.

        ``guidance`` is a rule or its text; ``options`` are those of the engine's own ``sample`` or ``generate``: ``seed``,
        ``steps``, ``schedule``, ``solver``, ``height``, ``width``, ``negative_prompt``.  ``previews``: every so many calls a
        picture of the clean estimate is made, where the call has one: one without a velocity, as of ``zero_steps``, has none.
        ``deadline``: seconds from now after which the request is given up.
        ``listener`` hears of every call, from the first on; see :meth:`.request.Request.on_progress`.
        Raises ``TypeError`` or ``ValueError`` for what cannot be drawn, :class:`.errors.MemoryLimitError` among them,
        :class:`.errors.QueueFullError` and :class:`.errors.SchedulerClosedError`.
        """
        try:
            return self._submit(what, guidance, previews, deadline, listener, options)
        except BaseException:
            with self._change:
                self._count(refused=1)
            raise

    def _submit(
        self,
        what: Any,
        guidance: Any,
        previews: int,
        deadline: float | None,
        listener: Callable[[Progress], None] | None,
        options: Mapping[str, Any],
    ) -> Request:
        end = None if deadline is None else Deadline.after(_checked_seconds(deadline))
        if (previews := whole_number(previews, "previews must be a whole number")) < 0:
            raise ValueError(f"previews must be 0 or more, got {previews}")
        self._reserve()
        try:
            drawing = self._draw(what, guidance, **options)
            self._slots.check(drawing.plan)
            _ = drawing.start  # here, in the caller's thread
            request = Request(drawing, previews, end)
            if listener is not None:
                request.on_progress(listener)
        except BaseException:
            with self._change:
                self._coming -= 1
            raise
        with self._change:
            self._coming -= 1
            if self._closed:  # meanwhile
                raise SchedulerClosedError("the scheduler is closed: it takes no more requests")
            self._count(submitted=1)
            self._waiting.append(request)
            self._change.notify_all()
        return request

    def stream(self, what: Any, guidance: Any = None, **options: Any) -> Iterator[Any]:
        """Ask as :meth:`submit` does, and yield a :class:`.request.Progress` after every call, then the finished run.

        Raises how the request ends otherwise.  Leaving the loop early cancels it.
        """
        request = self.submit(what, guidance, **options)
        return self._followed(request)

    @staticmethod
    def _followed(request: Request) -> Iterator[Any]:
        try:
            yield from request.events()
            yield request.result()
        finally:
            request.cancel()

    def _reserve(self) -> None:
        """Take a place in the queue for a request that is being understood."""
        with self._change:
            if self._closed:
                raise SchedulerClosedError("the scheduler is closed: it takes no more requests")
            room = self._limit + self._slots.count - len(self._running)
            late = max(0, self._finishing - self._slots.count)  # where pictures take longer than steps
            if len(self._waiting) + self._coming + late >= room:
                raise QueueFullError(f"{len(self._waiting)} requests wait already, and the queue holds {self._limit}")
            self._coming += 1

    @property
    def alive(self) -> bool:
        """Whether requests are taken: not after :meth:`close`, nor after a fault that ended the thread which draws."""
        return not self._closed

    def stats(self) -> SchedulerStats:
        """What was done so far, and how much is under way."""
        with self._change:
            return replace(self._stats, queued=len(self._waiting), running=len(self._running))

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more requests; with ``drain`` wait until those that were accepted are done, else cancel them.

        After ``timeout`` seconds what is left is cancelled.
        """
        with self._change:
            self._closed, self._draining = True, drain
            self._change.notify_all()
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                with self._change:
                    self._draining = False
                    self._change.notify_all()
                self._thread.join()
        elif drain:
            while self.tick():
                pass
        try:
            self._cancel_all()
        finally:
            self._finisher.shutdown()

    def _count(self, **more: float) -> None:
        self._stats = replace(self._stats, **{name: getattr(self._stats, name) + value for name, value in more.items()})

    # --- the thread that draws -----------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while True:
            with self._change:
                while not (self._waiting or self._running or self._closed):
                    self._change.wait()
                if self._closed and not (self._draining and (self._waiting or self._running)):
                    return
            try:
                self.tick()
            except Exception as error:  # of the scheduler itself: nobody shall wait for what does not come
                self._give_up(error)
                raise

    def _give_up(self, error: Exception) -> None:
        """End everything with an error that is no request's own."""
        with self._change:
            self._closed = True
            left, self._waiting = [*self._running.values(), *self._waiting], deque()
            self._running.clear()
        for request in left:
            self._settle(request, error=error)

    def tick(self) -> bool:
        """Let requests come and go, and make one network call of those that run; returns whether any is left."""
        self._drop_ended()
        self._admit()
        if self._running:
            before = time.perf_counter()
            sigmas = {run: float(run.plan.sigmas[run.call]) for run in self._running if run.call < run.plan.calls}
            estimates = {run: CleanEstimate(run) for run, request in self._running.items() if _shows(request, run.call + 1)}
            ticked = self._slots.tick()
            with self._change:
                seconds = time.perf_counter() - before
                self._count(ticks=1, rows_used=ticked.rows.used, rows_run=ticked.rows.run, tick_seconds=seconds)
            for run, error in ticked.failed.items():
                self._end(run, error=error)
            for run in ticked.made:
                self._tell(run, sigmas[run], estimates.get(run))
                if run.ended:
                    self._finish(run)
        with self._change:
            return bool(self._running or self._waiting)

    def _drop_ended(self) -> None:
        """Let go of requests that were cancelled or have come too late."""
        now = time.monotonic()
        with self._change:
            waiting = list(self._waiting)
        for request in waiting:
            if _is_over(request, now):
                with self._change:
                    self._waiting.remove(request)
                self._settle_over(request)
        for run, request in list(self._running.items()):
            if _is_over(request, now):
                self._leave(run)
                self._settle_over(request)

    def _settle_over(self, request: Request) -> None:
        """End a request that :func:`_is_over`."""
        late = "" if request.deadline is None else f" after {request.deadline.seconds:.3g} s"
        self._settle(request, error=DeadlineError(f"the request was not done{late}"))

    def _settle(self, request: Request, result: Any = None, error: Exception | None = None) -> None:
        """End a request, unless it has ended already, and count how it did.

        Once for each that was accepted: it has left the queue and its slot by then, or no other settles it, whatever raises.
        """
        request.settle(result, error)
        with self._change:
            self._count(**{_fate(request): 1})

    def _admit(self) -> None:
        """Let waiting requests take free slots, in the order in which they came."""
        while True:
            with self._change:
                if not self._waiting or not self._slots.may_join(self._waiting[0].plan):
                    return
                request = self._waiting.popleft()
            try:
                run = self._slots.join(request.drawing)
            except Exception as error:
                self._settle(request, error=error)
                continue
            with self._change:
                self._running[run] = request

    def _leave(self, run: AnyRun) -> Tensor:
        state = self._slots.leave(run)  # first: where it raises, the request is still known, and is given up
        with self._change:
            del self._running[run]
        return state

    def _end(self, run: AnyRun, error: Exception) -> None:
        request = self._running[run]
        self._leave(run)
        self._settle(request, error=error)

    def _tell(self, run: AnyRun, sigma: float, clean: CleanEstimate | None) -> None:
        """Let a request hear of its call; ``clean``: of that call, where a picture is wanted."""
        request, plan, call = self._running[run], run.plan, run.call
        steps = int(plan.steps[-1]) + 1
        progress = Progress(call, plan.calls, int(plan.steps[call - 1]) + 1, steps, sigma)
        if request.previews == 0:
            request.tell(progress)
            return
        estimate = None if clean is None else clean.tensor()
        self._finisher.submit(_tell_with_picture, request, progress, estimate)

    def _finish(self, run: AnyRun) -> None:
        request = self._running[run]
        state = self._leave(run)
        with self._change:
            self._finishing += 1
        try:
            self._finisher.submit(self._make_result, request, state)
        except Exception as error:  # the interpreter ends
            self._settle(request, error=error)
            raise

    def _make_result(self, request: Request, state: Tensor) -> None:
        """Make the result of a state [1, C, H, W], in the thread that decodes."""
        with self._change:
            self._finishing -= 1
        if _is_over(request, time.monotonic()):
            self._settle_over(request)
            return
        try:
            if not torch.isfinite(state).all():
                raise NonFiniteError(f"the latent is not finite after its {request.plan.calls} calls")
            result = request.drawing.finished(state)
        except Exception as error:
            self._settle(request, error=error)
        else:
            self._settle(request, result)

    def _cancel_all(self) -> None:
        with self._change:
            waiting, self._waiting = self._waiting, deque()
            running, self._running = self._running, {}
        for request in [*running.values(), *waiting]:
            request.cancel()
            self._settle(request, error=SchedulerClosedError("the scheduler was closed"))
        for run in running:
            self._slots.leave(run)


def _checked_seconds(deadline: float) -> float:
    seconds = real_number(deadline, "deadline must be a number of seconds")
    if not seconds > 0:
        raise ValueError(f"deadline must be a number of seconds above 0, got {seconds:g}")
    return seconds


def _is_over(request: Request, now: float) -> bool:
    """Whether a request has ended, or has to: its time is over."""
    return request.done() or (request.deadline is not None and now >= request.deadline.until)


def _fate(request: Request) -> str:
    """How a request ended, as :class:`.stats.SchedulerStats` calls it."""
    if request.cancelled():
        return "cancelled"
    if (error := request.exception()) is None:
        return "finished"
    return "expired" if isinstance(error, DeadlineError) else "failed"


def _shows(request: Request, call: int) -> bool:
    """Whether a picture is to be made after this call; the last one is the result."""
    return request.previews > 0 and call % request.previews == 0 and call < request.plan.calls


def _tell_with_picture(request: Request, progress: Progress, estimate: Tensor | None) -> None:
    """Let a request hear of its call and what it looks like; one whose picture cannot be made has failed."""
    try:
        picture = None if estimate is None or request.done() else request.drawing.pictured(estimate)
    except Exception as error:
        request.settle(error=error)
    else:
        request.tell(replace(progress, picture=picture))
