"""Of the networks in a training checkpoint the averaged one is read, whatever it is called, or the file is refused."""

import argparse
import random
import re

import pytest
import torch
from official_dit import random_state
from safetensors.torch import save_file
from tiny_models import tiny_sit
from tiny_sd3 import tiny_transformer
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from segue import AutoGuidance, Engine
from segue.models.contained_networks import MARKS, choose_network
from segue.models.mmdit_diffusers import from_diffusers
from segue.models.weights import load_model, load_network, save_model

AVERAGES = (
    *(
        "ema",
        "model_ema",
        "ema_model",
        "state_dict_ema",
        "ema_state_dict",
        "params_ema",
        "net_ema",
        "EMA",
        "modelEMA",
        "emaModel",
    ),
    *("ema_0.9999", "ema-weights", "swa_model", "averaged_model", "model_avg", "model_average", "polyak", "shadow"),
)
RAWS = ("model", "state_dict", "net", "module", "params", "model_state_dict", "non_ema", "online_model", "current_model_state")


@pytest.fixture(scope="module")
def states():
    """A raw and an averaged state of one small REPA network."""
    return random_state(1, out_channels=4), random_state(2, out_channels=4)


def flat(**parts):
    """One dictionary of the parts, each under its name as a prefix."""
    return {f"{name}.{key}": value for name, state in parts.items() for key, value in state.items()}


def written(tmp_path, content, name="0100.pt"):
    path = tmp_path / name
    (save_file if path.suffix == ".safetensors" else torch.save)(content, path)
    return path


def holds(model, state) -> bool:
    """Whether a network has the weights of an official state."""
    names = {"final_layer.linear.weight", "blocks.1.attn.qkv.weight", "x_embedder.proj.bias"}
    return all(torch.equal(model.state_dict()[name], state[name]) for name in names) and torch.equal(
        model.pos_embed, state["pos_embed"][0]
    )


def refused(message, path, **options):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_model(path, "repa", heads=2, **options)
    assert "\n" not in str(caught.value)


# --- the average is found ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", AVERAGES)
def test_an_average_is_taken_under_every_name_and_the_report_says_so(tmp_path, states, average):
    raw, mean = states
    for count, name in enumerate(random.Random(average).sample(RAWS, 3)):
        nested = {name: raw, average: mean, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}, "epoch": 4}
        parts = list(nested.items())
        random.Random(count).shuffle(parts)  # their order says nothing
        model, report = load_network(written(tmp_path, dict(parts)), "repa", heads=2)
        assert holds(model, mean), name
        assert report.ignored == dict.fromkeys((name, "optimizer", "epoch"), f"not needed beside {average!r}")


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt", "bin"])
def test_an_average_is_taken_from_prefixes_of_one_dictionary(tmp_path, states, suffix):
    raw, mean = states
    for content in (
        flat(model=raw, ema_model=mean),
        flat(**{"model._orig_mod": raw, "ema.module": mean}),
        raw | flat(model_ema=mean),
        flat(**{"ema.online_model": raw, "ema.ema_model": mean}),
    ):
        model, report = load_network(written(tmp_path, content, f"a.{suffix}"), "repa", heads=2)
        assert holds(model, mean)
        assert len(report.ignored) == 1


def test_raw_weights_alone_are_taken_as_they_are(tmp_path, states):
    raw, _ = states
    for content in (raw, {"model": raw}, {"state_dict": flat(**{"net._orig_mod": raw})}, flat(**{"module.module": raw})):
        assert holds(load_network(written(tmp_path, content), "repa", heads=2)[0], raw)


@pytest.mark.parametrize("missing", [None, 0, 1])
def test_a_network_of_every_known_layout_is_found_under_any_place(tmp_path, missing):
    """Whichever one of the tensors it is known by may be missing: that is said by the loader, not here."""
    sd3 = tiny_transformer("sd3")
    for known in (random_state(1), tiny_sit(1).state_dict(), sd3.state_dict(), from_diffusers(sd3).state_dict()):
        marks = [mark for mark in MARKS if mark in known]
        assert len(marks) == 2
        state = {key: value for key, value in known.items() if missing is None or key != marks[missing]}
        for content in ({"state_dict": flat(**{"a.module": state})}, {"state_dict": {"a": {"module": state}}}):
            main = choose_network(content, tmp_path).main
            assert main.place == ("state_dict", "a", "module")
            assert main.tensors == state


