"""On clusters of this machine, with processes that are killed as an operating system kills them: SIGKILL, in mid-work."""

import hashlib
import json
import os
import signal
import threading
import time
import urllib.error
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
from segue.serving.ray_app import (
    Replicas,
    drain_applications,
    leave_serve,
    run_applications,
    serve_on_ray,
    start_serve,
)
from segue.serving.ray_cluster import on_cluster
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


def patient_app(folder: Path):
    """A maker of applications whose requests tell in a folder that they have begun, and end when there is a file ``go`` in it.

    It is made here because workers cannot import this file.
    """
    place = str(folder)

    def make(_):
        import asyncio
        import os

        from fastapi import FastAPI

        app = FastAPI()

        @app.post("/draw")
        async def draw(body: dict):
            open(os.path.join(place, f"begun-{body['number']}"), "w").close()
            while not os.path.exists(os.path.join(place, "go")):
                await asyncio.sleep(0.05)
            return {"number": body["number"], "process": os.getpid()}

        return app

    return make


class Asked:
    """Requests to ``/draw`` of a server, all at once, each in a thread; their answers are there when they are joined."""

    def __init__(self, url: str, numbers: range):
        self.url, self.answers = url, []
        self.threads = [threading.Thread(target=self._ask, args=(number,)) for number in numbers]
        for thread in self.threads:
            thread.start()

    def _ask(self, number: int) -> None:
        body = json.dumps({"number": number}).encode()
        request = urllib.request.Request(f"{self.url}/draw", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request) as answer:
                self.answers.append(json.loads(answer.read()))
        except OSError as error:
            self.answers.append({"number": number, "error": str(error)})

    def joined(self) -> list:
        """The answers, or what went wrong."""
        for thread in self.threads:
            thread.join()
        return self.answers


def wait_for(condition) -> None:
    """Until other processes have done what is waited for."""
    while not condition():
        time.sleep(0.05)


def test_a_process_that_is_killed_under_load_costs_no_request(cluster, tmp_path):
    from ray import serve

    (host, port), started = start_serve("127.0.0.1", 0)
    try:
        assert started
        run_applications(patient_app(tmp_path), Settings(slots=4, queue=16), Replicas(2, 2))
        at_work = children("ServeReplica:segue-drawing:drawing")
        assert len(at_work) == 2
        asked = Asked(f"http://{host}:{port}", range(REQUESTS))
        wait_for(lambda: len(list(tmp_path.glob("begun-*"))) == REQUESTS)
        os.kill(at_work[0], signal.SIGKILL)
        (tmp_path / "go").touch()
        answers = asked.joined()
        assert [answer for answer in answers if "error" in answer] == [] and len(answers) == REQUESTS
        assert at_work[0] not in {answer["process"] for answer in answers}
    finally:
        serve.shutdown()


def is_full(url: str) -> bool:
    """Whether the door has all the requests that it takes: it refuses one more before it reads what that is."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, b"{}", {"Content-Type": "text/plain"}))
    except urllib.error.HTTPError as error:
        return error.code == 429
    return False


@pytest.mark.parametrize("shared", (False, True))
def test_a_signal_ends_what_was_accepted_and_nothing_of_others(cluster, tmp_path, shared):
    """Of ten requests six are at work and four wait at the door when it comes."""
    from ray import serve

    @serve.deployment(ray_actor_options={"num_cpus": 0})
    class Other:
        def __call__(self, _):
            return "here"

    at, asked, before = ("127.0.0.1", 0), [], signal.getsignal(signal.SIGTERM)
    if shared:
        at, _ = start_serve(*at)
        serve.run(Other.bind(), name="other", route_prefix="/other")

    def load(url):
        for numbers in (range(3), range(3, 6)):
            asked.append(Asked(url, numbers))
            wait_for(lambda end=numbers.stop: len(list(tmp_path.glob("begun-*"))) == end)
        asked.append(Asked(url, range(6, 10)))
        wait_for(lambda: is_full(url))
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: serve.status().applications["segue"].status == "DELETING")
        (tmp_path / "go").touch()

    threads = []

    def ready(url):
        threads.append(threading.Thread(target=load, args=(url,)))
        threads[0].start()

    settings = Settings(slots=1, queue=5, max_requests=10)
    try:
        serve_on_ray(patient_app(tmp_path), settings, Replicas(), *at, None, ready)
        threads[0].join()
        answers = [answer for some in asked for answer in some.joined()]
        assert [answer for answer in answers if "error" in answer] == [] and len(answers) == 10
        assert signal.getsignal(signal.SIGTERM) is before
        assert list(serve.status().applications) == (["other"] if shared else [])
        if shared:
            with urllib.request.urlopen(f"http://{at[0]}:{at[1]}/other") as answer:
                assert answer.read() == b"here"
            with pytest.raises(ValueError, match=f"listens at 127.0.0.1 port {at[1]}, and not at 127.0.0.1 port 9"):
                start_serve("127.0.0.1", 9)
            assert start_serve("127.0.0.1", 0) == (at, False)
        else:
            assert serve.status().proxies == {}, "Serve that was started here is shut down"
    finally:
        serve.shutdown()


def test_time_that_is_over_ends_what_is_not_done(cluster, tmp_path):
    from ray import serve

    (host, port), _ = start_serve("127.0.0.1", 0)
    try:
        run_applications(patient_app(tmp_path), Settings(slots=1, queue=4), Replicas(), drain=1)
        asked = Asked(f"http://{host}:{port}", range(1))
        wait_for(lambda: list(tmp_path.glob("begun-*")))
        drain_applications(1)
        leave_serve(True)
        assert ["error" in answer for answer in asked.joined()] == [True]
    finally:
        serve.shutdown()
