"""Triton's interpreter without a third of its time: it replaces all functions of the language at every call of a helper.

A launch replaces them already, and restores them at its end.  Those of Triton's own modules, which reach the language by
another name, it replaces at the first call of any of their helpers and never restores: once is enough.
"""

from triton.runtime import interpreter


def replace_once() -> None:
    """From now on the first call alone of a helper of each module replaces the functions that the module sees."""
    replace = interpreter._patch_lang
    seen: set[str] = set()

    def call(self, *arguments, **options):
        if self.fn.__module__ not in seen:
            replace(self.fn)
            seen.add(self.fn.__module__)
        try:
            return self.rewrite()(*arguments, **options)
        except Exception as error:
            raise interpreter.InterpreterError(repr(error)) from error

    interpreter.InterpretedFunction.__call__ = call
