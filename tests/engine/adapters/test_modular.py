"""The guider in modular diffusers' own SD3 loop, against a loop that evaluates every branch in full and combines in fp64.

The defects of diffusers' guiders that it must not have are listed in the ecosystem notes: layer lists refused, streams
swapped for an odd number of skipped layers, the full model on the negative prompt where CFG is off, doubled work without
a negative prompt.
"""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from modular_sd3 import (
    RULES,
    SKIP,
    STEPS,
    Recorder,
    drawn_prompts,
    inputs,
    make_scheduler,
    naive_run,
    one_call,
    plain,
    run_pipeline,
    without_blocks,
)
from tiny_sd3 import T5_TOKENS, tiny_components, tiny_transformer

from segue import CFG, SGG, AutoGuidance, EarlyExit, PerturbedLayers, SkipLayer, Window

pytest.importorskip("diffusers.modular_pipelines.stable_diffusion_3.modular_blocks_stable_diffusion_3")

from segue.engine.adapters.modular import SegmentedGuidance

ERROR = 2e-5  # fp32 against an fp64 combination of the same fp32 outputs, over up to 9 calls with weights up to 3.5


@pytest.fixture(scope="module")
def transformer():
    return tiny_transformer()


@pytest.fixture(scope="module")
def prompts():
    return drawn_prompts()


@pytest.fixture
def latents():
    return torch.randn(2, 4, 10, 6, generator=torch.Generator().manual_seed(7))


RUNS = [(name, "static") for name in RULES] + [(name, kind) for name in ("sgg", "overlap") for kind in ("dynamic", "heun")]


@pytest.mark.parametrize(("name", "kind"), [*RUNS, ("published", "heun"), ("interval", "heun")])
def test_a_run_equals_the_naive_one_and_evaluates_live_branches_only(transformer, prompts, latents, name, kind):
    rule, weights = RULES[name]
    scheduler = make_scheduler(kind)
    guider = SegmentedGuidance(rule, scheduler=scheduler)
    result, calls = run_pipeline(transformer, scheduler, guider, prompts, latents)
    expected, evaluations = naive_run(transformer, make_scheduler(kind), weights, prompts, latents)
    assert (result - expected).abs().max() <= ERROR * expected.abs().max()
    assert len(calls) == evaluations


def test_a_picture_from_prompts_to_pixels(prompts):
    """All of modular diffusers' SD3 blocks; an empty negative prompt is the one that guidance without any is to have."""
    from diffusers.modular_pipelines.stable_diffusion_3 import modular_blocks_stable_diffusion_3 as blocks

    pipe = blocks.StableDiffusion3AutoBlocks().init_pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.update_components(**tiny_components(), guider=SegmentedGuidance("cfg:scale=4.5"))
    recorder = Recorder(pipe.transformer, prompts)
    call = {"prompt": ["a leaf", "a fern"], "height": 16, "width": 16, "max_sequence_length": T5_TOKENS}
    call |= {"num_inference_steps": 2, "output": "images"}
    pictures = pipe(**call, negative_prompt="", generator=torch.Generator().manual_seed(0))
    assert len(recorder.calls) == 2 * 2
    assert len(pictures) == 2
    again = pipe(**call, negative_prompt="", generator=torch.Generator().manual_seed(0))
    assert [picture.tobytes() for picture in again] == [picture.tobytes() for picture in pictures]
    with pytest.raises(ValueError, match="give the pipeline a negative_prompt"):
        pipe(**call)


def test_sigma_windows_need_no_scheduler(transformer, prompts, latents):
    rule, weights = RULES["sgg"]
    result, calls = run_pipeline(transformer, make_scheduler("static"), SegmentedGuidance(rule), prompts, latents)
    expected, evaluations = naive_run(transformer, make_scheduler("static"), weights, prompts, latents)
    assert (result - expected).abs().max() <= ERROR * expected.abs().max()
    assert len(calls) == evaluations


@pytest.mark.parametrize("layers", [[0], [2], [1, 3], (0, 1, 2), [3, 1, 2], (0, 2, 3)], ids=str)
def test_any_list_of_layers_bypasses_both_streams(transformer, prompts, latents, layers):
    pred, seen = one_call(transformer, SegmentedGuidance(SkipLayer(2.0, layers)), inputs(prompts, latents))
    c, k = (plain(network, prompts, latents) for network in (transformer, without_blocks(transformer, layers)))
    assert (pred - (c + 2.0 * (c - k))).abs().max() <= ERROR * pred.abs().max()
    assert seen == [True, True]


def test_skipping_the_last_block_reads_out_the_stream_before_it(transformer, prompts, latents):
    pred, _ = one_call(transformer, SegmentedGuidance(SkipLayer(2.0, [5])), inputs(prompts, latents))
    c, k = (plain(network, prompts, latents) for network in (transformer, without_blocks(transformer, [5])))
    assert (pred - (c + 2.0 * (c - k))).abs().max() <= ERROR * pred.abs().max()