class Named(nn.Module):
    """A module that holds a state as its parameters and buffers."""

    def __init__(self, state):
        super().__init__()
        for name, value in state.items():
            owner = self
            *path, leaf = name.split(".")
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner._modules[part]
            owner.register_parameter(leaf, nn.Parameter(value.clone(), requires_grad=leaf != "pos_embed"))


def averaged(raw, other):
    """The state of torch's own average of two states."""
    module = Named(raw)
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    for state in (raw, other):
        module.load_state_dict(state)
        average.update_parameters(module)
    return average.state_dict(), dict(average.module.state_dict())


def test_the_state_of_an_averaged_model_is_an_average_wherever_it_stands(tmp_path, states):
    kept, mean = averaged(*states)
    assert kept["n_averaged"] == 2
    assert not torch.equal(mean["final_layer.linear.weight"], states[0]["final_layer.linear.weight"])
    for content in (
        kept,
        {"model": states[0], "second": kept},
        flat(model=states[0], second=kept),
        {"model": states[1], "ema": kept},
    ):
        model, report = load_network(written(tmp_path, content), "repa", heads=2)
        assert holds(model, mean)
        assert any(name.endswith("n_averaged") and "outside the network" in reason for name, reason in report.ignored.items())


def test_lightning_files_are_read(tmp_path, states):
    raw, mean = states
    head = random_state(3, depth=5, out_channels=4, mid_layer=True)
    arguments = {"hyper_parameters": {"weak_layer": 2, "prediction": "v"}, "pytorch-lightning_version": "2.5", "global_step": 7}
    others = {"vae.decoder.up_blocks.0.weight": torch.zeros(2), "metric.total": torch.tensor(3)}
    model, report = load_network(
        written(tmp_path, {"state_dict": flat(model=head) | others, **arguments}, "last.ckpt"), heads=2
    )
    assert holds(model, head)
    assert model.spec.exits == (2,)
    assert report.ignored["state_dict.metric.total"] == "outside the network 'state_dict.model'"
    model, _ = load_network(
        written(tmp_path, {"state_dict": flat(model=raw, ema=mean), **arguments}, "a.ckpt"), heads=2, family="repa"
    )
    assert holds(model, mean)
    # its averaging callback puts the average into state_dict, and the raw weights beside it
    content = {
        "state_dict": flat(net=mean),
        "current_model_state": flat(net=raw),
        "averaging_state": {"n_averaged": torch.tensor(9)},
    }
    assert holds(load_network(written(tmp_path, content | arguments, "b.ckpt"), heads=2, family="repa")[0], mean)


def test_batch_norm_of_the_projectors_is_for_training(tmp_path, states):
    counts = {"projectors.0.1.num_batches_tracked": torch.tensor(7), "projectors.0.1.running_mean": torch.zeros(4)}
    model, report = load_network(written(tmp_path, {"ema": states[0] | counts, "steps": 3}), heads=2)
    assert holds(model, states[0])
    assert {report.ignored[name] for name in counts} == {"used in training only"}


# --- what cannot be told is refused -----------------------------------------------------------------------------------


def test_several_networks_of_unknown_roles_are_refused_by_name(tmp_path, states):
    raw, mean = states
    refused("holds several networks ('student', 'teacher')", written(tmp_path, {"student": raw, "teacher": mean}))
    refused("holds several networks ('model', 'modelema')", written(tmp_path, flat(model=raw, modelema=mean)))
    refused("holds several networks ('ema_a', 'ema_b')", written(tmp_path, {"ema_a": raw, "ema_b": mean, "model": raw}))


def test_an_average_without_the_networks_names_is_refused_beside_raw_weights(tmp_path, states):
    raw, mean = states
    dotless = {key.replace(".", ""): value for key, value in mean.items()}  # as LitEma of latent-diffusion keeps them
    sentence = "keeps averaged weights under {!r}, without the tensor names of the network under {!r}"
    for content, average, network in (
        ({"model": raw, "ema": {"shadow_params": list(mean.values()), "decay": 0.99}}, "ema", "model"),
        ({"model": raw, "ema_params": list(mean.values())}, "ema_params", "model"),
        (flat(model=raw, model_ema=dotless), "model_ema", "model"),
        ({"state_dict": flat(model=raw, model_ema=dotless)}, "state_dict.model_ema", "state_dict.model"),
    ):
        refused(sentence.format(average, network), written(tmp_path, content))
    counters = {"ema": {"decay": 0.99, "num_updates": torch.tensor(4)}, "optimizer": {"exp_avg": torch.zeros(3)}}
    assert holds(load_network(written(tmp_path, {"model": raw, **counters}), "repa", heads=2)[0], raw)


