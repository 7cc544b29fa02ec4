"""Settings of serving: when a student answers, and when it does not."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from firstkd.section import Positive, RegisteredName, Section, Share, Weight

Seconds = Annotated[float, Field(gt=0)]
Open = Annotated[float, Field(gt=0, lt=1)]


class PolicySettings(Section):
    """The promise that a threshold on the confidence has to keep."""

    max_error: Open
    """Share of the answers given, at most, that may be wrong."""
    confidence: Open
    """Probability, over draws of the calibration questions, that the promise holds."""


class CostSettings(Section):
    """What a thousand questions cost, in a currency of your own."""

    student: Weight
    teacher: Weight


class OpenAISettings(Section):
    """Any server with OpenAI's chat completions, e.g. vLLM, SGLang, llama.cpp or Ollama.

    FIRSTKD_ESCALATION_KEY in the environment is its key, if it needs one.
    """

    kind: Literal["openai"]
    url: Annotated[str, Field(pattern=r"^https?://[^\s]+$")]
    """Up to and with its /v1."""
    model: Annotated[str, Field(min_length=1)]
    timeout_seconds: Seconds
    parallel: Positive
    """Questions under way there at once; what comes on top is not passed on."""
    registered: ClassVar[None] = None


class RegisteredSettings(Section):
    """Another model of the same registry, in this process."""

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
    """Rows of a file."""
    files: Positive
    """Kept; the oldest goes."""


class DriftSettings(Section):
    """The comparison of served questions with those that the version was calibrated on."""

    questions: Annotated[int, Field(ge=100)]
    """After which the comparison starts again."""
    false_alarms: Open
    """Share of such comparisons, at most, that raise an alarm although nothing has changed."""


class LimitSettings(Section):
    """What a server takes on; whatever exceeds it is refused at once."""

    body_bytes: Positive
    questions: Positive
    """Questions of a request, and of the batch that the student answers at a time."""
    choices: Annotated[int, Field(ge=2)]
    """Choices of a question."""
    waiting: Positive
    """Questions that wait to be answered."""
    seconds: Seconds
    """For a request from its first byte, and for those under way when the server is stopped."""


class ServeSettings(Section):
    policy: PolicySettings | None
    """From which evaluate finds each model's threshold, on its calibration questions."""
    abstain_below: Share | None
    """A threshold of your own, without a promise; goes with each version when it is registered."""

    cost: CostSettings | None
    """For the report: what it costs to pass questions on."""

    escalate: Annotated[OpenAISettings | RegisteredSettings, Field(discriminator="kind")] | None
    """Who answers what `firstkd serve` has its student abstain from."""
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
