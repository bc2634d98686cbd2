"""Of a repository on the hub exactly what is read is fetched, in the form that is asked for; refusals give the hub's reason."""

import json
import re

import pytest
import torch
from attached_runs import relative_error
from hub_stand_in import StandInHub
from safetensors.torch import load_file
from tiny_checkpoint import save_tiny
from tiny_sd3 import T5_TOKENS, tiny_pipeline

from segue import CFG, Engine
from segue.engine.saved_files import component_weights
from segue.engine.sources import Reading, local_source
from tests.tolerances import ATTACHED_RUN

CLUTTER = ("README.md", "sd3_medium.safetensors", "images/a.png", "text_encoders/clip_g.safetensors", "vae/flax_model.msgpack")
CONFIGURATIONS = {
    *("model_index.json", "scheduler/scheduler_config.json", "transformer/config.json", "vae/config.json"),
    *(f"text_encoder{number}/config.json" for number in ("", "_2", "_3")),
}
STEMS = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
STEMS |= {f"text_encoder{number}": "model" for number in ("", "_2", "_3")}


def alike(run, other) -> bool:
    """Equal but for roundings: weights that are loaded by another way may lie at other alignments."""
    return relative_error(run.latents, other.latents) < ATTACHED_RUN


def draw(engine):
    return engine.generate("leaf", guidance=CFG(3.0), steps=3, seeds=[2], max_sequence_length=T5_TOKENS)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A saved pipeline: safetensors, .bin files of diffusers' networks, and other weights as variant fp16, among clutter."""
    folder = tmp_path_factory.mktemp("repository")
    tiny_pipeline(seed=1).save_pretrained(folder, safe_serialization=False)
    tiny_pipeline(seed=1).save_pretrained(folder)
    tiny_pipeline(seed=8).save_pretrained(folder, variant="fp16")
    for name in CLUTTER:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"never fetched")
    return folder


@pytest.fixture
def hub(repository, tmp_path, monkeypatch):
    return StandInHub(repository, tmp_path / "cache").install(monkeypatch)


def weights(mark=""):
    return {f"{name}/{stem}{mark}.safetensors" for name, stem in STEMS.items()}


def fetched_weights(hub):
    return {name for name in hub.fetched if name.endswith((".safetensors", ".bin", ".index.json"))}


# --- what is fetched --------------------------------------------------------------------------------------------------


def test_a_pipeline_brings_its_components_in_one_form_and_draws_as_from_the_folder(hub, repository):
    engine = Engine.from_pretrained("owner/name", device="cpu", revision="v2", token="secret")
    assert fetched_weights(hub) == weights()
    assert hub.fetched >= CONFIGURATIONS
    assert not hub.fetched & set(CLUTTER)
    assert {name.split("/")[0] for name in hub.fetched - CONFIGURATIONS - weights()} == {
        "tokenizer",
        "tokenizer_2",
        "tokenizer_3",
    }
    assert all(access == {"revision": "v2", "token": "secret"} for access in hub.asked)
    assert alike(draw(engine), draw(Engine.from_pretrained(repository, device="cpu")))


def test_a_variant_is_fetched_instead_and_draws_its_own_weights(hub, repository):
    from diffusers import StableDiffusion3Pipeline

    engine = Engine.from_pretrained("owner/name", device="cpu", variant="fp16")
    assert fetched_weights(hub) == weights(".fp16")
    expected = draw(Engine.from_pipe(StableDiffusion3Pipeline.from_pretrained(repository, variant="fp16")))
    assert alike(draw(engine), expected)
    plain = draw(Engine.from_pretrained(repository, device="cpu"))
    assert relative_error(plain.latents, expected.latents) > 100 * ATTACHED_RUN


def test_bin_files_are_fetched_where_there_is_nothing_else(repository, tmp_path, monkeypatch):
    names = {f"{name}/{stem}.safetensors": f"{name}/{'pytorch_' * (stem == 'model')}{stem}.bin" for name, stem in STEMS.items()}
    for file in StandInHub(repository, tmp_path).files:
        target = tmp_path / "repository" / names.get(file, file)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file in names:
            torch.save(load_file(repository / file), target)
        elif not file.endswith((".safetensors", ".bin")):
            target.write_bytes((repository / file).read_bytes())
    hub = StandInHub(tmp_path / "repository", tmp_path / "cache").install(monkeypatch)
    engine = Engine.from_pretrained("owner/name", device="cpu")
    assert fetched_weights(hub) == set(names.values())
    assert alike(draw(engine), draw(Engine.from_pretrained(repository, device="cpu")))


