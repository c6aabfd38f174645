"""The errors a user can cause, each one line: what was got, what was expected, what to do."""

OK, SOME_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130  # exit codes of a command
SIGNALLED = 128  # plus the number of the signal that ended it


class UserError(Exception):
    """Something the user can mend. Printed as ``error: <thing>: <what> -> <fix>``, without a traceback.

    Args:
        thing: The key, file or job that is wrong, for example ``trainer.max_epochs`` or a path.
        what: What was got and what was expected.
        fix: What to do about it.
    """

    exit_code = BAD_INPUT

    def __init__(self, thing: str, what: str, fix: str) -> None:
        super().__init__(thing, what, fix)
        self.thing, self.what, self.fix = thing, what, fix

    def __str__(self) -> str:
        return " ".join(f"{self.thing}: {self.what} -> {self.fix}".split())


class ConfigError(UserError):
    """A key, choice, type or value of the config that cannot be; raised before any data is read."""


class DataError(UserError):
    """A dataset that cannot be used as it stands; raised before training starts."""


class WeightsError(UserError):
    """Weights that are missing, unreadable or do not fit the backbone."""


class TrainingError(UserError):
    """A run that must not be believed: a broken freeze, or a parameter that no gradient reaches."""

    exit_code = SOME_FAILED


class StorageError(UserError):
    """A file that could not be written because the disk is full."""

    exit_code = SOME_FAILED


class TrackingError(UserError):
    """Runs that could not be entered in a tracker."""

    exit_code = SOME_FAILED


class DivergedError(TrainingError):
    """The loss or the outputs became NaN or infinite: the run is listed as ``diverged`` and never ranked."""


class PrunedError(TrainingError):
    """The run is behind others of its search and ended early: it is listed as ``pruned``, which is no failure."""


def first_line(error: BaseException) -> str:
    """What another library's exception says, short enough to stand in one of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
