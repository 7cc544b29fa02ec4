"""The champion at work, as whoever loads it from the registry sees it."""

import mlflow
import pandas as pd

from firstkd.errors import ConfigError, PipelineError
from firstkd.settings import Settings
from flows.promotion import CHAMPION
from flows.registry import aliases
from flows.tracking import Tracking


def ask_champion(
    settings: Settings, tracking: Tracking, question: str, choices: list[str]
) -> tuple[str, str, float, bool]:
    """Return the champion's version, its answer, its confidence, and whether it abstains.

    The threshold is that of params.yaml now. Raises PipelineError when there is no champion.
    """
    if len(choices) < 2:
        raise ConfigError("name at least two possible answers, each with --choice")
    name = settings.record.registered_model
    version = aliases(tracking, name).get(CHAMPION)
    if version is None:
        raise PipelineError(f"{name} has no champion yet; run `firstkd run` first")
    with tracking.as_default():
        model = mlflow.pyfunc.load_model(
            f"models:/{name}/{version}", model_config=settings.serve.model_dump()
        )
    asked = pd.DataFrame({"question": [question], "choices": [choices]})
    answered = model.predict(asked).iloc[0]
    return version, answered["answer"], float(answered["confidence"]), bool(answered["abstain"])
