"""On clusters of this machine, with processes that are killed as an operating system kills them: SIGKILL, in mid-work."""

import hashlib
import json
import os
import signal
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from tiny_checkpoint import save_tiny

pytest.importorskip("ray")

from segue.engine.cli.options import Source
from segue.serving.batch import draw_table
from segue.serving.batch_drawing import Drawing
from segue.serving.batch_ray import Pool
from segue.serving.batch_requests import Defaults, Requests
from segue.serving.batch_table import Row
from segue.serving.ray_app import NAME, Replicas, application
from segue.serving.ray_cluster import on_cluster
from segue.serving.server import bound_socket
from segue.serving.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
ROWS, BATCH, WORKERS, KILLS, REQUESTS = 20, 2, 2, 2, 16


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """One cluster for the tests of this file, in this process."""
    with on_cluster(cpus=4) as resources:
        yield resources


def children(word: str) -> list[int]:
    """The processes below this one whose title has a word: actors that are at work."""
    import psutil

    titled = []
    for process in psutil.Process().children(recursive=True):
        try:
            if word in "".join(process.cmdline()):
                titled.append(process.pid)
        except psutil.Error:
            continue
    return titled


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "pictures").iterdir()}


def test_workers_that_are_killed_cost_no_row_and_no_bit(tmp_path):
    source = Source(str(save_tiny(tmp_path / "tiny.safetensors")), device="cpu")
    rows = [Row(number, f"r{number}", {"label": number % 5}, {}) for number in range(ROWS)]
    table = Requests(source, Defaults(guidance="cfg:scale=2", steps=40)).settle(rows)
    whole = draw_table(table, Drawing(tmp_path / "whole", source, BATCH))
    assert (whole.drawn, whole.retried) == (ROWS, 0)
    killed, ended = [], threading.Event()

    def kill():
        begun = tmp_path / "killed" / "shards"
        while not ended.is_set() and len(killed) < KILLS:
            names = {path.name for path in begun.glob("*.try-1")} - {f"{path.stem}.try-1" for path in begun.glob("*.jsonl")}
            at_work = children("MapWorker(MapBatches(Worker)).submit")
            if names and at_work and len(list(begun.glob("*.try-*"))) > len(killed):
                os.kill(at_work[0], signal.SIGKILL)
                killed.append(at_work[0])
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        report = draw_table(table, Drawing(tmp_path / "killed", source, BATCH), Pool(WORKERS).draw)
    finally:
        ended.set()
        killer.join()
    assert len(killed) == KILLS
    assert (report.rows, report.drawn, report.skipped, report.failed) == (ROWS, ROWS, 0, 0)
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")
    manifests = [(tmp_path / name / "manifest.jsonl").read_bytes() for name in ("killed", "whole")]
    assert manifests[0] == manifests[1] and manifests[0].count(b"\n") == ROWS
    assert list((tmp_path / "killed").rglob(".*")) == []


def test_a_pool_says_in_a_sentence_why_it_cannot_draw(tmp_path):
    source = Source(str(save_tiny(tmp_path / "tiny.safetensors")), device="cpu")
    requests, rows = Requests(source, Defaults(steps=1)), [Row(0, "r0", {"label": 1}, {})]
    draw_table(requests.settle(rows), Drawing(tmp_path / "made", source, 1), Pool(1).draw)
    more = [*rows, Row(1, "r1", {"label": 1}, {})]
    with pytest.raises(ValueError, match="made was begun with batch 1, and cannot go on with 2"):
        draw_table(requests.settle(more), Drawing(tmp_path / "made", source, 2), Pool(1).draw)


def slow_app():
    """A maker of applications that take their time; it is made here because workers cannot import this file."""

    def make(_):
        import asyncio
        import os

        from fastapi import FastAPI

        app = FastAPI()

        @app.post("/draw")
        async def draw(body: dict):
            await asyncio.sleep(body["seconds"])
            return {"number": body["number"], "process": os.getpid()}

        return app

    return make


def test_a_process_that_is_killed_under_load_costs_no_request(cluster):
    from ray import serve

    with bound_socket("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]

    def ask(number, seconds):
        body = json.dumps({"number": number, "seconds": seconds}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/draw", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read())

    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(application(slow_app(), Settings(slots=4, queue=16), Replicas(2, 2)), name=NAME)
        at_work = children("ServeReplica:segue:drawing")
        assert len(at_work) == 2
        answers = [None] * REQUESTS
        threads = [
            threading.Thread(target=lambda place=place: answers.__setitem__(place, ask(place, 2))) for place in range(REQUESTS)
        ]
        for thread in threads:
            thread.start()
        time.sleep(1)  # all are under way, none has ended
        os.kill(at_work[0], signal.SIGKILL)
        for thread in threads:
            thread.join()
        assert [answer["number"] for answer in answers] == list(range(REQUESTS))
        assert at_work[0] not in {answer["process"] for answer in answers}
    finally:
        serve.shutdown()
