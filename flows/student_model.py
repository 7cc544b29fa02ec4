"""The registered student, as MLflow serves it: questions in, answers and calibrated confidence out.

MLflow keeps this file itself as the model's code ("models from code"), next to the student's
folder, its calibration and a copy of the package `firstkd`. Nothing is pickled.
"""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class Student(PythonModel):
    def load_context(self, context: PythonModelContext) -> None:
        from firstkd.answering import Answerer  # brings torch, which only a served model needs

        self._answerer = Answerer.load(
            Path(context.artifacts["student"]),
            Path(context.artifacts["calibration"]),
            context.model_config["abstain_below"],
        )

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: Any = None
    ) -> pd.DataFrame:
        """Answer each row's `question` with one of its `choices`.

        Without `choices`, those count that all questions of the student's calibration shared.

        `abstain` is true where the confidence is below serve.abstain_below of params.yaml, as it
        was when the version was registered, or as whoever loads the model sets it.
        """
        answers = self._answerer.answer(
            [str(question) for question in model_input["question"]],
            [
                None if choices is None else list(choices)
                for choices in model_input.get("choices", [None] * len(model_input))
            ],
        )
        return pd.DataFrame(
            {
                "answer": [answer.answer for answer in answers],
                "confidence": [answer.confidence for answer in answers],
                "abstain": [answer.abstain for answer in answers],
            }
        )


mlflow.models.set_model(Student())
