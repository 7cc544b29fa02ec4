"""Measure a model behind a server, which is asked each question once.

Its answers are kept in data/.evaluate/ until everything is measured; an interrupted run resumes
from there.
"""

import hashlib
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstkd.data.examples import Example, example_key
from firstkd.data.prompts import encode
from firstkd.data.settings import PromptSettings
from firstkd.files import sha256_of
from firstkd.settings import Settings
from firstkd.signals.asked import AskedTeacher
from firstkd.signals.capture import AskedCapture
from firstkd.signals.choices import Choices
from firstkd.signals.store import SignalStore
from firstkd.train.distributed import Ranks
from tasks.code import ASKING
from tasks.evaluation import write_evaluation
from tasks.layout import log_folder, model_folder
from tasks.partial import partial_folder
from tasks.scores import Scored
from tasks.served import opened
from tasks.usage import UsageLog

log = logging.getLogger(__name__)


def evaluate_served(root: Path, settings: Settings, name: str) -> None:
    """Raises as `opened` does, and DataValidationError as `write_evaluation` does."""
    made_from: list[Any] = [sha256_of(model_folder(root, name)), settings.prompt.model_dump()]
    made_from += [settings.capture.shard_examples]
    partial = partial_folder(root / "data/.evaluate", name, made_from, Ranks(), ASKING)
    with opened(root, settings, name, 1) as teacher:
        usage = UsageLog(log_folder(root, f"evaluate-{name}"), partial, teacher.served.init)
        signal = Choices(kind="choices", of=name)
        run = AskedCapture(signal, teacher.vocabulary_size, settings.capture, Ranks())
        after_shard = usage.adding(teacher.served)
        subject = Subject(name, settings.prompt, teacher, run, partial, after_shard)
        unknown: dict[str, Any] = {"parameters": None, "bytes": None, "open_text": {}}
        write_evaluation(root, subject, None, settings, unknown)
    log.info("%s: %s", name, usage.in_words())
    shutil.rmtree(partial)


@dataclass(frozen=True)
class Subject:
    name: str
    prompt: PromptSettings
    teacher: AskedTeacher
    run: AskedCapture
    partial: Path
    after_shard: Callable[[], None]

    def score(self, examples: Sequence[Example], title: str) -> Scored:
        """Score the choices of questions: ask the server, or read what it has answered already."""
        questions = encode(examples, self.teacher.served.tokenizer, self.prompt)
        keys = str([example_key(example) for example in examples])
        folder = self.partial / hashlib.sha256(keys.encode()).hexdigest()[:16]
        self.run.write(self.teacher, examples, questions, folder, self.after_shard, title)
        self.run.finish(folder, {})
        store = SignalStore(folder)
        decisions = self.run.signal.decisions(store.whole(), store.facts)
        return Scored.of(examples, decisions.top_logprobs, by_one_token=False)
