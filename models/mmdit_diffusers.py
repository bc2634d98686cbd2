"""The MMDiT of a live diffusers ``SD3Transformer2DModel``: where its tensors lie, and sharing them instead of doubling them."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .checkpoint_files import model_name
from .mmdit import MMDiT
from .mmdit_spec import MMDiTSpec
from .unallocated import unallocated

# attribute of a hook that acts on one call of one thread, as a guider puts one there: to all others it is not there
OF_ONE_CALL = "_segue_of_one_call"
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_NAMES = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "context_embedder": "context_embedder",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
    "final_layer.linear": "proj_out",
}
_BLOCK_NAMES = {
    "x_block.adaLN_modulation.1": ("norm1.linear",),
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn.ln_q": ("attn.norm_q",),
    "x_block.attn.ln_k": ("attn.norm_k",),
    "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block.attn2.ln_q": ("attn2.norm_q",),
    "x_block.attn2.ln_k": ("attn2.norm_k",),
    "x_block.attn2.proj": ("attn2.to_out.0",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "context_block.adaLN_modulation.1": ("norm1_context.linear",),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "context_block.attn.ln_q": ("attn.norm_added_q",),
    "context_block.attn.ln_k": ("attn.norm_added_k",),
    "context_block.attn.proj": ("attn.to_add_out",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
}


def diffusers_sources(name: str) -> tuple[str, ...]:
    """Names in diffusers of the tensors that, joined along dimension 0, are the tensor ``name`` of :class:`MMDiT`."""
    if name == "pos_embed":
        return ("pos_embed.pos_embed",)
    stem, _, leaf = name.rpartition(".")
    part, _, rest = stem.partition(".")
    if part != "joint_blocks":
        return (f"{_NAMES[stem]}.{leaf}",)
    index, _, inner = rest.partition(".")
    return tuple(f"transformer_blocks.{index}.{key}.{leaf}" for key in _BLOCK_NAMES[inner])


def from_diffusers(module: nn.Module, share: bool = True, attached: bool = False) -> MMDiT:
    """The network of a live ``SD3Transformer2DModel``, on its device and in its dtype.

    With ``share`` no weight is held twice: QKV projections are packed, one after another, and the module's own parameters
    become views of the packed storage; everything else is shared as it is.  The module computes what it did before.
    Sharing again finds the packed storage and shares that.  ``attached`` and what is refused: see :func:`packing_obstacle`.
    """
    obstacle = packing_obstacle(module, attached=attached)
    if obstacle is not None:
        raise ValueError(f"this transformer cannot be packed: {obstacle}")
    model = _empty(module)
    held = _tensors(module)
    tensors = {}
    for name in model.state_dict():
        parts = [held[source] for source in diffusers_sources(name)]
        if not share:
            tensors[name] = torch.cat([part.data for part in parts])
        elif len(parts) == 1:
            tensors[name] = parts[0].detach()  # which counts writes to the parameter too
        else:
            tensors[name] = _pack(parts)
    model.load_state_dict(tensors, assign=True)
    return model.eval().requires_grad_(False)


def unshared(model: MMDiT, module: nn.Module) -> tuple[str, ...]:
    """The module's tensors that ``model`` no longer shares: moved, replaced or cast since :func:`from_diffusers`."""
    held, stale = _tensors(module), []
    for name, tensor in model.state_dict().items():
        sources = diffusers_sources(name)
        for source, part in zip(sources, tensor.chunk(len(sources)), strict=True):
            if source not in held or _place(held[source]) != _place(part):
                stale.append(source)
    return tuple(stale)


