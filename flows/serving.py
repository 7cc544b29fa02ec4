"""The champion at work: its weights and calibration from the registry, in this program's code.

What a registered model brings as code is not run here; `mlflow models serve` does.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from firstkd.errors import ConfigError, PipelineError
from firstkd.settings import Settings
from flows.promotion import CHAMPION
from flows.registry import aliases, download_student
from flows.tracking import Tracking


def ask_champion(
    settings: Settings, tracking: Tracking, question: str, choices: list[str]
) -> tuple[str, str, float, bool]:
    """Return the champion's version, its answer, its confidence, and whether it abstains.

    Without choices, those count that its calibration questions shared. The threshold is that of
    params.yaml now. Raises PipelineError when there is no champion.
    """
    if len(choices) == 1:
        raise ConfigError("name at least two possible answers, each with --choice")
    name = settings.record.registered_model
    number = aliases(tracking, name).get(CHAMPION)
    if number is None:
        raise PipelineError(f"{name} has no champion yet; run `firstkd run` first")
    from firstkd.answering import Answerer  # brings torch

    version = tracking.client.get_model_version(name, number)
    with TemporaryDirectory() as scratch:
        files = download_student(tracking, version, Path(scratch))
        answerer = Answerer.load(files.weights, files.calibration, settings.serve.abstain_below)
        [found] = answerer.answer([question], [choices or None])
    return number, found.answer, found.confidence, found.abstain
