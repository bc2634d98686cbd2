"""Rows through a transformer's own modules equal diffusers' whole forward for every branch, combined in fp64."""

import random

import pytest
import torch
from clocks import at_times
from counted_rows import counted_rows
from tiny_sd3 import add_ip_adapter, tiny_transformer

from segue.models.mmdit import TextCondition
from segue.models.mmdit_diffusers import diffusers_spec
from segue.models.module_rows import CallInputs, ModuleNetwork, SlotInputs
from segue.models.rows import FULL, SKIP, Path, RowLayout
from tests.tolerances import ATTACHED_RUN

TIMES = (900.0, 512.5, 3.0)
SKIPS = ((2, 3), (1, 4), (0,), (5,), (0, 2, 5), (1, 2, 3))  # contiguous, scattered, first, last, odd-sized
SIZES = ((8, 8), (6, 10), (2, 18))  # the second has an odd number of tokens


class Question:
    """A random call of a network: latents, prompts of two conditions, and what a ControlNet or an IP-Adapter adds."""

    def __init__(self, seed: int, residuals: int = 0, images: bool = False):
        choose, generator = random.Random(seed), torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(shape, generator=generator)

        self.batch, (self.height, self.width) = choose.choice((1, 2, 3)), choose.choice(SIZES)
        self.skips = choose.sample(SKIPS, 2)
        self.time_index = torch.tensor([choose.randrange(len(TIMES)) for _ in range(self.batch)])
        self.x = draw(self.batch, 4, self.height, self.width)
        self.texts = [TextCondition(draw(self.batch, 7, 24), draw(self.batch, 20)) for _ in range(2)]
        tokens = self.height * self.width // 4
        self.residuals = [[draw(self.batch, tokens, 16) for _ in range(residuals)] for _ in range(2)]
        self.images = [draw(self.batch, 4, 10) if images else None for _ in range(2)]
        self.coefficients = draw(self.batch, 4)
        paths = [Path.full(0, 6), Path.full(1, 6)]
        for skip in self.skips:
            paths.append(Path(0, tuple(SKIP if layer in skip else FULL for layer in range(6))))
        self.layout = RowLayout(tuple(paths), 6)

    def wanted(self, transformer) -> torch.Tensor:
        """Every branch alone through diffusers' forward."""
        time, total = torch.tensor(TIMES)[self.time_index], 0
        for branch, (slot, skip) in enumerate(((0, None), (1, None), (0, self.skips[0]), (0, self.skips[1]))):
            text, images = self.texts[slot], self.images[slot]
            output = transformer(
                hidden_states=self.x,
                timestep=time,
                encoder_hidden_states=text.context,
                pooled_projections=text.pooled,
                block_controlnet_hidden_states=self.residuals[slot] or None,
                joint_attention_kwargs=None if images is None else {"ip_adapter_image_embeds": images},
                skip_layers=skip,
                return_dict=False,
            )[0]
            total = total + self.coefficients[:, branch, None, None, None].double() * output.double()
        return total

    def found(self, transformer, coefficients=None) -> torch.Tensor:
        """All branches as rows."""
        network = ModuleNetwork(transformer, diffusers_spec(transformer))
        rows = network.rows(self.batch, self.height, self.width, row_blocks=4, slots=2, times=8, conditions=6)
        rows.load(torch.tensor(TIMES, dtype=torch.float64), self.texts)
        network.inputs = CallInputs(
            tuple(SlotInputs(tuple(part), images) for part, images in zip(self.residuals, self.images, strict=True))
        )
        chosen = self.coefficients if coefficients is None else coefficients
        return rows.forward(self.x, at_times(self.time_index), self.layout, chosen)


def error(found, wanted) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("kind", ["sd3", "sd3.5-medium", "sd3.5-large"])
def test_rows_equal_the_whole_forward(kind, seed):
    transformer = tiny_transformer(kind, seed=seed)
    for draw in range(4):
        question = Question(seed + draw)
        assert error(question.found(transformer), question.wanted(transformer)) < ATTACHED_RUN, (question.skips, draw)


@pytest.mark.parametrize("residuals", [1, 2, 4, 6])
def test_residuals_of_a_controlnet_follow_their_condition(residuals, seed):
    """Also at skipped blocks, as diffusers adds them; 4 do not divide the 6 blocks."""
    transformer = tiny_transformer(seed=seed)
    question = Question(seed, residuals=residuals)
    plain = Question(seed)
    assert error(question.found(transformer), question.wanted(transformer)) < ATTACHED_RUN
    assert error(question.found(transformer), plain.wanted(transformer)) > 0.01


def test_image_tokens_of_an_ip_adapter_follow_their_condition(seed):
    transformer = tiny_transformer(seed=seed)
    add_ip_adapter(transformer, seed)
    for draw in range(3):
        question = Question(seed + draw, images=True)
        assert error(question.found(transformer), question.wanted(transformer)) < ATTACHED_RUN


def test_channels_may_have_their_own_coefficients(seed):
    transformer, question = tiny_transformer(seed=seed), Question(seed)
    alike = question.coefficients[..., None].expand(-1, -1, 4)
    assert error(question.found(transformer, alike), question.wanted(transformer)) < ATTACHED_RUN
    first = alike * torch.tensor([1.0, 0.0, 0.0, 0.0])
    found, wanted = question.found(transformer, first), question.wanted(transformer)
    assert error(found[:, :1], wanted[:, :1]) < ATTACHED_RUN
    assert not found[:, 1:].any()


def test_rows_share_their_prefix(seed):
    question = Question(seed)
    with counted_rows() as rows:
        question.found(tiny_transformer(seed=seed))
    assert sum(rows) == question.batch * question.layout.block_rows
    assert len(rows) <= sum(len(layer.groups) for layer in question.layout.layers)


def test_perturbed_attention_is_refused():
    network = ModuleNetwork(tiny := tiny_transformer(), diffusers_spec(tiny))
    rows = network.rows(1, 8, 8, row_blocks=2, slots=1, times=1, conditions=1)
    layout = RowLayout((Path.full(0, 6), Path(0, (FULL, "attention_identity", *[FULL] * 4))), 6)
    with pytest.raises(ValueError, match="no attention_identity; only skip"):
        rows.forward(torch.zeros(1, 4, 8, 8), at_times(torch.zeros(1, dtype=torch.int64)), layout, torch.ones(1, 2))


def test_prompts_that_do_not_fit_are_refused():
    network = ModuleNetwork(tiny := tiny_transformer(), diffusers_spec(tiny))
    rows = network.rows(2, 8, 8, row_blocks=2, slots=2, times=1, conditions=1)
    text = TextCondition(torch.zeros(1, 7, 24), torch.zeros(1, 20))
    with pytest.raises(ValueError, match=r"2 conditions of 2 prompts, got \[1, 1\]"):
        rows.load(torch.tensor([1.0]), [text, text])


def test_moving_the_network_leaves_the_transformer_alone():
    transformer = tiny_transformer().requires_grad_(True)
    network = ModuleNetwork(transformer, diffusers_spec(transformer))
    network.to("meta", torch.bfloat16).requires_grad_(False).train()
    assert all(p.dtype == torch.float32 and p.device.type == "cpu" and p.requires_grad for p in transformer.parameters())
    assert not transformer.training