def test_without_t5_it_is_neither_fetched_nor_loaded(hub):
    engine = Engine.from_pretrained("owner/name", device="cpu", t5=False)
    assert fetched_weights(hub) == {name for name in weights() if "encoder_3" not in name}
    assert not any(name.startswith(("text_encoder_3/", "tokenizer_3/")) for name in hub.fetched)
    pipe = tiny_pipeline(seed=1)
    pipe.register_modules(text_encoder_3=None, tokenizer_3=None)
    common = {"num_inference_steps": 3, "guidance_scale": 3.0, "max_sequence_length": T5_TOKENS, "output_type": "latent"}
    expected = pipe("leaf", generator=[torch.Generator().manual_seed(2)], height=16, width=16, **common).images
    assert relative_error(draw(engine).latents, expected) < ATTACHED_RUN


def test_a_pipeline_saved_without_parts_needs_none(tmp_path, monkeypatch):
    pipe = tiny_pipeline(seed=1)
    pipe.register_modules(text_encoder_3=None, tokenizer_3=None, vae=None)
    pipe.save_pretrained(tmp_path / "repository")
    hub = StandInHub(tmp_path / "repository", tmp_path / "cache").install(monkeypatch)
    engine = Engine.from_pretrained("owner/name", device="cpu")
    assert fetched_weights(hub) == {name for name in weights() if "encoder_3" not in name and "vae" not in name}
    assert engine.generate("leaf", steps=2, seeds=[2], output="latent").latents.isfinite().all()


def test_configurations_alone_are_enough_to_plan(hub):
    folder = local_source("owner/name", weights=False)
    assert hub.fetched == {name for name in CONFIGURATIONS if not name.startswith("text")}
    assert folder == hub.snapshot


