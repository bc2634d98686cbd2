"""Arguments and options that are unknown here, or lacking: a refusal names ours for those of diffusers and its relatives."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

_RULE = "write the rule, guidance=CFG(4.5) or as text guidance='cfg:scale=4.5'"
_WEAK = "write the rule, guidance=CFG(4.5) + SkipLayer(2.8, (7, 8, 9), window=Window.fraction(0.01, 0.2))"
_PAG = "write the rule, guidance=PerturbedLayers(3.0, layers, kind='attention_identity_image')"
_LEVELS = "give schedule: a name, or the noise levels themselves with the last one, 0"
_SEEDS = "it is called seeds: one integer per picture, or one that counts up"
_TEXTS = "all text encoders read the prompt; give other texts to the pipeline's own encode_prompt"
_EMBEDDINGS = "embeddings of a prompt are one object: what encode() returns, in the place of the prompt"
_ATTACH = "the pipeline does that itself: use segue.attach(pipe, guidance) and give it to the pipeline"
_CALLBACK = "it is called callback: a function of CallInfo, after every network call"
_LOADING = "load the pipeline by diffusers, and give it to Engine.from_pipe or segue.attach"

# what to say of a keyword; a pair of the name here, for functions that have it, and of what to say elsewhere
RENAMED: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("guidance_scale", "cfg_scale", "cfg"), ("scale", _RULE)),
    "num_inference_steps": ("steps", "it is called steps in sample, generate and plan"),
    "num_steps": ("steps", "it is called steps in sample, generate and plan"),
    "num_images_per_prompt": (
        "num_images",
        "it is called num_images in generate; else repeat labels or embeddings",
    ),
    "class_labels": ("labels", "it is called labels in the sample of a class-label model"),
    "output_type": ("output", "it is called output, 'pil' or 'latent', in generate; a run has latents, and images"),
    "torch_dtype": ("dtype", "it is called dtype in from_pretrained; a pipeline's is its own"),
    "callback_on_step_end": ("callback", f"{_CALLBACK}, in sample and generate"),
    "sampler": ("solver", "it is called solver in sample, generate and plan"),
    "batch_size": ("max_batch", "it is called max_batch in sample and generate"),
}
ADVICE: dict[str, str] = {
    "guider": _RULE,
    "guidance_rescale": "write the rule, guidance=CFG(4.5) + Rescale(0.7)",
    **dict.fromkeys(("skip_guidance_layers", "skip_layer_guidance_scale"), _WEAK),
    **dict.fromkeys(("skip_layer_guidance_start", "skip_layer_guidance_stop"), _WEAK),
    **dict.fromkeys(("pag_scale", "pag_adaptive_scale", "pag_applied_layers"), _PAG),
    **dict.fromkeys(("sigmas", "timesteps"), _LEVELS),
    "mu": "give schedule='shift=3', or leave it out: the scheduler's own shift follows the size",
    "scheduler": "give schedule, its noise levels, and solver, or put it into the pipeline before Engine.from_pipe",
    **dict.fromkeys(("generator", "seed"), _SEEDS),
    **dict.fromkeys(("prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3"), _TEXTS),
    **dict.fromkeys(("prompt_embeds", "negative_prompt_embeds"), _EMBEDDINGS),
    **dict.fromkeys(("pooled_prompt_embeds", "negative_pooled_prompt_embeds"), _EMBEDDINGS),
    **dict.fromkeys(("ip_adapter_image", "ip_adapter_image_embeds", "control_image", "clip_skip"), _ATTACH),
    **dict.fromkeys(("joint_attention_kwargs", "cross_attention_kwargs"), _ATTACH),
    **dict.fromkeys(("mask_image", "masked_image_latents", "padding_mask_crop"), _ATTACH),
    "callback_on_step_end_tensor_inputs": _CALLBACK,
    "return_dict": "what comes back is always one object, with latents, images and the plan",
    **dict.fromkeys(("device_map", "use_safetensors", "low_cpu_mem_usage", "subfolder"), _LOADING),
    **dict.fromkeys(("cache_dir", "local_files_only"), "the hub's own settings decide: HF_HOME, HF_HUB_OFFLINE"),
    # names that are known here, at functions that do not have them
    "prompt": "prompts are for engines of SD3, in generate and encode; a class-label model takes labels",
    "negative_prompt": "it belongs beside the prompt, in generate and encode",
    "max_sequence_length": "it belongs beside the prompt, in generate and encode",
    "num_images": "it belongs to generate; elsewhere give every label or prompt as often",
    "output": "it belongs to generate; a run has latents, and images",
    "image": "it belongs to generate; elsewhere give latents, which encode a picture",
    "strength": "it belongs to engines of SD3; elsewhere give a schedule that begins lower, and latents",
    **dict.fromkeys(("height", "width"), "the size is said where noise is drawn, in sample and generate"),
    "latents": "they belong to sample and generate, which draw",
}
# what to say of an option of the command line, where the name of the option is not all that differs
_FLAG = "write the rule: -g cfg:scale=4.5"
_WEAK_FLAG = "write the rule: -g 'cfg:scale=4.5 + slg:weight=2.8,layers=7-9,window=fraction:0.01,0.2'"
_PAG_FLAG = "write the rule: -g pag-image:weight=3,layers=7"
RULE_OPTIONS: dict[str, str] = {
    **dict.fromkeys(("guidance_scale", "cfg_scale", "cfg", "guider"), _FLAG),
    "guidance_rescale": "write the rule: -g 'cfg:scale=4.5 + rescale:phi=0.7'",
    **{name: _WEAK_FLAG for name, advice in ADVICE.items() if advice == _WEAK},
    **{name: _PAG_FLAG for name, advice in ADVICE.items() if advice == _PAG},
}
FURTHER_OPTIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("generator", "seed"), ("seeds", "seed")),
    "batch_size": ("max_batch", "batch"),
    "sigmas": ("schedule",),
    "timesteps": ("schedule",),
    "scheduler": ("solver", "schedule"),
    **dict.fromkeys(("output_dir", "outdir", "out_dir", "output_path"), ("out",)),
    **dict.fromkeys(("num_samples", "n_samples", "n_iter"), ("count", "samples")),
    **dict.fromkeys(("model_id", "ckpt", "checkpoint", "pretrained_model_name_or_path"), ("model",)),
}
ENGINES = ("EngineCore", "PipeCore", "PromptEngine")  # classes that users meet as Engine
F = TypeVar("F", bound=Callable[..., Any])


def refuses_unknown(options_of: Callable | None = None) -> Callable[[F], F]:
    """A decorator for public functions: an unknown keyword raises ``TypeError`` that says what it is called here.

    So does an argument that is missing or one too many, with those that the function takes.  ``options_of`` is the function to
    which the decorated one hands its further keywords.
    """

    def decorate(function: F) -> F:
        name, signature = public_name(function), inspect.signature(function)
        known = dict.fromkeys([*_keywords(function), *(_keywords(options_of) if options_of else ())])

        @functools.wraps(function)
        def checked(*args: Any, **keywords: Any) -> Any:
            for keyword in keywords:
                if keyword not in known:
                    said = advice(keyword, list(known)) or f"it takes {', '.join(known)}"
                    raise TypeError(f"{name}() takes no {keyword!r}: {said}")
            try:
                signature.bind(*args, **keywords)
            except TypeError as error:
                raise TypeError(f"{name}(): {error}; it takes {', '.join(known)}") from None
            return function(*args, **keywords)

        return cast(F, checked)

    return decorate


def public_name(function: Callable) -> str:
    """The name that users know a function by: methods of every kind of engine are those of ``Engine``."""
    owner, dot, name = getattr(function, "__qualname__", repr(function)).rpartition(".")
    return ("Engine" if owner in ENGINES else owner) + dot + name


def _keywords(function: Callable) -> list[str]:
    """The names that a function takes as keywords."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [name for name, parameter in inspect.signature(function).parameters.items() if parameter.kind in named]
    return [name for name in names if name not in ("self", "cls")]


