"""``segue serve``: what it refuses before it loads anything, and what its options become."""

import importlib.util
import io
import json
import socket
from base64 import b64decode
from pathlib import Path

import pytest
from PIL import Image
from served import DRAW, events_of, run
from tiny_dit import tiny_dit_pipeline
from tiny_sd3 import tiny_pipeline
from typer.testing import CliRunner

from segue.__main__ import app
from segue.engine.engine import Engine
from segue.engine.images import RECORD_CHUNK
from segue.serving.app import create_app
from segue.serving.command import read_keys
from segue.serving.encoded import public_name
from segue.serving.settings import Settings


def invoke(*arguments):
    return CliRunner().invoke(app, ["serve", *map(str, arguments)])


@pytest.fixture
def started(monkeypatch):
    """What the servers would have served, instead of serving."""
    found = []
    monkeypatch.setattr(
        "segue.serving.command.make_server", lambda app, *how: found.append((app.state.serving, how)) or Stopped()
    )
    return found


class Stopped:
    def run(self, sockets):
        pass


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--slots", 0), "slots must be a number above 0, got 0"),
        (("--rate", "nan"), "rate must be a number above 0, got nan"),
        (("--host", "192.0.2.1"), "cannot listen at 192.0.2.1 port 8000: Cannot assign requested address"),
        (("--port", 70000), "less than or equal to 65535, got '70000'"),
        (("--model", "no/such/model.safetensors"), "no/such/model.safetensors"),
        (("--model", "sd3.5-medium"), "is a size, which segue plan takes"),
        (("--api-keys", "missing.txt"), "missing.txt"),
        (("--guidance", "cgf", "--port", 0), "unknown guidance rule 'cgf'"),
        (("--guidance", "slg:weight=1,layers=0-9999", "--port", 0), "a range of a rule is at most 1000 long, got '0-9999'"),
        (("--send-seconds", 0), "send-seconds must be a number above 0, got 0"),
        (("--ray", "--send-seconds", 9, "--port", 0), "--send-seconds 9.0 does not apply with --ray"),
        (("--solver", "heun"), "No such option: --solver"),
    ],
)
def test_bad_options_are_one_sentence(arguments, words, started):
    result = invoke(*arguments)
    assert (result.exit_code, result.stderr.count("\n"), started) == (2, 1, [])
    assert words in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--guidance", "cfg:scale=1,2"), "a request has one rule with one of each number, got 'cfg:scale=1,2'"),
        (("--guidance", "gfcg:weight=1,classifier=/etc/passwd"), "a classifier here is one of"),
        (("--slots", 300), "slots must be at most 256, got 300"),
    ],
)
def test_what_no_model_can_serve_is_told_before_one_is_read(arguments, words, started):
    result = invoke("--port", 0, "--model", "missing.safetensors", *arguments)
    assert (result.exit_code, result.stderr.count("\n"), started) == (2, 1, [])
    assert words in result.stderr


def test_a_rule_that_a_model_makes_one_of_each_number_of_is_refused_in_a_sentence(engine):
    with pytest.raises(ValueError, match="a request has one rule with one of each number, got 'sgg:scale=1,2'"):
        create_app(engine, Settings(guidance="sgg:scale=1,2"))


def test_a_port_that_is_taken_is_told_before_the_model_is_read(started):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = invoke("--port", port, "--model", "missing.safetensors")
    assert (result.exit_code, result.stderr) == (2, f"segue: cannot listen at 127.0.0.1 port {port}: Address already in use\n")


def test_without_the_extra_the_command_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "uvicorn" else find(name, *rest))
    result = invoke()
    said = "segue: serving needs uvicorn, which is not installed: pip install 'segue[serve]'\n"
    assert (result.exit_code, result.stderr) == (2, said)


