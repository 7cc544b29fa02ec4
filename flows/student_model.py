"""The registered student, as MLflow serves it: questions in, answers and calibrated confidence out.

MLflow keeps this file itself as the model's code ("models from code"), next to the student's
folder, its calibration and a copy of the package `firstkd`. Nothing is pickled.
"""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class Student(PythonModel):
    def load_context(self, context: PythonModelContext) -> None:
        from firstkd.answering import Answerer  # imports torch, which only a served model needs

        self._answerer = Answerer.load(
            Path(context.artifacts["student"]),
            Path(context.artifacts["calibration"]),
            context.model_config["abstain_below"],
        )

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: Any = None
    ) -> pd.DataFrame:
        """Answer each row's `question` with one of its `choices`.

        Without `choices` it uses those that all its calibration questions shared, or answers in its
        own words if it was calibrated on open text.

        `abstain` is true if the confidence is below the threshold of serve.policy or
        serve.abstain_below, as it was when the version was registered, or below the
        `abstain_below` set by whoever loads the model.

        Raises MlflowException naming the first row that cannot be answered; MLflow's server
        passes its text on to the client.
        """
        from firstkd.errors import PipelineError  # from the copy beside the model

        choices = model_input.get("choices", [None] * len(model_input))
        try:
            answers = self._answerer.answer(
                list(model_input["question"]), [_plain(listed) for listed in choices]
            )
        except PipelineError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        return pd.DataFrame(
            {
                "answer": [answer.answer for answer in answers],
                "confidence": [answer.confidence for answer in answers],
                "abstain": [answer.abstain for answer in answers],
            }
        )


def _plain(choices: Any) -> Any:
    """Return choices as passed, but with pandas' missing values as None and arrays as lists."""
    if pd.api.types.is_scalar(choices) and pd.isna(choices):
        return None
    return choices.tolist() if isinstance(choices, np.ndarray) else choices


mlflow.models.set_model(Student())
