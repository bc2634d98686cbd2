"""The fields of a request: OpenAI's for images, and Segue's own."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

LONGEST_PROMPT, LONGEST_RULE, LONGEST_NAME = 4000, 1000, 200  # characters
MOST_PARTIAL = 32
LARGEST_SEED = (1 << 64) - 1

Text = Annotated[str, Field(max_length=LONGEST_PROMPT)]
Name = Annotated[str, Field(max_length=LONGEST_NAME)]


class PlanRequest(BaseModel):
    """What decides a plan: the model, the size, the rule and the steps."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: Name | None = None
    size: Name | None = Field(default=None, description="WIDTHxHEIGHT in pixels, or auto: the model's own.")
    guidance: Annotated[str, Field(max_length=LONGEST_RULE)] | None = Field(
        default=None, description="A rule as on the command line, such as cfg:scale=1.5, or none."
    )
    steps: Annotated[int, Field(ge=1)] | None = None
    solver: Name | None = None
    schedule: Name | None = None


class ImageRequest(PlanRequest):
    """A request for pictures; a field that is null is as one that is left out."""

    prompt: Text | Annotated[int, Field(ge=0)] = Field(
        description="A prompt; of a class-label model a class, by name or number."
    )
    n: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Pictures, of seeds that count up.")
    response_format: Name | None = Field(default=None, description="b64_json.")
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = Field(
        default=None, description="Quality of jpeg and webp."
    )
    quality: Literal["auto"] | None = None
    background: Literal["auto", "opaque"] | None = None
    user: Name | None = Field(default=None, description="Taken, and not used.")
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=MOST_PARTIAL)] | None = Field(
        default=None, description="Previews of a stream."
    )
    negative_prompt: Text | None = None
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] | None = Field(
        default=None, description="Of the first picture; else random."
    )
    deadline: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None, description="Seconds until it is given up."
    )
    progress: bool | None = Field(default=None, description="An event after every call of the network, in a stream.")