def test_of_a_dit_pipeline_the_transformer_is_fetched(tmp_path, monkeypatch):
    import diffusers

    torch.manual_seed(3)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 24, "num_layers": 2, "sample_size": 6, "num_embeds_ada_norm": 7}
    model = diffusers.DiTTransformer2DModel(**sizes, out_channels=8)
    for options in ({"max_shard_size": "100KB"}, {"variant": "fp16", "max_shard_size": "100KB"}):
        model.save_pretrained(tmp_path / "repository" / "transformer", **options)
    (tmp_path / "repository" / "vae").mkdir()
    (tmp_path / "repository" / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    (tmp_path / "repository" / "model_index.json").write_text(json.dumps({"_class_name": "DiTPipeline", "vae": ["a", "b"]}))
    hub = StandInHub(tmp_path / "repository", tmp_path / "cache").install(monkeypatch)
    plain = Engine.from_pretrained("owner/name", device="cpu")
    shards = {name for name in hub.files if re.fullmatch(r"transformer/diffusion_pytorch_model-\d+-of-\d+\.safetensors", name)}
    assert len(shards) > 1
    index = "transformer/diffusion_pytorch_model.safetensors.index.json"
    assert hub.fetched == {"model_index.json", "transformer/config.json", index, *shards}
    assert plain.spec.name == "name"
    half = Engine.from_pretrained("owner/name", device="cpu", variant="fp16")
    assert {name for name in hub.fetched if "fp16" in name} == {name for name in hub.files if "fp16" in name}
    run = {"labels": [1, 4], "steps": 2, "seeds": [1, 2]}
    assert alike(half.sample(**run), plain.sample(**run))


def test_of_a_training_run_its_weights_are_fetched(tmp_path, monkeypatch):
    (tmp_path / "repository").mkdir()
    save_tiny(tmp_path / "repository" / "model.safetensors")
    (tmp_path / "repository" / "state.pt").write_bytes(b"")
    hub = StandInHub(tmp_path / "repository", tmp_path / "cache").install(monkeypatch)
    refused("the repository owner/name cannot be read: t5=False does not apply: it is no SD3", ValueError, t5=False)
    refused("cannot be read: variant='fp16' does not apply: it holds a model.safetensors", ValueError, variant="fp16")
    assert not hub.fetched
    assert Engine.from_pretrained("owner/name", device="cpu").spec.num_classes == 5
    assert hub.fetched == {"model.safetensors"}


def test_a_networks_weights_are_chosen_whole_or_in_shards():
    shards = [
        f"t/model{mark}-0000{i}-of-00002{end}.safetensors" for mark, end in (("", ""), (".a", ""), ("", ".a")) for i in (1, 2)
    ]
    indices = ["t/model.safetensors.index.json", "t/model.safetensors.index.a.json"]
    files = [*shards, *indices, "t/pytorch_model.bin", "t/other.safetensors"]
    assert component_weights(files, None) == [indices[0], *shards[:2]]
    assert component_weights(files, "a") == [indices[1], *shards[2:]]
    assert component_weights([*files, "t/model.safetensors"], None) == ["t/model.safetensors"]
    assert component_weights(["t/pytorch_model.bin", "t/a.msgpack"], None) == ["t/pytorch_model.bin"]
    assert component_weights(files, "b") == component_weights(["t/model.msgpack"], None) == []


# --- refusals ---------------------------------------------------------------------------------------------------------


def refused(message, error=FileNotFoundError, source="owner/name", **options):
    with pytest.raises(error, match=re.escape(message)) as caught:
        Engine.from_pretrained(source, device="cpu", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_hubs_own_reason_is_given(hub):
    hub.error = OSError("401 Client Error.\n\nAccess to model owner/name is restricted.\nPlease log in.")
    line = refused("'owner/name' is no local file or folder, and the hub did not give it: OSError: 401 Client Error. Access to")
    assert line.endswith("is restricted. Please log in.")
    hub.error = ConnectionError()
    assert refused("the hub did not give it: ConnectionError").endswith("ConnectionError")


def test_offline_the_cache_is_read_and_what_it_lacks_is_said(hub, repository):
    Engine.from_pretrained("owner/name", device="cpu")
    hub.error = ConnectionError("offline mode")
    again = Engine.from_pretrained("owner/name", device="cpu")
    assert alike(draw(again), draw(Engine.from_pretrained(repository, device="cpu")))
    refused("none of its components has weights of the variant 'fp16'", variant="fp16")
    line = refused("(in the cache; the hub did not answer: ConnectionError: offline mode)", variant="fp16")
    assert "the repository owner/name cannot be read" in line


SD3 = {
    "model_index.json": {"_class_name": "StableDiffusion3Pipeline", "vae": ["a", "b"]},
    "transformer/config.json": {"_class_name": "SD3Transformer2DModel", "num_layers": 1, "num_attention_heads": 1}
    | {"attention_head_dim": 8, "caption_projection_dim": 8},
}
INPAINTING = SD3["transformer/config.json"] | {"in_channels": 33}


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        (SD3 | {"transformer/config.json": INPAINTING}, ValueError, "takes 33 channels and gives 16: it is an inpainting one"),
        (
            {"model_index.json": SD3["model_index.json"]},
            FileNotFoundError,
            "a pipeline without a transformer/config.json of an SD3",
        ),
        ({}, FileNotFoundError, "it has README.md, model.ckpt"),
        (
            {"transformer/config.json": {"_class_name": "FluxTransformer2DModel"}},
            ValueError,
            "describes a FluxTransformer2DModel",
        ),
        (
            {"config.json": {"_class_name": "DiTTransformer2DModel"}},
            FileNotFoundError,
            "its network has no weights without a variant",
        ),
        (
            SD3 | {"model_index.json": {"_class_name": "StableDiffusion3ControlNetPipeline", "controlnet": ["diffusers", "A"]}},
            ValueError,
            "the StableDiffusion3ControlNetPipeline has a controlnet, which an engine leaves out",
        ),
        (
            SD3 | {"vae/config.json": {}},
            FileNotFoundError,
            "its vae has no weights without a variant; there are: vae/diffusion_pytorch_model.fp16.safetensors",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_before_its_weights_are_fetched(tmp_path, monkeypatch, files, error, message):
    clutter = {"README.md": {}, "model.ckpt": {}}
    clutter |= {"vae/diffusion_pytorch_model.fp16.safetensors": {}} if "vae/config.json" in files else {}
    for name, content in (files | clutter).items():
        path = tmp_path / "repository" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    hub = StandInHub(tmp_path / "repository", tmp_path / "cache").install(monkeypatch)
    hub.snapshot.mkdir(parents=True)
    assert "the repository owner/name cannot be read: " in refused(message, error)
    assert hub.fetched == set(files)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"revision": ""}, ValueError, "revision must not be empty"),
        ({"revision": 3}, TypeError, "revision must be a string, got 3"),
        ({"variant": "../fp16"}, ValueError, "variant must be a word of a file's name such as fp16, got '../fp16'"),
        ({"t5": None}, TypeError, "t5 must be True or False, got None"),
    ],
)
def test_values_that_no_repository_has(options, error, message):
    refused(message, error, **options)


def test_what_does_not_apply_is_refused(tmp_path, repository):
    file = save_tiny(tmp_path / "model.safetensors")
    for source in ("herbarium", file, tmp_path):
        refused("revision='v2' does not apply", ValueError, source, revision="v2")
        refused("t5=False does not apply", ValueError, source, t5=False)
        refused("variant", ValueError, source, variant="fp16")
    for option, value in (("family", "dit"), ("heads", 2), ("exit_layer", 3)):
        refused(f"{option}={value!r} does not apply: {repository} states what it is", ValueError, repository, **{option: value})
    refused(
        "has a config.json but no weights of the variant 'fp8'; it has the variants fp16",
        source=repository / "transformer",
        variant="fp8",
    )
    assert "secret" not in repr(Reading(token="secret"))
