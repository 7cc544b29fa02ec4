"""What can go wrong through no fault of the code.

Every message names the file, line or key, what was found, what was expected and what to do.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class PipelineError(Exception):
    """A mistake in input, settings or environment, shown as one line without a traceback."""

    exit_code: ClassVar[int] = 2
    """Exit code of a stage that ends with this error; a crash exits with 1 or a signal."""


class ConfigError(PipelineError):
    """A setting in params.yaml is unknown, missing, out of range or contradicts another."""


class SourceError(PipelineError):
    """A model or data source cannot be resolved, fetched or verified."""


class UnreachableError(SourceError):
    """A hub or package index does not answer, or refuses."""

    exit_code = 3  # the next attempt may succeed


class DataValidationError(PipelineError):
    """Examples are malformed or break an expectation."""


class ArtifactError(PipelineError):
    """A file of the pipeline is missing, damaged or belongs to something else."""


class TrainingDivergedError(PipelineError):
    """A loss or gradient stopped being finite."""


class OutOfMemoryError(PipelineError):
    """The host or the GPU has too little memory."""


@contextmanager
def about(key: str) -> Iterator[None]:
    """Prefix the message of a PipelineError from the body with the key that it concerns."""
    try:
        yield
    except PipelineError as error:
        raise type(error)(f"{key}: {error}") from error
