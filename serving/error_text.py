"""What an error says, for a line of a table, a log or an answer."""


def one_line(error: BaseException) -> str:
    """Its message on one line; its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
