"""What can go wrong through no fault of the code.

Every message names the file, line or key, what was found, what was expected and what to do.
"""


class PipelineError(Exception):
    """A mistake in input, settings or environment: shown to people as one line, no traceback."""


class ConfigError(PipelineError):
    """A setting in params.yaml is unknown, missing, out of range or contradicts another."""


class SourceError(PipelineError):
    """A model or data source cannot be resolved, fetched or verified."""


class DataValidationError(PipelineError):
    """Examples are malformed or break an expectation."""


class ArtifactError(PipelineError):
    """A file of the pipeline is missing, damaged or belongs to something else."""


class TrainingDivergedError(PipelineError):
    """A loss or gradient stopped being finite."""


class OutOfMemoryError(PipelineError):
    """The memory of the host or the GPU does not suffice."""
