"""The teacher's own answers, for models that learn from them in place of right ones."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from firstkd.data.examples import Example, example_key
from firstkd.data.prompts import Question, encode
from firstkd.models.settings import ModelSettings
from firstkd.open_text.asking import open_questions
from firstkd.settings import Settings
from firstkd.signals.columns import TOKEN
from firstkd.signals.store import SignalStore
from tasks.layout import signal_folder


def as_said(
    root: Path,
    settings: Settings,
    models: Mapping[str, ModelSettings],
    examples: Sequence[Example],
    tokenizer: Any,
) -> list[Question]:
    """Tokenise the examples that models learn from.

    If they learn from their teacher's answers, these are the responses; an example without an
    answer has none. Raises as `encode` does, and ArtifactError for a store of other examples.
    """
    names = {name for model in models.values() for name in model.signals}
    own = [name for name in names if settings.signals[name].is_own_text]
    if not own:
        return encode(examples, tokenizer, settings.prompt)
    (name,) = own  # no other signal is learned with it
    store = SignalStore(signal_folder(root, name, "train"))
    keys, ids = [example_key(e) for e in examples], [e.id for e in examples]
    records = store.of_examples(store.positions(keys, ids))
    answers = records.columns[TOKEN].split(records.counts.tolist())
    longest = max(map(len, answers), default=0)
    asked = open_questions(examples, tokenizer, settings.prompt, longest)
    return [
        replace(question, responses=[answer.tolist()], gold=0) if len(answer) else question
        for question, answer in zip(asked, answers, strict=True)
    ]
