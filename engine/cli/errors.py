"""Exit codes of the command line: 0 done, 2 bad input in one sentence, 130 interrupted, 1 anything else."""

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from ..argument_names import option_hint

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
TRACEBACK_VARIABLE = "SEGUE_TRACEBACK"
_UsageError = typer.BadParameter.__base__  # typer has no public name for it


def fail(message: object, code: int) -> NoReturn:
    """End with ``message`` as one line on stderr."""
    print(f"segue: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(code)


def _value_given(error: Exception, arguments: Sequence[str]) -> str:
    """The text given for the option that a usage error is about: typer's own messages often leave it out."""
    names = getattr(getattr(error, "param", None), "opts", ())
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        given = value if equals else following
        if name in names and given not in str(error):
            return f", got {given!r}"
    return ""


def _unknown_option(error: Exception) -> str:
    """The refusal of an option that the command has not, with what it is called here; empty for any other error."""
    option, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
    if option is None or context is None:
        return ""
    known = [[*parameter.opts, *parameter.secondary_opts] for parameter in context.command.params]
    hint = option_hint(option, known)
    return f"No such option: {option}" + (f"; {hint}" if hint else f"; {context.command_path} --help lists them")


class CommandGroup(TyperGroup):
    """A command group whose refusals are one sentence on stderr.

    Validation raises ``ValueError`` or ``OSError`` throughout this package: those are bad input.  A non-finite result
    (``FloatingPointError``) is one sentence too, with code 1.  Everything else is a fault and shows its traceback; with
    ``SEGUE_TRACEBACK=1`` in the environment, refusals do as well.
    """

    def main(self, args: Sequence[str] | None = None, *others: Any, standalone_mode: bool = True, **extra: Any) -> NoReturn:
        arguments = list(sys.argv[1:] if args is None else args)
        try:
            code = super().main(arguments or ["--help"], *others, standalone_mode=False, **extra)
        except _UsageError as error:
            fail(_unknown_option(error) or f"{error.format_message()}{_value_given(error, arguments)}", BAD_INPUT)
        except (KeyboardInterrupt, typer.Abort):
            code = INTERRUPTED
        except (ValueError, OSError, FloatingPointError) as error:
            if os.environ.get(TRACEBACK_VARIABLE):
                raise
            fail(error, FAILED if isinstance(error, FloatingPointError) else BAD_INPUT)
        if code == INTERRUPTED:
            fail("interrupted", INTERRUPTED)
        sys.exit(code if isinstance(code, int) else DONE)