def advice(keyword: str, known: list[str]) -> str:
    """What to say instead of ``keyword`` at a function that takes ``known``; nothing where nothing is known of it."""
    if keyword in RENAMED:
        ours, elsewhere = RENAMED[keyword]
        return f"it is called {ours} here" if ours in known else elsewhere
    if keyword in ADVICE:
        return ADVICE[keyword]
    return did_you_mean(keyword, known)


def option_hint(option: str, known: Sequence[Sequence[str]]) -> str:
    """What to say of an ``option`` that a command has not, of the names of those that it has; nothing if nothing is known.

    The names are groups of one option each, as ``("--guidance", "-g")``.
    """
    keyword, groups = option.lstrip("-").replace("-", "_"), {name: group for group in known for name in group}
    if keyword in RULE_OPTIONS and "--guidance" in groups:
        return RULE_OPTIONS[keyword]
    ours = FURTHER_OPTIONS.get(keyword) or (RENAMED[keyword][:1] if keyword in RENAMED else ())
    found = [groups[flag][0] for name in ours if (flag := f"--{name.replace('_', '-')}") in groups]
    if found:
        return f"it is called {' and '.join(dict.fromkeys(found))} here"
    return did_you_mean(option, [name for name in groups if name.startswith("--")])


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``did you mean 'steps'?``, or nothing where no word that is known is close."""
    close = difflib.get_close_matches(word, list(known), n=3)
    if not close:
        return ""
    best = max(close, key=lambda name: (difflib.SequenceMatcher(None, word, name).ratio(), sorted(name) == sorted(word)))
    return f"did you mean {best!r}?"
