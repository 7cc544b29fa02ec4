"""Trainings of the tiny model that adapt to calibration questions: a focal loss, and a bandit."""

from firstkd.data.prompts import Question
from firstkd.terms.adaptive_focal import AdaptiveFocal
from firstkd.terms.bandit_settings import Bandit
from firstkd.terms.exp3 import Exp3
from firstkd.terms.gold import Gold
from firstkd.terms.gold_choice import GoldChoice
from firstkd.train.player import Player
from firstkd.train.rounds import Rounds
from tests.firstkd.train.mutual import QUESTIONS
from tests.firstkd.train.trainings import trained

CALIBRATION = [
    Question(
        str(i),
        [4] * (i % 4) + [i % 7, 9],
        [[50 + (i + j) % 9, 60 + j] for j in range(2 + i % 2)],
        i % 2,
    )
    for i in range(21)
]
ROUNDS = Rounds(CALIBRATION, batch_size=4, batch_tokens=1000)


def adapting(kind=AdaptiveFocal):
    """Return what makes a player whose focal loss adapts and two of whose terms take turns."""
    learn = {
        "focal": kind(kind="adaptive_focal", rounds=4, bins=5),
        "choices": GoldChoice(kind="gold_choice"),
        "tokens": Gold(kind="gold"),
    }

    def player(model):
        beside = {name: term.modules(0, (0, 0)) for name, term in learn.items()}
        bandit = Exp3(Bandit(arms=("choices", "tokens"), rounds=6), seed=1)
        return Player(model, learn, {}, beside, bandit=bandit)

    return player


def training(tiny_model, folder, checkpoints=None, kind=AdaptiveFocal, **changes):
    settings = {"questions": QUESTIONS, "learning_rate": 1e-3, "epochs": 3, **changes}
    return trained(
        tiny_model, folder, checkpoints, player=adapting(kind), rounds=ROUNDS, **settings
    )
