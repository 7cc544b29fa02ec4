"""The cells of the atlas: the plain recipe, and what each cell changes in it."""

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

PLAIN = "plain"
"""The student learns the teacher's choices, as they are."""
CHOICES = {"kind": "choice_kl", "from": "choices", "recalibrate": "none"}
GOLD = {"kind": "gold_choice"}
GOLD_TOKENS = {"kind": "gold", "weight": 0.5}
TOP_5 = {"kind": "top_k", "k": 5}


@dataclass(frozen=True)
class Cell:
    what: str
    """What is changed, for the table."""
    learn: dict[str, Any] = field(default_factory=dict)
    """Terms to add; `choices` replaces the plain one."""
    model: dict[str, Any] = field(default_factory=dict)
    """Model settings that differ."""
    ensemble: dict[str, Any] | None = None
    """Instead of a training: an ensemble of `evaluate.ensembles`."""


def instead(what: str, **settings: Any) -> Cell:
    """A cell with a different term on choices."""
    return Cell(what, {"choices": {**CHOICES, **settings}})


def beside(what: str, **settings: Any) -> Cell:
    """A cell with one more term."""
    return Cell(what, {"more": settings})


def on_states(kind: str, **settings: Any) -> Cell:
    shown = ", ".join(str(value) for value in settings.values())
    return beside(f"+ {kind} of states, {shown}", kind=kind, **{"from": "live_states", **settings})


def on_tokens(what: str, signal: str, **settings: Any) -> Cell:
    term = {"kind": "sparse_kl", "from": signal, "recalibrate": "none", **settings}
    return beside(what, weight={"from": 0.5, "to": 0}, **term)


def average(what: str, one: str, other: str) -> Cell:
    """A cell whose weights are the mean of those of two others."""
    init = {"kind": "average", "of": [one, other]}
    changed = {"init": init, "train": None, "learn": None}
    return Cell(f"{what}: weights averaged of `{one}` and `{other}`", model=changed)


GROUPS: dict[str, dict[str, Cell]] = {
    "plain": {PLAIN: Cell("choices of the teacher, as they are")},
    "the right choice": {
        "gold": beside("+ right choice", **GOLD),
        "gold_tokens": beside("+ tokens of the right response", **GOLD_TOKENS),
        "gold_both": Cell("+ right choice and its tokens", {"more": GOLD, "tokens": GOLD_TOKENS}),
        "smoothed": beside("+ right choice, smoothed", **GOLD, loss={"kind": "label_smoothing"}),
        "focal": beside("+ right choice, focal loss", **GOLD, loss={"kind": "focal", "gamma": 3.0}),
        "flsd": beside("+ right choice, FLSD-53", **GOLD, loss={"kind": "flsd"}),
        "adaptive_focal": beside("+ right choice, AdaFocal", kind="adaptive_focal", weight=0.5),
        "gold_share": instead("half of each target the answer", gold_share=0.5),
        "gold_alone": Cell("right choice alone", {"choices": GOLD}),
        "both_alone": Cell("right choice and its tokens alone", {
            "choices": GOLD, "tokens": GOLD_TOKENS}),
        "average": average("the default", "gold", "gold_alone"),
        "average_both": average("as the default", "gold_both", "both_alone"),
    },
    "the teacher's choices": {
        "hard": Cell("the teacher's answers as labels", {
            "choices": {"kind": "hard_choice", "from": "choices"}}),
        "reverse": instead("reverse KL", divergence={"kind": "reverse"}),
        "jsd": instead("Jensen–Shannon", divergence={"kind": "jsd"}),
        "skew": instead("skew KL", divergence={"kind": "skew"}),
        "student_at_2": instead("targets at the teacher's T, student at T = 2",
            student_temperature=2.0, recalibrate="temperature"),
        "tempered": instead("targets at the teacher's T", recalibrate="temperature"),
        "adaptive": instead("targets at a T each", recalibrate="adaptive_temperature"),
        "platt": instead("targets by Platt", recalibrate="platt"),
        "isotonic": instead("targets by isotonic regression", recalibrate="isotonic"),
        "curriculum": Cell("at a learned T (CTKD)", {
            "choices": {"kind": "curriculum_kl", "from": "choices", "recalibrate": "none"}}),
    },
    "the teacher's tokens": {
        "tokens": on_tokens("+ top-5 tokens", "tokens"),
        "renormalised": on_tokens("+ top-5 tokens, renormalised", "tokens", tail="renormalise"),
        "top_p": on_tokens("+ tokens of 0.9 of the mass", "top_p"),
        "draws": on_tokens("+ 12 draws", "draws"),
        "uncertain": on_tokens("+ top-5 at the least sure fifth", "tokens", share=0.2),
        "bandit": Cell("+ top-5 tokens or 12 draws, by a bandit",
            {name: on_tokens("", name).learn["more"] for name in ("tokens", "draws")},
            {"bandit": {"arms": ["tokens", "draws"]}}),
    },
    "states and relations": {
        "states": on_states("hidden", layers="last"),
        "states_3": on_states("hidden", layers="last", weight=3.0),
        "all_states": on_states("hidden", layers="uniform"),
        "states_mse": on_states("hidden", distance="mse"),
        "attention": on_states("attention", layers="last", heads=4),
        "distance": on_states("relation", form="distance"),
        "angle": on_states("relation", form="angle"),
        "similarity": on_states("relation", form="similarity"),
        "correlation": on_states("relation", form="correlation"),
        "gram": on_states("flow", form="gram"),
        "length": on_states("flow", form="length"),
        "adversarial": on_states("adversarial", weight=0.1),
    },
    "other teachers": {
        "live": instead("the teacher beside the training", **{"from": "live_choices"}),
        "two_teachers": instead("mean of two teachers", **{"from": "pooled"}),
        "spread": Cell("spread of two teachers", {
            "choices": {"kind": "dirichlet", "from": "ensemble", "recalibrate": "none"}}),
        "out_of_fold": instead("teachers that have not learned it", **{"from": "unseen"}),
        "unsolved": instead("of the base", **{"from": "base_choices"}),
        "solved": instead("of the base, shown 5 solved questions", **{"from": "solved_choices"}),
        "born_again": instead("of the plain student", **{"from": "of_plain"}),
        "mutual": Cell("of a twin that learns beside it", {
            "more": {"kind": "choice_kl", "from": "of_twin", "recalibrate": "none"}}),
    },
    "training": {
        "longer": Cell("twice the epochs", model={"train": "atlas_longer"}),
        "wsd": Cell("constant rate, then falling", model={"train": "atlas_wsd"}),
        "two_stages": Cell("labelled questions alone in the end", model={
            "train": "atlas_two_stages"}),
    },
    "several answers": {
        "again": Cell("in another order", model={"order": 1}),
        "deep": Cell("both orders' answers averaged", ensemble={
            "kind": "deep", "of": [PLAIN, "again"]}),
        "dropped": Cell("MC dropout, 10 draws", ensemble={
            "kind": "dropout", "of": PLAIN, "rate": 0.05, "draws": 10}),
        "doubted": Cell("Laplace, 20 draws", ensemble={
            "kind": "laplace", "of": PLAIN, "draws": 20}),
    },
}  # fmt: skip
"""By what they change; the key is the name of the model that a cell trains, or of the ensemble."""

