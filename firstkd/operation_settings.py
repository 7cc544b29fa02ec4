"""The settings of scheduled retraining, promotion and publishing, which no stage reads."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from firstkd.section import Positive, Section, Share, Weight


class PromoteSettings(Section):
    """What a challenger must show to become champion; drops and rises are against the champion.

    All of it is measured at the student's own temperature, as it is served.
    """

    max_ece: Share
    max_accuracy_drop: Share
    max_nll_increase: Weight
    max_brier_increase: Share
    max_aurc_increase: Share
    """Increase in the error rate averaged over all shares of questions answered, surest first."""
    max_out_of_domain_drop: Share
    """Drop in accuracy on each out-of-domain set."""
    min_share_of_teacher: Share
    """Share of the teacher's accuracy that a first champion must keep."""
    require_better_than_guessing: bool
    """Whether the interval of a first champion's accuracy must lie above guessing at random and
    always giving the most frequent answer."""
    max_risk: Annotated[float, Field(gt=0, le=1)]
    """Share of the paired bootstrap's resamples that may exceed a limit: 0.05 asks for proof."""
    min_coverage: Share
    """Share of the test questions that it must answer under serve.policy; 0 requires nothing."""
    max_export_drop: Share | None = None
    """Drop in accuracy of each measured export, relative to the student itself; null requires
    nothing."""
    bootstrap_samples: Annotated[int, Field(ge=100)]
    require_reproducible: bool
    """Whether a version needs a commit that rebuilds it: a git tree without uncommitted changes."""


class RetrainSettings(Section):
    stage_timeout_minutes: Positive
    """A stage that takes longer is stopped, along with everything it started."""
    stage_retries: Annotated[int, Field(ge=0)]
    """Retries of a stage that crashed or could not fetch its sources. An error that the stage
    itself reports would only recur."""
    retry_delay_seconds: Annotated[float, Field(ge=0)]
    stop_seconds: Annotated[float, Field(gt=0)]
    """Time from SIGTERM to SIGKILL for a stage that is stopped early, e.g. to save a checkpoint."""
    webhook: Annotated[str, Field(pattern=r"^https?://.+")] | None
    """Gets failures, promotions, rollbacks and drift alarms; $FIRSTKD_WEBHOOK takes precedence."""


class PublishSettings(Section):
    """What retraining makes available elsewhere."""

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
