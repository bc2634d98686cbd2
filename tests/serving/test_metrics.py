"""What Prometheus reads says what was done."""

from prometheus_client.parser import text_string_to_metric_families
from served import DRAW, counted, run


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Samples by name and labels."""
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_requests_steps_and_rows_are_counted_as_the_plans_say(engine):
    async def work(client):
        await client.draw(guidance="cfg:scale=2", steps=4)
        await client.draw(guidance="none", steps=3, n=2)
        await client.draw(steps=0)
        await client.get("/" + "x" * 50)
        await client.draw(deadline=1e-9)
        counted(client.serving.scheduler)
        return samples((await client.get("/metrics")).text)

    found = run(work, engine, slots=3, queue=5)
    assert (found["segue_slots",], found["segue_queue_limit",]) == (3, 5)
    assert (found["segue_queued",], found["segue_running",]) == (0, 0)
    assert (found["segue_submitted_total",], found["segue_finished_total",], found["segue_expired_total",]) == (4, 3, 1)
    assert found["segue_rows_used_total",] == 4 * 2 + 3 * 2  # of two branches, and of two pictures
    assert found["segue_rows_run_total",] == found["segue_rows_used_total",] + found["segue_rows_padded_total",]
    assert 4 + 3 <= found["segue_step_seconds_count",] <= 4 + 3 * 2
    assert found["segue_step_seconds_sum",] > 0
    counts = {status: found["segue_http_requests_total", DRAW, status] for status in ("200", "400", "504")}
    assert counts == {"200": 2, "400": 1, "504": 1}
    assert found["segue_http_requests_total", "other", "404"] == 1
    assert found["segue_http_seconds_count", DRAW] == 4
    assert found["segue_http_current",] == 1  # this one
    assert not [labels for labels in found if any("xxx" in label for label in labels)]


def test_two_servers_of_one_process_count_apart(engine):
    async def work(client):
        await client.draw(steps=1)
        return samples((await client.get("/metrics")).text)["segue_submitted_total",]

    assert [run(work, engine), run(work, engine)] == [1, 1]


def test_a_fault_of_the_server_is_counted_as_one_and_not_as_a_client_that_had_gone(engine, monkeypatch):
    async def work(client):
        monkeypatch.setattr(client.serving.model, "order", lambda *_: 1 / 0)
        statuses = [(await client.draw()).status_code for _ in range(2)]
        return statuses, samples((await client.get("/metrics")).text)

    statuses, found = run(work, engine)
    counts = {labels[2]: count for labels, count in found.items() if labels[:2] == ("segue_http_requests_total", DRAW)}
    assert (statuses, counts) == ([500, 500], {"500": 2})
