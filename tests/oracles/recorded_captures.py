"""A capture without a device: the function of a step is remembered and called again in its replays."""

from segue.engine.running.graph import WARM_UP_STEPS, CapturedStep


class Recorder:
    """Captures by remembering the function; warms up like the real one."""

    def __init__(self, fail_at: int | None = None):
        self.captures, self.replays, self.fail_at = 0, 0, fail_at

    def __call__(self, function):
        for _ in range(WARM_UP_STEPS):
            function()
        self.captures += 1
        if self.captures == self.fail_at:
            raise RuntimeError("capture failed")

        def replay():
            self.replays += 1
            function()

        return CapturedStep(replay, 0)