def with_parameters_of(model: MMDiT, module: nn.Module) -> MMDiT:
    """A ``model`` that :func:`from_diffusers` made, with the parameters of ``module`` themselves and its way to record."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin, held = copy.deepcopy(model, shared), _tensors(module)
    for name, _ in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        parts = [held[source] for source in diffusers_sources(name)]
        if not any(part.requires_grad for part in parts):
            continue
        # past the check for nn.Parameter: joined parts are no leaves of a graph
        twin.get_submodule(owner)._parameters[leaf] = parts[0] if len(parts) == 1 else torch.cat(parts)
    twin.gradient_checkpointing = module.gradient_checkpointing
    return twin


def packing_obstacle(module: nn.Module, model: MMDiT | None = None, attached: bool = False) -> str | None:
    """Why the weights of a transformer cannot be packed and shared, in one sentence; None if they can.

    Then its own modules must run: LoRA layers, quantised or offloaded linears, hooks, other attention processors.
    ``model``: an earlier network of the same configuration, to save the time of making an empty one.  ``attached``: whoever
    asks stands in the place of the module's forward, or goes around it, so a replacement of that one is no obstacle.
    """
    from diffusers import SD3Transformer2DModel
    from diffusers.models.attention_processor import JointAttnProcessor2_0

    if not isinstance(module, SD3Transformer2DModel):
        raise TypeError(f"an SD3Transformer2DModel is needed, got {type(module).__name__}")
    for name, part in module.named_modules():
        replaced = "forward" in vars(part) and not (attached and part is module)
        if replaced or has_hooks(part):
            return f"{name or 'the transformer'} has hooks or a replaced forward (offloading, casting, quantisation)"
    for name, processor in module.attn_processors.items():
        if type(processor) is not JointAttnProcessor2_0:
            return f"{name} is a {type(processor).__name__}"
    try:
        model = _empty(module) if model is None else model
    except ValueError as error:
        return str(error)
    sources = [source for name in model.state_dict() for source in diffusers_sources(name)]
    return _part_obstacle(module, sources) or _tensor_obstacle(_tensors(module), sources)


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has forward hooks, but those that are :data:`OF_ONE_CALL`."""
    if not (module._forward_hooks or module._forward_pre_hooks):
        return False
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return not all(getattr(hook, OF_ONE_CALL, False) for hook in hooks)


def _part_obstacle(module: nn.Module, sources: list[str]) -> str | None:
    """A module that holds one of the tensors and is not the plain one."""
    from diffusers.models.embeddings import PatchEmbed
    from diffusers.models.normalization import RMSNorm

    modules = dict(module.named_modules())
    for owner in dict.fromkeys(source.rpartition(".")[0] for source in sources):
        kind = type(modules.get(owner))
        if kind not in (nn.Linear, nn.Conv2d, RMSNorm, PatchEmbed):
            return f"{owner} is a {kind.__module__}.{kind.__qualname__}"
    return None


def _tensor_obstacle(held: Mapping[str, Tensor], sources: list[str]) -> str | None:
    """Tensors beyond or short of the network's own, or that are not plain tensors of one dtype on one device."""
    absent = [source for source in sources if source not in held]
    extra = sorted(held.keys() - set(sources))
    if absent or extra:
        return f"it has no {absent[0]}" if absent else f"it holds {extra[0]}, which the network does not have"
    for name in sources:
        tensor = held[name]
        if type(tensor.data) is not Tensor or tensor.dtype not in DTYPES or tensor.is_meta:
            return f"{name} is a {type(tensor.data).__name__} of {tensor.dtype} on {tensor.device}"
    kinds = {(tensor.dtype, tensor.device) for tensor in held.values() if isinstance(tensor, nn.Parameter)}
    if len(kinds) > 1:
        return f"its parameters have {len(kinds)} different dtypes or devices"
    return None


def diffusers_spec(module: nn.Module) -> MMDiTSpec:
    """The spec of a live ``SD3Transformer2DModel``."""
    path = module.config.get("_name_or_path")
    return MMDiTSpec.from_config(module.config, model_name(path) if path else type(module).__name__)


def _empty(module: nn.Module) -> MMDiT:
    """Our network for the module's configuration, on the meta device."""
    with unallocated():
        return MMDiT(diffusers_spec(module))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, the module's own."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


def _place(tensor: Tensor) -> tuple:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _pack(parts: list[Tensor]) -> Tensor:
    """Join equal parameters along dimension 0 in one storage and make each a view of its part.

    The originals are released before the next matrices are packed, so the overhead is one joint matrix.
    """
    first, size = parts[0].data, parts[0].shape[0]
    joint_shape = (len(parts) * size, *first.shape[1:])
    start, length = first.storage_offset(), first.numel()
    storage = first.untyped_storage()
    packed = all(
        part.untyped_storage().data_ptr() == storage.data_ptr()
        and part.storage_offset() == start + i * length
        and part.is_contiguous()
        for i, part in enumerate(parts)
    )
    if packed:
        return first.as_strided(joint_shape, first.stride(), start)
    joint = torch.empty(joint_shape, dtype=first.dtype, device=first.device)
    for part, view in zip(parts, joint.chunk(len(parts)), strict=True):
        view.copy_(part.data)
        part.data = view
    return joint
