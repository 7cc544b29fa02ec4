"""A model behind someone else's server: none of it is here, and only its signals can be read."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from firstkd.models.init.base import Given, Init
from firstkd.section import Name, Positive, Section, ServerUrl, Weight

if TYPE_CHECKING:
    from firstkd.signals.base import Signal


class PriceSettings(Section):
    """What a million tokens cost, in any currency."""

    prompt: Weight
    response: Weight


class ServerInit(Init):
    """A model on any server with OpenAI's interface, e.g. vLLM, SGLang, llama.cpp or a hosted one.

    url, model and fingerprint determine its answers; the other settings say how it is asked.
    """

    kind: Literal["server"]
    is_served: ClassVar[bool] = True
    origin: ClassVar[str] = "tokenizer"

    url: ServerUrl
    model: Annotated[str, Field(min_length=1)]
    """The model's name on the server."""
    fingerprint: Annotated[str, Field(min_length=1)]
    """What you know about its weights, such as a revision or a date, since a server does not say:
    change it when they change, and everything is asked again."""
    tokenizer: Name
    """A local model with the server's tokenizer; for letters, any will do."""
    ask: Literal["letters", "texts"]
    """`letters`: chat completions return the letter of a choice, on every server. `texts`: the
    server scores choices and right answers verbatim, which needs log-probabilities of prompts."""
    key: str = "FIRSTKD_TEACHER_KEY"
    """Environment variable that holds the server's key, if it needs one."""
    parallel: Positive = 16
    """Requests in flight at once."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    retries: Annotated[int, Field(ge=0)] = 6
    """Further attempts at a request if the server is too busy or does not answer."""
    price: PriceSettings | None = None

    @field_validator("key")
    @classmethod
    def _key_is_a_name(cls, key: str) -> str:
        if not (key.isidentifier() and key == key.upper()):  # it may be a key: do not repeat it
            raise ValueError(
                "not the name of an environment variable (capitals, digits, underscores); the key "
                "itself belongs in that variable and nowhere else"
            )
        return key

    @property
    def models(self) -> tuple[str, ...]:
        return (self.tokenizer,)

    def cannot_show(self, signal: "Signal") -> str | None:
        if signal.is_live:
            return "is behind a server and cannot run during training; store its signal instead"
        if signal.decides == "state":
            return "is behind a server, which does not expose hidden states"
        if signal.has_token_ids and self.ask == "letters" and not signal.is_own_text:
            return "is asked for letters only; set its `ask` to texts"
        if signal.has_token_ids and signal.keeps_tails:
            return "is behind a server, which reveals nothing about the tail; set tail_nodes to 0"
        return None

    def make(self, folder: Path, given: Given) -> None:
        """Write what the server offers, and the tokenizer for encoding questions.

        Raises ConfigError, SourceError or UnreachableError if it does not offer what `ask` needs.
        """
        from firstkd.files import write_json
        from firstkd.models.folders import load_tokenizer
        from firstkd.openai.gifts import SERVER, what_it_gives
        from firstkd.openai.teacher import ServedModel

        tokenizer = load_tokenizer(given.models[self.tokenizer])
        tokenizer.save_pretrained(folder)
        with ServedModel(self, tokenizer) as served:
            gives = what_it_gives(served)
        identity = {"url": self.url, "model": self.model, "fingerprint": self.fingerprint}
        write_json(folder / SERVER, {**identity, "ask": self.ask, "gives": gives})