CELLS = {name: cell for cells in GROUPS.values() for name, cell in cells.items()}

SIGNALS: dict[str, dict[str, Any]] = {
    "choices": {"kind": "choices", "of": "teacher"},
    "live_choices": {"kind": "choices", "of": "teacher", "live": True},
    "live_states": {"kind": "hidden_states", "of": "teacher"},
    "tokens": {"kind": "tokens", "of": "teacher", "select": TOP_5},
    "top_p": {"kind": "tokens", "of": "teacher", "select": {"kind": "top_p", "p": 0.9}},
    "draws": {"kind": "tokens", "of": "teacher", "select": {"kind": "sample", "draws": 12}},
    "base_choices": {"kind": "choices", "of": "base"},
    "solved_choices": {"kind": "choices", "of": "base", "view": {"shots": 5, "max_length": 640}},
    "other_choices": {"kind": "choices", "of": "other_teacher"},
    "pooled": {"kind": "mean", "of": ["choices", "other_choices"]},
    "ensemble": {"kind": "ensemble", "of": ["choices", "other_choices"]},
    "of_fold_0": {"kind": "choices", "of": "fold_0"},
    "of_fold_1": {"kind": "choices", "of": "fold_1"},
    "unseen": {"kind": "out_of_fold", "of": ["of_fold_0", "of_fold_1"]},
    "of_plain": {"kind": "choices", "of": PLAIN},
    "of_twin": {"kind": "choices", "of": "twin", "live": True},
    "of_mutual": {"kind": "choices", "of": "mutual", "live": True},
}


def with_cells(params: Any) -> Any:
    """Return params.yaml's settings with a model for each cell and the signals they learn from."""
    given, labelled = params["models"], labelled_data(params)
    models = {name: given[name] for name in ("base", "teacher", "start")}
    tuned = given["teacher"]
    models["other_teacher"] = {**deepcopy(tuned), "learn": {"gold": {}}}
    for fold in range(2):
        models[f"fold_{fold}"] = {**deepcopy(tuned), "leave_out": {"fold": fold, "of": 2}}
    student = {"init": {"kind": "copy", "of": "start"}, "train": "distill"}
    for name, cell in CELLS.items():
        learn = {"choices": CHOICES, **cell.learn}
        if cell.ensemble is None:
            models[name] = deepcopy({**student, "learn": learn, **cell.model})
    # unlike its twin, so that they have something to teach each other
    twin = {"choices": CHOICES, "gold": GOLD, "more": {**CHOICES, "from": "of_mutual"}}
    models["twin"] = deepcopy({**student, "learn": twin})
    params["models"], params["signals"] = models, deepcopy(SIGNALS)
    distill, wsd = params["train"]["distill"], {"kind": "wsd", "decay": 0.3}
    for name, changed in (
        ("atlas_longer", {"epochs": 2 * distill["epochs"]}), ("atlas_wsd", {"schedule": wsd}),
        ("atlas_two_stages", {"schedule": {**wsd, "data": labelled}}),
    ):  # fmt: skip
        params["train"][name] = deepcopy({**distill, **changed})
    ensembles = {name: cell.ensemble for name, cell in CELLS.items() if cell.ensemble is not None}
    params["evaluate"].update(models=[*CELLS], ensembles=ensembles)
    params["record"]["student"] = PLAIN
    return params


def labelled_data(params: Any) -> list[str]:
    """Names of the data sets whose answers are learned from."""
    datasets = params["fetch"]["datasets"].items()
    return [name for name, found in datasets if found["role"] in ("split", "train")]