def test_below_the_switch_the_perturbed_model_sees_the_positive_prompt(transformer, prompts, latents):
    guider = SegmentedGuidance(SGG(CFG(4.5), SkipLayer(3.0, SKIP), 0.7))
    _, calls = run_pipeline(transformer, make_scheduler("static"), guider, prompts, latents)
    above = [((), True), ((), False)]
    below = [((), True), (SKIP, True)]
    scheduler = make_scheduler("static")
    scheduler.set_timesteps(STEPS)
    expected = [pair for s in scheduler.sigmas[:-1].tolist() for pair in (above if s > 0.7 else below)]
    assert calls == expected
    assert above[1] in calls
    assert below[1] in calls


def test_without_a_negative_prompt_work_is_neither_doubled_nor_guidance_dropped(transformer, prompts, latents):
    positive = {name: value for name, value in prompts.items() if not name.startswith("negative")}
    result, calls = run_pipeline(
        transformer, make_scheduler("static"), SegmentedGuidance(SkipLayer(2.5, SKIP)), positive, latents
    )
    expected, _ = naive_run(transformer, make_scheduler("static"), RULES["skip list"][1], prompts, latents)
    assert calls == [((), True), (SKIP, True)] * STEPS
    assert (result - expected).abs().max() <= ERROR * expected.abs().max()

    scheduler = make_scheduler("static")
    for guider in (
        SegmentedGuidance(CFG(4.5)),
        SegmentedGuidance(CFG(4.5, window=Window.steps(4, 5)), scheduler=scheduler),  # known before the first call
    ):
        counted = copy.copy(transformer)
        recorder = Recorder(counted, prompts)
        scheduler.set_timesteps(STEPS)
        with pytest.raises(ValueError, match="needs the unconditional branch: give the pipeline a negative_prompt"):
            one_call(counted, guider, inputs(prompts, latents, negative=False), float(scheduler.timesteps[0]))
        assert recorder.calls == []


def test_a_disabled_guider_evaluates_the_conditional_branch_alone(transformer, prompts, latents):
    guider = SegmentedGuidance(SGG(CFG(4.5), SkipLayer(3.0, SKIP), 0.7))
    guider.disable()
    pred, seen = one_call(transformer, guider, inputs(prompts, latents))
    assert torch.equal(pred.double(), plain(transformer, prompts, latents))
    assert seen == [True]
    assert guider.num_conditions == 1


def test_the_transformer_is_left_as_it_was_even_after_a_failure(transformer, prompts, latents):
    guider, before = SegmentedGuidance(SkipLayer(2.0, SKIP)), dict(transformer.__dict__)
    expected = plain(transformer, prompts, latents)
    one_call(transformer, guider, inputs(prompts, latents))
    guider.set_state(0, 1, torch.tensor(500.0))
    guider.prepare_inputs(inputs(prompts, latents))
    guider.prepare_models(transformer)
    guider.prepare_models(transformer)  # the weak branch
    with pytest.raises(AttributeError):
        transformer(hidden_states=None, timestep=None, return_dict=False)
    assert transformer.__dict__ == before
    assert not transformer._forward_pre_hooks
    assert torch.equal(plain(transformer, prompts, latents), expected)


def test_a_transformer_compiled_in_place_skips_too(prompts, latents):
    network = tiny_transformer(seed=1, num_layers=3, dual_attention_layers=(0,))
    expected = one_call(network, SegmentedGuidance(SkipLayer(2.0, (1,))), inputs(prompts, latents))[0]
    torch._dynamo.reset()
    network.compile(backend="eager")
    for _ in range(2):  # the second time from the cache
        pred, _ = one_call(network, SegmentedGuidance(SkipLayer(2.0, (1,))), inputs(prompts, latents))
        assert (pred - expected).abs().max() <= ERROR * expected.abs().max()


def test_the_wrapper_of_a_compiled_transformer_is_looked_through(transformer):
    guider = SegmentedGuidance(SkipLayer(2.0, (1, 6)))
    guider.set_state(0, 1, torch.tensor(500.0))
    with pytest.raises(ValueError, match="layer 6 does not exist"):
        guider.prepare_models(torch.compile(transformer, backend="eager"))


def test_windows_in_steps_count_the_steps_that_image_to_image_runs():
    scheduler = make_scheduler("static")
    guider = SegmentedGuidance(CFG(2.0, window=Window.steps(1, 2)), scheduler=scheduler)
    scheduler.set_timesteps(8)
    scheduler.set_begin_index(3)
    live = []
    for call, t in enumerate(scheduler.timesteps[3:]):
        guider.set_state(call, 5, t)
        live.append(guider.num_conditions)
        scheduler.step(torch.zeros(1), t, torch.zeros(1))
    assert live == [2, 2, 1, 1, 1]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (EarlyExit(1.0, 2), "not the branch cond exit 2"),
        (AutoGuidance(1.0), "not the branch cond of weak"),
        (PerturbedLayers(1.0, (1,), kind="attention_identity"), "not the branch cond attention_identity 1"),
        (CFG(2.0, condition="parent"), "not the branch parent"),
        (CFG(2.0, condition=3), "not the branch label 3"),
        (CFG(2.0, channels=3), "guides all latent channels, got channels 3"),
        (CFG(2.0, window=Window.steps(1, 4)), r"the window steps 1-4 needs the schedule: pass scheduler=pipe\.scheduler"),
        (CFG(2.0, delta=0.5), r"the delta 0\.5 needs the schedule"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value.terms[0].branch),
)
def test_what_a_guider_cannot_do_is_refused_in_one_sentence(rule, message):
    with pytest.raises(ValueError, match=message):
        SegmentedGuidance(rule)


