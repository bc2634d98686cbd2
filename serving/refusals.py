"""Refusals: every error of a request as a status and one sentence, in the shape that OpenAI's clients read."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from segue.engine.argument_names import did_you_mean
from segue.engine.scheduling.errors import DeadlineError, QueueFullError, SchedulerClosedError

from .error_text import one_line

LONGEST_VALUE = 80  # characters of a value that a sentence shows
RETRY_SECONDS = 1
INVALID = "invalid_request_error"
OF_ROUTES = {  # what the framework refuses by itself
    400: "the body is no JSON that can be read",
    404: "there is nothing at this path",
    405: "there is another method for this path",
}
RENAMED = {  # what other image APIs call a field of ours
    "num_inference_steps": "steps",
    "num_images": "n",
    "guidance_scale": "guidance",
    "cfg_scale": "guidance",
    "scale": "guidance",
    "seeds": "seed",
    "labels": "prompt",
    "classes": "prompt",
    "height": "size",
    "width": "size",
    "sampler": "solver",
    "timeout": "deadline",
}


@dataclass(eq=False)
class Refusal(Exception):
    """Why a request is refused or failed: an HTTP status, a sentence, and the fields of OpenAI's error object."""

    status: int
    message: str
    type: str = INVALID
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """The error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.body(), self.status, headers=dict(self.headers))


def shown(value: object) -> str:
    """A value within a sentence, cut where it is long."""
    text = repr(value[: LONGEST_VALUE + 1] if isinstance(value, str | list) else value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def refusal_of(error: BaseException, known: Sequence[str] = ()) -> Refusal | None:
    """What to answer to an error, None where it is a fault of the server; ``known`` are the fields of a request."""
    again = {"Retry-After": str(RETRY_SECONDS)}
    match error:
        case Refusal():
            return error
        case RequestValidationError():
            return _of_fields(error.errors(), known)
        case QueueFullError():
            return Refusal(429, one_line(error), "rate_limit_error", code="queue_full", headers=again)
        case SchedulerClosedError():
            return closed()
        case DeadlineError():
            return Refusal(504, one_line(error), "timeout_error", code="deadline")
        case FloatingPointError():
            return Refusal(500, one_line(error), "server_error", code="not_finite")
        case HTTPException():
            return Refusal(error.status_code, OF_ROUTES.get(error.status_code, str(error.detail)), headers=error.headers or {})
    return None


@contextmanager
def checking() -> Iterator[None]:
    """What checks the input of a request: ``ValueError`` and ``TypeError``, here alone, are what the client got wrong."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise Refusal(400, one_line(error)) from error


def closed() -> Refusal:
    """What a request is told that comes while the server ends."""
    again = {"Retry-After": str(RETRY_SECONDS)}
    return Refusal(503, "the server is shutting down", "server_error", code="shutting_down", headers=again)


def fault() -> Refusal:
    """What a client is told of a fault of the server, whose traceback is in the log."""
    return Refusal(500, "the server failed on this request; its log says why", "server_error", code="internal")


def _of_fields(errors: Iterable[Any], known: Sequence[str]) -> Refusal:
    """The first thing that is wrong with the fields of a request."""
    first = next(iter(errors))
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    if first["type"] == "json_invalid":
        return Refusal(400, f"the body is not valid JSON: {first['ctx']['error']} at character {place[0]}", code="invalid_json")
    name, given = place[0] if place else "", first.get("input")
    if first["type"] == "extra_forbidden":
        near = RENAMED.get(name)
        hint = f"it is called {near} here" if near else did_you_mean(name, known)
        said = f"unknown field {shown(name)}" + (f"; {hint}" if hint else f"; known: {', '.join(known)}")
        return Refusal(400, said, param=name[:LONGEST_VALUE], code="unknown_field")
    if first["type"] == "missing":
        said = "the body is empty; send a JSON object" if not place else f"{name} is missing"
        return Refusal(400, said, param=place[0] if place else None)
    if not place:
        return Refusal(400, f"the body must be a JSON object, got {shown(given)}")
    said = first["msg"].removeprefix("Input ").removeprefix("String ")
    return Refusal(400, f"{name} {said}, got {shown(given)}", param=name)
