"""Serving settings: when a student answers, and when it does not."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from firstkd.section import Positive, RegisteredName, Section, ServerUrl, Share, Weight

Seconds = Annotated[float, Field(gt=0)]
Open = Annotated[float, Field(gt=0, lt=1)]


class PolicySettings(Section):
    """The promise that a confidence threshold must keep."""

    max_error: Open
    """Largest share of the answers given that may be wrong."""
    confidence: Open
    """Probability, over draws of the calibration questions, that the promise holds."""


class CostSettings(Section):
    """What a thousand questions cost, in any currency."""

    student: Weight
    teacher: Weight


class OpenAISettings(Section):
    """Any server with OpenAI's chat completions, e.g. vLLM, SGLang, llama.cpp or Ollama.

    Its key, if it needs one, is FIRSTKD_ESCALATION_KEY in the environment.
    """

    kind: Literal["openai"]
    url: ServerUrl
    model: Annotated[str, Field(min_length=1)]
    timeout_seconds: Seconds
    parallel: Positive
    """Maximum concurrent questions there; any beyond that are not passed on."""
    registered: ClassVar[None] = None


class RegisteredSettings(Section):
    """Another model from the same registry, in this process."""

    kind: Literal["registered"]
    model: RegisteredName
    version: Annotated[str, Field(min_length=1)]
    """Number or alias."""
    timeout_seconds: Seconds
    parallel: Positive

    @property
    def registered(self) -> tuple[str, str]:
        """The model and version to load."""
        return self.model, self.version


Text = Literal["question", "choices", "answer", "guess"]


class TrafficSettings(Section):
    """What `firstkd serve` keeps of its traffic, in logs/traffic."""

    drop: list[Text]
    """Fields that are not written."""
    hash: list[Text]
    """Fields that are hashed before they are written."""
    rows: Positive
    """Rows per file."""
    files: Positive
    """Files to keep; older ones are deleted."""


class DriftSettings(Section):
    """The comparison of served questions with those the version was calibrated on."""

    questions: Annotated[int, Field(ge=100)]
    """Questions after which the comparison starts again."""
    false_alarms: Open
    """Largest share of comparisons that raise an alarm although nothing has changed."""


class LimitSettings(Section):
    """What a server accepts; it refuses anything beyond at once."""

    body_bytes: Positive
    questions: Positive
    """Maximum questions in a request, and in a batch that the student answers at a time."""
    choices: Annotated[int, Field(ge=2)]
    """Maximum choices of a question."""
    waiting: Positive
    """Maximum questions waiting to be answered."""
    seconds: Seconds
    """Time for a request from its first byte, and for those under way when the server stops."""


class ServeSettings(Section):
    policy: PolicySettings | None
    """Promise from which evaluate computes each model's threshold, on its calibration questions."""
    abstain_below: Share | None
    """Your own threshold, without a promise; it is registered with each version."""

    cost: CostSettings | None
    """For the report: what it costs to pass questions on."""

    escalate: Annotated[OpenAISettings | RegisteredSettings, Field(discriminator="kind")] | None
    """Who answers the questions that the student of `firstkd serve` abstains from."""
    traffic: TrafficSettings | None
    """Null to log nothing."""
    drift: DriftSettings | None
    """Null to compare nothing."""
    limits: LimitSettings

    @model_validator(mode="after")
    def _one_threshold(self) -> Self:
        if self.policy is not None and self.abstain_below is not None:
            raise ValueError(
                f"policy and abstain_below ({self.abstain_below:g}) both set the threshold; "
                "set one of them to null"
            )
        return self
