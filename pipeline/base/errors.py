"""Errors a user can act on: each message says what was found, what was expected and what to do.

The exit status is part of the contract with CI: 1 a required budget or check fails, 2 the settings or the input are
wrong, 3 evidence is missing or undecided, 4 the environment is broken. `pipeline.base.guard` makes an error its status,
and a bug 70.
"""


def first_line(error: BaseException) -> str:
    """What another library's error says, without its further lines; its class where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


class PipelineError(Exception):
    """Something the user can mend; printed as one message, without a traceback."""

    exit_status = 1


class SettingsError(PipelineError):
    """params.yaml, a recipe or the command line says something impossible; lists every problem found."""

    exit_status = 2


class DataError(PipelineError):
    """The data set cannot be used as it is."""

    exit_status = 2


class ModelError(PipelineError):
    """A model folder is missing, unsafe or does not fit the data or the settings."""

    exit_status = 2


class IntegrityError(PipelineError):
    """A file is not what its card says: damaged, cut short, or made by something else."""

    exit_status = 4


class EnvironmentFault(PipelineError):  # noqa: N818 - EnvironmentError is a name of Python's own
    """The machine cannot do it: disk full, folder not writable, package missing, lock held by another run."""

    exit_status = 4


class TrainingError(PipelineError):
    """Training diverged, collapsed, or met a number that is not finite."""


class SignalError(PipelineError):
    """A layer gave no signal, so a loss that needs it would silently be zero."""


class ExportError(PipelineError):
    """A model could not be exported, or what was exported is not valid."""


class ParityError(PipelineError):
    """The artefact does not answer as the model it was made from."""


class NamesDifferError(ParityError):
    """The artefact has other input or output names than the model it was made from."""


class ShapesDifferError(ParityError):
    """The artefact gives other shapes than the model it was made from."""


class ValuesDifferError(ParityError):
    """The artefact gives other numbers than the model it was made from, beyond the tolerance."""


class UnusableRuntimeError(PipelineError):
    """A runtime cannot be used on this machine; the message is the reason, and the result is "not measured"."""

    exit_status = 3
