"""Find out what a server reveals about a model, once, before anything depends on it."""

import logging
from collections.abc import Sequence
from typing import Any

from firstkd.errors import ConfigError
from firstkd.openai.client import RefusedError, UnreadableReplyError
from firstkd.openai.letters import letter_logprobs, letter_request
from firstkd.openai.prompt_scores import WAYS, Way, score_request, scores_in, text_of
from firstkd.openai.teacher import ServedModel

SERVER = "server.json"
"""File in the folder of a model behind a server that says what it is and gives."""
QUESTION = "Where does a fox live?\nA. in a den\nB. in a hive\nAnswer with the letter of an option."
TEXT = "A fox lives in a den."
UNKNOWN = (400, 404, 422, 501)
"""Statuses of servers that do not know the endpoint or one of its parameters."""

log = logging.getLogger(__name__)


def what_it_gives(served: ServedModel) -> dict[str, Any]:
    """Return what the server gives when the model is asked as its settings say.

    Raises ConfigError if the server has no such model or gives no such log-probabilities.
    """
    init = served.init
    check_listed(served)
    if init.ask == "letters":
        top = letters_given(served)
        gives: dict[str, Any] = {"letters": top}
        words = f"the {top} most probable tokens of an answer"
    else:
        way = way_given(served)
        gives = {"texts": way}
        words = f"log-probabilities for prompts ({way})"
    log.info("%s: %s returns %s", init.url, init.model, words)
    return gives


def check_listed(served: ServedModel) -> None:
    try:
        listed = [str(each["id"]) for each in served.get("models")["data"]]
    except RefusedError as error:
        if error.status in UNKNOWN:
            return  # it does not list its models
        raise
    except (KeyError, TypeError, UnreadableReplyError):
        return
    if listed and served.init.model not in listed:
        more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
        raise ConfigError(
            f"model: {served.init.url} has no {served.init.model!r}; it has "
            f"{', '.join(listed[:5])}{more}"
        )


def letters_given(served: ServedModel) -> int:
    """Return how many of the most probable tokens the server gives."""
    request = letter_request(served.init.model, [{"role": "user", "content": QUESTION}])
    try:
        reply = served.post("chat/completions", request)
        letter_logprobs(reply, ["A", "B"])
        return len(reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"])
    except RefusedError as error:
        if error.status not in UNKNOWN:
            raise
        found = f"{error}: {error.reason}"
    except (KeyError, TypeError, IndexError, ValueError, UnreadableReplyError):
        found = "its reply has none"
    raise ConfigError(
        f"{served.init.url} returns no log-probabilities for answers of {served.init.model!r} "
        f"({found}); enable them there, or choose another server"
    )


def way_given(served: ServedModel) -> Way:
    """Return how the server can be asked for log-probabilities of a prompt's tokens."""
    prompt = served.tokenizer([TEXT], add_special_tokens=False)["input_ids"][0]
    found = []
    for way in WAYS:
        try:
            reply = served.post("completions", score_request(served.init.model, [prompt], way, 1))
            scores_in(reply, [prompt], way, {})
            check_reading(served, prompt, text_of(reply, prompt, way))
            return way
        except RefusedError as error:
            if error.status not in UNKNOWN:
                raise
            found.append(f"{way}: {error}")
        except UnreadableReplyError:
            found.append(f"{way}: its reply has none")
    raise ConfigError(
        f"ask: texts: {served.init.url} returns no log-probabilities for prompts "
        f"({'; '.join(found)}); set it to letters, or choose a server such as vLLM or SGLang"
    )


def check_reading(served: ServedModel, prompt: Sequence[int], read: str | None) -> None:
    """Raise ConfigError if the server reads the ids of the local tokenizer as another text."""
    if read is None:
        log.warning(
            "%s does not say how it reads token ids; check that its tokenizer is that of models.%s",
            *(served.init.url, served.init.tokenizer),
        )
        return
    meant = "".join(served.tokenizer.decode([token]) for token in prompt[1:])
    # decoders of single tokens differ in the spaces that they keep
    if "".join(read.split()) != "".join(meant.split()):
        raise ConfigError(
            f"tokenizer: {served.init.url} reads the token ids of {meant!r} as {read!r}, so "
            f"{served.init.tokenizer!r} has a different tokenizer than {served.init.model!r}; name "
            "a model that has the same one, or set ask to letters"
        )
