"""The negative prompt of a pipeline's call that runs without classifier-free guidance, and so has not encoded it."""

from typing import Any

from segue.models.mmdit import TextCondition

from .running_pipeline import argument_of_call, running_pipeline
from .transformer_call import SCALE, TransformerCall

ENCODERS = ("text_encoder", "text_encoder_2")


def negative_text(pipe: Any, call: TransformerCall) -> TextCondition:
    """``negative_prompt`` of the running call of ``pipe``, the empty prompt where it has none, B long.

    Encoded as the pipeline does above a ``guidance_scale`` of 1; ``negative_prompt_embeds`` are taken as they are.  Raises
    ``ValueError`` where no call is running, and without text encoders.
    """
    if running_pipeline()[0] is not pipe:
        raise ValueError(
            "NAG takes the negative prompt from the call of the attached pipeline, and none is running; "
            "give the transformer pairs of rows, as with guidance_scale > 1"
        )

    def given(name: str) -> Any:
        return argument_of_call(pipe, name)

    context, pooled = given("negative_prompt_embeds"), given("negative_pooled_prompt_embeds")
    if context is None or pooled is None:
        missing = [name for name in ENCODERS if getattr(pipe, name, None) is None]
        if missing:
            raise ValueError(
                f"NAG needs a negative prompt, and the pipeline has no {' and '.join(missing)} to encode it: pass "
                "negative_prompt_embeds and negative_pooled_prompt_embeds"
            )
        images = given("num_images_per_prompt") or 1
        _, context, _, pooled = pipe.encode_prompt(
            prompt=None,
            prompt_2=None,
            prompt_3=None,
            negative_prompt=given("negative_prompt"),
            negative_prompt_2=given("negative_prompt_2"),
            negative_prompt_3=given("negative_prompt_3"),
            do_classifier_free_guidance=True,
            prompt_embeds=call.part(call.context, "cond")[::images],  # which are not encoded again
            pooled_prompt_embeds=call.part(call.pooled, "cond")[::images],
            device=call.context.device,
            clip_skip=given("clip_skip"),
            num_images_per_prompt=images,
            max_sequence_length=given("max_sequence_length"),
            lora_scale=call.attention.get(SCALE),
        )
    positive = call.text("cond")
    context, pooled = context.to(positive.context), pooled.to(positive.pooled)
    if (context.shape, pooled.shape) != (positive.context.shape, positive.pooled.shape):
        raise ValueError(
            f"the negative prompt of NAG must have the shapes of the prompt, {list(positive.context.shape)} and "
            f"{list(positive.pooled.shape)}, got {list(context.shape)} and {list(pooled.shape)}"
        )
    return TextCondition(context, pooled)