def test_the_state_of_our_own_training_says_where_its_weights_are(tmp_path):
    model = tiny_sit(1)
    ema = AveragedModel(model).state_dict()
    path = written(tmp_path, {"model": model.state_dict(), "ema": ema, "step": 3}, "state.pt")
    refused("has the tensor names of our own networks, but no spec in a header", path)


# --- networks trained beside ------------------------------------------------------------------------------------------


def separate(tmp_path):
    """A checkpoint of SGG's training beside a separate network, and the states of its two averages."""
    strong, weak = (random_state(seed, out_channels=4, depth=depth, qk_heads=3) for seed, depth in ((5, 4), (6, 2)))
    other = [{key: value + 1 for key, value in state.items()} for state in (strong, weak)]
    arguments = argparse.Namespace(weak_type="Separate", weak_layer=-1, qk_norm=True, path_type="linear", prediction="v")
    content = {"model": other[0], "ema": strong, "opt": {"state": {}}, "args": arguments, "steps": 9}
    content |= {"weak_model": other[1], "weak_ema": weak, "weak_opt": {"state": {}}}
    return written(tmp_path, content), strong, weak


def test_the_weak_network_of_a_separate_training_is_the_network_weak(tmp_path):
    path, strong, weak = separate(tmp_path)
    model, others = load_model(path)
    assert holds(model, strong)
    assert list(others) == ["weak"]
    assert holds(others["weak"], weak)
    assert set(load_network(path)[1].ignored) == {"model", "opt", "weak_model", "weak_opt"}


def test_autoguidance_of_a_separate_training_is_that_of_two_files(tmp_path):
    path, strong, weak = separate(tmp_path)
    files = [written(tmp_path, state, f"{name}.pt") for name, state in (("strong", strong), ("weak", weak))]
    run = {"guidance": AutoGuidance(1.5), "steps": 3, "seeds": [1, 2]}
    apart = Engine.from_pretrained(files[0], family="repa", models={"weak": files[1]}, device="cpu")
    assert torch.equal(
        Engine.from_pretrained(path, device="cpu").sample([1, 4], **run).latents, apart.sample([1, 4], **run).latents
    )
    replaced = Engine.from_pretrained(path, models={"weak": files[0]}, family="repa", device="cpu")
    assert not torch.equal(replaced.sample([1, 4], **run).latents, apart.sample([1, 4], **run).latents)


# --- averages in files and folders beside -----------------------------------------------------------------------------


def test_averages_that_stand_beside_in_a_folder_are_not_passed_over(tmp_path):
    import diffusers

    sizes = {"num_attention_heads": 2, "attention_head_dim": 24, "num_layers": 1, "sample_size": 6, "num_embeds_ada_norm": 7}
    model = diffusers.DiTTransformer2DModel(**sizes, out_channels=8)
    checkpoint, run = tmp_path / "checkpoint-500", tmp_path / "run"
    for name in ("transformer", "transformer_ema"):
        model.save_pretrained(checkpoint / name)
    refused_folder = "checkpoint-500 holds transformer and averaged weights in transformer_ema: name the one that is meant"
    with pytest.raises(ValueError, match=refused_folder):
        load_network(checkpoint)
    assert load_network(checkpoint / "transformer_ema")[0].spec.depth == 1
    (checkpoint / "model_index.json").write_text("{}")  # a published pipeline says which of them is its transformer
    assert load_network(checkpoint)[0].spec.depth == 1
    inner = checkpoint / "transformer"
    (inner / "diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"")
    assert load_network(inner)[0].spec.depth == 1
    model.save_pretrained(inner, variant="ema")
    with pytest.raises(ValueError, match=r"averaged weights in diffusion_pytorch_model\.ema\.safetensors"):
        load_network(inner)
    assert load_network(inner, variant="ema")[0].spec.depth == 1
    run.mkdir()
    save_model(tiny_sit(1), run / "model.safetensors")
    (run / "state.pt").write_bytes(b"")
    assert load_network(run)[0].spec == tiny_sit(1).spec
    (run / "model_ema.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds model\.safetensors and averaged weights in model_ema\.safetensors"):
        load_network(run)
