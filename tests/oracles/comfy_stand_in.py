"""A stand-in for the parts of ComfyUI that our node touches, on a small random two-stream network.

What the stand-in mimics, from ComfyUI's comfy/samplers.py, model_patcher.py, model_sampling.py and mmdit.py:

- ``sampling_function(model, x, timestep, uncond, cond, cond_scale, model_options)`` drops the negative condition when
  cond_scale is 1, unless ``model_options["disable_cfg1_optimization"]``; it hands ``conds = [cond, uncond or None]`` as
  ``{"conds", "input", "sigma", "model", "model_options"}`` to ``model_options["sampler_calc_cond_batch_function"]`` if that
  is set and to ``calc_cond_batch(model, conds, x, timestep, model_options)`` otherwise; either returns one clean estimate
  per condition, zeros for None.  Then ``uncond + (cond - uncond) * cond_scale``, or ``x -`` what ``sampler_cfg_function``
  makes of ``{"cond": x - cond, "uncond": x - uncond, "cond_scale", ...}``.
- ``calc_cond_batch`` evaluates all conditions of one shape as one batch through ``model.apply_model``, does not look at the
  hook, and passes ``model_options["transformer_options"]`` on.
- SD3's joint block ``i`` is replaced by ``transformer_options["patches_replace"]["dit"][("double_block", i)]``, called with
  ``{"img", "txt", "vec"}`` and ``{"original_block"}``; it returns a dict with ``img`` and ``txt``.
- A patcher's ``clone()`` copies nested option dicts; ``get_model_object(name)`` finds ``diffusion_model``;
  ``model_sampling`` of SD3 is ``shift t / (1 + (shift - 1) t)`` at ``t = 1 - percent``; the estimate is ``x - sigma v``.
"""

import copy
import math

import torch


class JointBlock(torch.nn.Module):
    """Mixes both streams; ``runs`` counts its calls."""

    def __init__(self, generator):
        super().__init__()
        self.mixes, self.runs = [torch.randn(6, 6, generator=generator) / 6**0.5 for _ in range(4)], 0

    def forward(self, txt, img, c):
        self.runs += 1
        for_img, from_txt, for_txt, from_img = self.mixes
        new = torch.tanh(img @ for_img + txt.mean(1, keepdim=True) @ from_txt + c[:, None])
        text = torch.tanh(txt @ for_txt + img.mean(1, keepdim=True) @ from_img - c[:, None])
        return txt + text, img + new


class JointTransformer:
    """Two streams of width 6 through joint blocks, replaceable as ComfyUI's MMDiT allows."""

    def __init__(self, blocks):
        generator = torch.Generator().manual_seed(5)
        self.joint_blocks = torch.nn.ModuleList(JointBlock(generator) for _ in range(blocks))

    def __call__(self, x, t, context, transformer_options):
        replaced = transformer_options.get("patches_replace", {}).get("dit", {})
        img, txt, vec = x.flatten(2).transpose(1, 2), context, (t[:, None] / 1000).expand(-1, 6).cos()
        for i, block in enumerate(self.joint_blocks):
            if ("double_block", i) in replaced:

                def original(args, block=block):
                    txt, img = block(args["txt"], args["img"], c=args["vec"])
                    return {"txt": txt, "img": img}

                out = replaced[("double_block", i)]({"img": img, "txt": txt, "vec": vec}, {"original_block": original})
                txt, img = out["txt"], out["img"]
            else:
                txt, img = block(txt, img, c=vec)
        return img.transpose(1, 2).reshape(x.shape)


class FlowSampling:
    """``model_sampling`` of a flow-matching model."""

    def __init__(self, shift):
        self.shift = shift

    def percent_to_sigma(self, percent):
        if percent <= 0:
            return 1.0
        t = max(0.0, 1 - percent)
        return self.shift * t / (1 + (self.shift - 1) * t)


class BaseModel:
    """ComfyUI's model: flow matching on SD3; notes (conditions, blocks that did not run) of every evaluation."""

    def __init__(self, blocks=6, shift=3.0):
        self.diffusion_model, self.model_sampling = JointTransformer(blocks), FlowSampling(shift)
        self.evaluations = []

    def apply_model(self, x, t, c_crossattn, transformer_options):
        blocks = self.diffusion_model.joint_blocks
        before = [block.runs for block in blocks]
        v = self.diffusion_model(x, 1000 * t, c_crossattn, transformer_options)
        idle = tuple(i for i, block in enumerate(blocks) if block.runs == before[i])
        self.evaluations.append((transformer_options["cond_or_uncond"], idle))
        return x - t[:, None, None, None] * v


class ModelPatcher:
    """A model and the options of its sampling, copied by ``clone``."""

    def __init__(self, model):
        self.model, self.model_options = model, {"transformer_options": {}}

    def clone(self):
        other = ModelPatcher(self.model)
        other.model_options = copy_nested(self.model_options)
        return other

    def get_model_object(self, name):
        return getattr(self.model, name)

    def set_model_sampler_calc_cond_batch_function(self, function):
        self.model_options["sampler_calc_cond_batch_function"] = function


def copy_nested(options):
    return {key: copy_nested(value) if isinstance(value, dict) else copy.copy(value) for key, value in options.items()}


def calc_cond_batch(model, conds, x_in, timestep, model_options):
    """One clean estimate per condition, zeros for None, all from one batch."""
    present = [i for i, cond in enumerate(conds) if cond is not None]
    options = {**model_options["transformer_options"], "cond_or_uncond": present}
    context = torch.cat([conds[i] for i in present])
    count = len(present)
    chunks = model.apply_model(x_in.repeat(count, 1, 1, 1), timestep.repeat(count), context, options).chunk(count)
    outputs = [torch.zeros_like(x_in) for _ in conds]
    for i, chunk in zip(present, chunks, strict=True):
        outputs[i] = chunk
    return outputs


def sampling_function(model, x, timestep, uncond, cond, cond_scale, model_options):
    """The guided clean estimate, as every sampler of ComfyUI asks for it."""
    if math.isclose(cond_scale, 1.0) and not model_options.get("disable_cfg1_optimization", False):
        uncond = None
    conds = [cond, uncond]
    if "sampler_calc_cond_batch_function" in model_options:
        args = {"conds": conds, "input": x, "sigma": timestep, "model": model, "model_options": model_options}
        out = model_options["sampler_calc_cond_batch_function"](args)
    else:
        out = calc_cond_batch(model, conds, x, timestep, model_options)
    if "sampler_cfg_function" in model_options:
        args = {"cond": x - out[0], "uncond": x - out[1], "cond_scale": cond_scale, "input": x, "sigma": timestep}
        return x - model_options["sampler_cfg_function"](args)
    return out[1] + (out[0] - out[1]) * cond_scale
