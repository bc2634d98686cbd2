"""A sample whose file cannot be read when its turn comes: one sentence that names it, in whichever process it was read."""


class UnreadableSample(ValueError):
    """Raised by :meth:`~.source.Source.batch` with one sentence that names the file.

    A worker of a ``DataLoader`` hands exceptions on as their class and their whole traceback as text; of that the sentence is
    kept.
    """

    def __init__(self, message: object):
        super().__init__(str(message).rsplit(f"{UnreadableSample.__name__}: ", 1)[-1].strip())