def test_wrong_networks_and_schedulers_are_refused(transformer, prompts, latents):
    with pytest.raises(TypeError, match=r"guidance must be a rule such as .*, or its text .* got 4\.5"):
        SegmentedGuidance(4.5)
    guider = SegmentedGuidance(SkipLayer(2.0, (1, 6)))
    with pytest.raises(ValueError, match="layer 6 does not exist: blocks are 0 to 5"):
        one_call(transformer, guider, inputs(prompts, latents))
    guider.set_state(0, 1, torch.tensor(500.0))
    with pytest.raises(TypeError, match="needs SD3Transformer2DModel, got Linear"):
        guider.prepare_models(torch.nn.Linear(1, 1))

    other = make_scheduler("static")
    other.set_timesteps(7)
    guider = SegmentedGuidance(CFG(2.0), scheduler=other)
    with pytest.raises(ValueError, match="called at timestep 500, and the scheduler is at 1000"):
        one_call(transformer, guider, inputs(prompts, latents))
    with pytest.raises(ValueError, match="are stages of one step: pass scheduler="):
        run_pipeline(transformer, make_scheduler("heun"), SegmentedGuidance(CFG(2.0)), prompts, latents)


def test_windows_that_select_nothing_are_reported():
    scheduler = make_scheduler("static")
    scheduler.set_timesteps(STEPS)
    guider = SegmentedGuidance(CFG(2.0, window=Window.sigma(0.0, 0.001)), scheduler=scheduler)
    with pytest.warns(UserWarning, match=r"the window sigma \(0, 0\.001\] of uncond selects none of 5 steps"):
        guider.set_state(0, STEPS, scheduler.timesteps[0])


@pytest.mark.parametrize("name", [name for name in RULES if name != "function"])
def test_a_saved_guider_holds_the_same_rule(tmp_path, name):
    scheduler = make_scheduler("static")
    guider = SegmentedGuidance(RULES[name][0], scheduler=scheduler)
    guider.save_pretrained(tmp_path)
    config = SegmentedGuidance.load_config(tmp_path)
    assert SegmentedGuidance(config["guidance"], scheduler=scheduler).guidance == guider.guidance
    assert guider.new().guidance == guider.guidance
    assert guider.new(enabled=False).num_conditions == 1


def test_a_weight_that_is_a_function_cannot_be_saved(tmp_path):
    guider = SegmentedGuidance(RULES["function"][0])
    assert guider.new().guidance is guider.guidance
    with pytest.raises(ValueError, match="a function of sigma cannot be saved"):
        guider.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_block_state_gives_the_same_inputs(prompts, latents):
    from diffusers.modular_pipelines.modular_pipeline import BlockState

    guider = SegmentedGuidance(CFG(2.0))
    guider.set_state(0, 1, torch.tensor(500.0))
    fields = {"hidden_states": "latents", "encoder_hidden_states": ("prompt_embeds", "negative_prompt_embeds")}
    batches = guider.prepare_inputs_from_block_state(BlockState(latents=latents, **prompts), fields)
    assert [batch.hidden_states is latents for batch in batches] == [True, True]
    assert batches[0].encoder_hidden_states is prompts["prompt_embeds"]
    assert batches[1].encoder_hidden_states is prompts["negative_prompt_embeds"]
    without = BlockState(latents=latents, prompt_embeds=prompts["prompt_embeds"], negative_prompt_embeds=None)
    with pytest.raises(ValueError, match="give the pipeline a negative_prompt"):
        guider.prepare_inputs_from_block_state(without, fields)


def test_half_precision_outputs_are_combined_in_fp32():
    guider = SegmentedGuidance(CFG(4.5))
    guider.set_state(0, 1, torch.tensor(500.0))
    c, u = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1)).bfloat16()
    pred = guider.forward(pred_0=c, pred_1=u).pred
    expected = c.double() + 3.5 * (c.double() - u.double())
    assert pred.dtype == torch.float32
    np.testing.assert_allclose(pred.double(), expected, rtol=1e-6, atol=1e-6)


def test_the_modules_import_neither_diffusers_nor_comfy():
    code = (
        "import sys, segue.engine.adapters.modular, segue.engine.adapters.modular_loop\n"
        "import segue.engine.adapters.comfy, segue.engine.adapters.comfy_v3\n"
        "sys.exit(any(name in sys.modules for name in ('diffusers', 'comfy', 'comfy_api')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
