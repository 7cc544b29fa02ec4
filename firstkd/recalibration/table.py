"""All recalibrations by kind, and their JSON."""

from dataclasses import asdict
from typing import Any

from firstkd.errors import ArtifactError
from firstkd.recalibration.adaptive_temperature import AdaptiveTemperature
from firstkd.recalibration.base import Recalibration
from firstkd.recalibration.isotonic import Isotonic
from firstkd.recalibration.label_smoothing import LabelSmoothing
from firstkd.recalibration.none import Identity
from firstkd.recalibration.paper import Paper
from firstkd.recalibration.platt import Platt
from firstkd.recalibration.temperature import Temperature
from firstkd.recalibration.vocabulary_temperature import VocabularyTemperature

RECALIBRATIONS: dict[str, type[Recalibration]] = {
    "none": Identity,
    "temperature": Temperature,
    "adaptive_temperature": AdaptiveTemperature,
    "vocabulary_temperature": VocabularyTemperature,
    "paper": Paper,
    "label_smoothing": LabelSmoothing,
    "platt": Platt,
    "isotonic": Isotonic,
}


def to_json(recalibration: Recalibration) -> dict[str, Any]:
    return {"kind": recalibration.kind, **asdict(recalibration)}  # type: ignore[call-overload]


def from_json(value: dict[str, Any]) -> Recalibration:
    """Raises ArtifactError for a kind that does not exist."""
    parameters = {name: number for name, number in value.items() if name != "kind"}
    try:
        return RECALIBRATIONS[value["kind"]](**parameters)
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"data/calibrate: {value} is not a recalibration; run the calibrate stage again"
        ) from error
