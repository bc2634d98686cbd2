"""The host runs one tick ahead of a device, not more: what comes then waits for two ticks at most."""

import torch

from segue.engine.scheduling import pace


def test_the_host_waits_for_the_tick_before_the_last(monkeypatch):
    done: list[int] = []

    class Event:
        made = 0

        def record(self, stream):
            assert stream == "current"
            self.number = Event.made
            Event.made += 1

        def synchronize(self):
            done.append(self.number)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "current")
    ticks = pace.Pace(torch.device("cuda"))
    for tick in range(5):
        ticks.wait()
        assert done == list(range(tick - 1))
        ticks.mark()


def test_on_a_cpu_nothing_is_marked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", lambda: 1 / 0)
    ticks = pace.Pace(torch.device("cpu"))
    for _ in range(3):
        ticks.wait()
        ticks.mark()
