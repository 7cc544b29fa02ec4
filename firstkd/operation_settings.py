"""The settings of scheduled retraining and of publishing its result, which no stage reads."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from firstkd.section import Positive, Section


class RetrainSettings(Section):
    stage_timeout_minutes: Positive
    """A stage that takes longer is ended, with everything it started."""
    stage_retries: Annotated[int, Field(ge=0)]
    """How often a stage is tried again that crashed, or could not fetch its sources. An error of
    the stage's own would only come again."""
    retry_delay_seconds: Annotated[float, Field(ge=0)]
    stop_seconds: Annotated[float, Field(gt=0)]
    """Between SIGTERM and SIGKILL for a stage that is ended early, e.g. to save a checkpoint."""
    webhook: Annotated[str, Field(pattern=r"^https?://.+")] | None
    """Gets a POST on failure and promotion; FIRSTKD_WEBHOOK in the environment takes precedence."""


class PublishSettings(Section):
    """What a retraining makes available elsewhere."""

    push: bool
    """Whether to `dvc push` to the default remote."""
    branch: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")] | None
    """A separate git branch that gets a commit of dvc.lock."""
    git_remote: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")] | None
    """Name of the git remote that this branch is pushed to; null to keep it here."""

    @model_validator(mode="after")
    def _a_remote_gets_a_branch(self) -> Self:
        if self.git_remote and not self.branch:
            raise ValueError("git_remote needs a branch to push; name one in publish.branch")
        return self