@pytest.mark.parametrize("command", (["serve", "--ray", "--port", "0"], ["batch", "rows.csv", "--ray", "--out", "drawn"]))
def test_without_ray_a_command_says_what_to_install(monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("label\n0\n")
    monkeypatch.setattr("segue.serving.ray_cluster.find_spec", lambda name: None)
    result = CliRunner().invoke(app, command)
    said = "segue: Ray is not installed: pip install 'segue[ray]', or leave --ray out\n"
    assert (result.exit_code, result.stderr) == (2, said)
    assert not Path("drawn").exists()


def test_without_arguments_it_serves_the_bundled_model_to_this_machine_by_the_rule_of_the_command_line(started):
    result = invoke("--port", 0)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("herbarium at http://127.0.0.1:")
    ((serving, how),) = started
    assert (serving.settings.name, serving.settings.guidance, serving.settings.keys) == ("herbarium", "sgg", ())
    assert how == (None, None, False)


def test_an_adapter_is_served_unguided(started):
    assert invoke("--port", 0, "--adapter", "sgg").exit_code == 0
    assert started[0][0].settings.guidance == "none"


def test_an_address_that_others_reach_without_a_key_is_warned_of(started, tmp_path):
    keys = tmp_path / "keys.txt"
    keys.write_text("a-key-of-16-chars\n\nanother-key-of-16\n")
    warned, quiet = invoke("--host", "0.0.0.0", "--port", 0), invoke("--host", "0.0.0.0", "--port", 0, "--api-keys", keys)
    assert warned.stderr == "warning: 0.0.0.0 can be reached from other machines, and no API key is asked for\n"
    assert quiet.stderr == "" and started[1][0].settings.keys == ("a-key-of-16-chars", "another-key-of-16")


def test_keys_come_from_the_environment_or_a_file_and_an_empty_file_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("SEGUE_API_KEY", "a-key-of-16-chars")
    assert read_keys(None) == ("a-key-of-16-chars",)
    (tmp_path / "empty").write_text("\n \n")
    with pytest.raises(ValueError, match="empty holds no API key"):
        read_keys(tmp_path / "empty")


def test_the_name_of_a_model_tells_no_path_of_this_machine(tmp_path):
    file, folder = tmp_path / "leaves.safetensors", tmp_path / "sd3.5-medium"
    file.touch()
    folder.mkdir()
    assert (public_name(str(file)), public_name(f"{folder}/")) == ("leaves", "sd3.5-medium")
    assert (public_name("herbarium"), public_name("owner/name")) == ("herbarium", "owner/name")
    assert public_name(str(tmp_path / "gone.safetensors")) == "gone"


def test_no_answer_tells_a_path_of_this_machine(tmp_path):
    tiny_dit_pipeline().save_pretrained(tmp_path / "model")
    engine = Engine.from_pretrained(
        tmp_path / "model", models={"weak": tmp_path / "model" / "transformer"}, vae=tmp_path / "model" / "vae", device="cpu"
    )
    settings = {"name": public_name(str(tmp_path / "model")), "guidance": "cfg:scale=2"}

    async def work(client):
        answers = [
            await client.post(DRAW, json={"prompt": "1", "steps": 1} | fields, headers={"Accept": accept})
            for fields, accept in (({}, "image/png"), ({}, "*/*"), ({"stream": True}, "*/*"), ({"guidance": "ag"}, "*/*"))
        ]
        return [*answers, await client.get("/v1/models")]

    file, plain, streamed, *others = run(work, engine, **settings)
    files = [file.content, *(b64decode(data["b64_json"]) for data in (plain.json()["data"][0], events_of(streamed.text)[0]))]
    records = [json.loads(Image.open(io.BytesIO(file)).info[RECORD_CHUNK]) for file in files]
    for data in (*files, *(answer.content for answer in (plain, streamed, *others))):
        assert str(tmp_path).encode() not in data and tmp_path.name.encode() not in data
    for record in records:
        origin = {name: record["origin"][name] for name in ("source", "models", "vae", "adapter")}
        assert origin == {"source": "model", "models": {"weak": "transformer"}, "vae": "vae", "adapter": None}


@pytest.mark.parametrize(
    ("make", "takes"), [(lambda: tiny_pipeline("sd3.5-medium", num_layers=12), "prompt"), (tiny_dit_pipeline, "class")]
)
def test_saved_pipelines_are_served_with_their_own_pixels(started, tmp_path, make, takes):
    make().save_pretrained(tmp_path / "model")
    result = invoke("--port", 0, "--model", tmp_path / "model", "--guidance", "cfg:scale=2", "--name", "mine")
    assert (result.exit_code, result.stderr) == (0, "")
    told = started[0][0].model.described()
    assert (told["id"], told["segue"]["takes"]) == ("mine", takes)
    width = int(told["segue"]["size"].split("x")[0])
    serving = started[0][0]
    assert width == serving.engine.spec.width * serving.model.factor and serving.model.factor > 1


def test_a_folder_without_text_encoders_is_refused(started, tmp_path):
    tiny_pipeline("sd3.5-medium").transformer.save_pretrained(tmp_path / "model")
    result = invoke("--port", 0, "--model", tmp_path / "model")
    assert result.exit_code == 2 and "without text encoders and VAE" in result.stderr
