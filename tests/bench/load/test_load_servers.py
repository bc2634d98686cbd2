"""Batches of whole requests: who joins when, who is answered when, and that the pictures are those of each request alone."""

from concurrent.futures import CancelledError

import pytest
import torch

from segue.bench.load.arrivals import SHARES, Arrival, Kind
from segue.bench.load.servers import ONE, REQUEST, SERVERS, STEP, open_server
from segue.bench.load.watched_rows import CapturedRows, NetworkTime


@pytest.fixture
def stepped(drawings):
    """Makes servers whose ticks are made by hand."""
    made = []

    def make(name: str, slots: int = 2):
        made.append(open_server(name, drawings.engine, drawings.understand, slots, 20, start=False))
        return made[-1]

    yield make
    for server in made:
        server.close(drain=False)


def of(rule: str, steps: int, seed: int) -> Arrival:
    return Arrival(Kind(rule, steps), seed, 0.0)


def under_way(server) -> tuple[int, int]:
    return server.stats().running, server.stats().queued


def test_a_batch_is_answered_together_and_the_next_one_joins_then(stepped):
    server = stepped(REQUEST)
    short, long, next_one = (server.submit(of("none", steps, steps)) for steps in (1, 3, 2))
    server.tick()
    assert under_way(server) == (1, 1)  # a slot is free, and nobody takes it
    server.tick()
    assert not short.done()
    server.tick()
    assert [request.result(timeout=60).shape[0] for request in (short, long)] == [1, 1]
    assert under_way(server) == (0, 1) and not next_one.done()
    server.tick()
    assert under_way(server) == (1, 0)
    while server.tick():
        pass
    assert next_one.result(timeout=60).shape[0] == 1
    assert (server.stats().finished, server.stats().ticks) == (3, 5)


def test_requests_that_join_one_another_at_steps_need_fewer_ticks(stepped):
    ticks = {}
    for name in SERVERS:
        server = stepped(name)
        for steps in (1, 3, 2):
            server.submit(of("none", steps, steps))
        while server.tick():
            pass
        ticks[name] = server.stats().ticks
    assert ticks == {STEP: 3, REQUEST: 5, ONE: 6}


@pytest.mark.parametrize("name", SERVERS)
def test_every_server_draws_what_the_engine_draws(stepped, drawings, name):
    server = stepped(name, slots=3)
    arrivals = [of(rule, 2 + 2 * (seed % 3), seed) for seed, rule in enumerate((*SHARES, *SHARES))]
    requests = [server.submit(arrival) for arrival in arrivals]
    while server.tick():
        pass
    for request, arrival in zip(requests, arrivals, strict=True):
        expected = drawings.alone(arrival.kind, arrival.seed)
        assert torch.allclose(request.result(timeout=60), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_a_batch_whose_last_run_is_cancelled_is_answered(stepped):
    server = stepped(REQUEST)
    short, long = (server.submit(of("none", steps, steps)) for steps in (1, 9))
    server.tick()
    long.cancel()
    server.tick()
    assert short.result(timeout=60).shape[0] == 1
    with pytest.raises(CancelledError):
        long.result(timeout=60)


def test_what_is_done_is_answered_when_the_server_ends(stepped):
    server = stepped(REQUEST)
    short, long = (server.submit(of("none", steps, steps)) for steps in (1, 9))
    server.tick()
    server.close(drain=False)
    assert short.result(timeout=60).shape[0] == 1 and long.cancelled()


def test_rows_are_counted_as_a_card_pads_them(stepped):
    server = stepped(STEP, slots=5)
    server.submit(of("none", 1, 0))
    while server.tick():
        pass
    captured = CapturedRows(server)
    for seed in range(5):
        server.submit(of("none", 2, seed))
    while server.tick():
        pass
    assert (captured.rows.used, captured.rows.run) == (10, 12)
    assert server.stats().rows_run == 11  # with the first: here nothing is padded


def test_the_time_of_the_networks_is_that_of_their_calls(stepped):
    server = stepped(STEP, slots=3)
    server.submit(of("cfg", 1, 0))
    while server.tick():
        pass
    moments = iter(range(1000))
    networks = NetworkTime(server, lambda: float(next(moments)))  # each call takes a second
    for seed in range(3):
        server.submit(of("cfg", 2, seed))
    server.tick()
    assert networks.seconds == 1 + 3  # a forward, and a look ahead for each run
