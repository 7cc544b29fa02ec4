"""Which settings of models and signals are refused, and the order of those that are not."""

import json
from typing import Any

import pytest
from ruamel.yaml import YAML

from firstkd.errors import ConfigError
from firstkd.lineage import Lineage, Node
from firstkd.settings import Settings, load_settings
from tests.tiny import REPOSITORY

KL = {"kind": "choice_kl", "from": "choices"}
SOURCE = {"kind": "source", "source": "path:sources/other"}


def with_params(tmp_path: Any, changes: dict[str, Any]) -> Settings:
    """Load the shipped settings, and a signal of tokens, with some keys, given in dots, set."""
    yaml = YAML()
    params = yaml.load(REPOSITORY / "params.yaml")
    params["signals"]["tokens"] = {
        "kind": "tokens",
        "of": "teacher",
        "select": {"kind": "top_k", "k": 5},
    }
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        section = params
        for key in path:
            section = section[key]
        section[last] = json.loads(json.dumps(value))  # no anchors, where a value is used twice
    yaml.dump(params, tmp_path / "params.yaml")
    return load_settings(tmp_path / "params.yaml")


FOLDS = {
    "models.second": {
        "init": {"kind": "copy", "of": "base"},
        "train": "finetune",
        "learn": {"gold": {}},
        "leave_out": {"fold": 1, "of": 2},
    },
    "models.teacher.leave_out": {"fold": 0, "of": 2},
    "signals.others": {"kind": "choices", "of": "second"},
    "signals.unseen": {"kind": "out_of_fold", "of": ["choices", "others"]},
}
"""Two teachers, each asked of what it has not learned."""


MUTUAL = {
    f"models.{name}": {
        "init": {"kind": "copy", "of": start},
        "train": "distill",
        "learn": {"gold": {}, "other": {**KL, "from": f"of_{other}", "recalibrate": "none"}},
    }
    for name, start, other in (("left", "start", "right"), ("right", "teacher", "left"))
} | {
    f"signals.of_{name}": {"kind": "choices", "of": name, "live": True}
    for name in ("left", "right")
}
"""Two models that learn from one another."""


ESCALATE = {"kind": "openai", "model": "large", "timeout_seconds": 5, "parallel": 4}
SERVED = {
    "kind": "server",
    "url": "http://127.0.0.1:8000/v1",
    "model": "large",
    "fingerprint": "1",
    "tokenizer": "base",
    "ask": "letters",
}


ON_POLICY = {"share": 0.5, "max_new_tokens": 32}
WRITING: dict[str, Any] = {
    "signals.live_tokens": {
        "kind": "tokens",
        "of": "teacher",
        "select": {"kind": "top_k", "k": 20},
        "live": True,
    },
    "models.first.on_policy": ON_POLICY,
    "models.first.learn": {
        "tokens": {"kind": "sparse_kl", "from": "live_tokens", "recalibrate": "none"},
        "right": {"kind": "gold_choice"},
    },
}
"""A student that also learns on what it writes itself."""


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a difference of a signal of choices": (
        {"models.first.keep": {"of": "tokens", "less": "choices", "share": 0.5}},
        r"models.first.keep.less: signals.choices does not store the probability of each answer's",
    ),
    "a difference of nothing": (
        {"models.first.keep": {"of": "tokens", "less": "tokens", "share": 0.5}},
        r"models.first.keep.less: 'tokens' is also `of`, so there is no difference",
    ),
    "a difference of a signal that is not there": (
        {"models.first.keep": {"of": "tokens", "less": "of_base", "share": 0.5}},
        r"models.first.keep: there is no 'of_base' among signals",
    ),
    "a choice of data without learning": (
        {"models.start.keep": {"of": "tokens", "less": "choices", "share": 0.5}},
        r"models.start: keep without learn: it learns nothing, so there is nothing to choose",
    ),
    "a right answer to what a student writes itself": (
        {**WRITING, "models.first.learn.gold": {"kind": "gold"}},
        r"models.first.learn.gold: gold needs each question's response in advance, but with "
        r"on_policy the student writes its own; learn from a signal with live: true",
    ),
    "what is stored of text that a student writes itself": (
        {**WRITING, "signals.live_tokens.live": False},
        r"models.first.learn.tokens: sparse_kl needs each question's response in advance",
    ),
    "text that nobody looks at": (
        {
            "models.first.on_policy": ON_POLICY,
            "models.first.learn": {"right": {"kind": "gold_choice"}},
        },
        r"models.first.on_policy: no term learns from what it writes; learn from tokens, live",
    ),
    "own text without learning": (
        {"models.start.on_policy": ON_POLICY},
        r"models.start: on_policy without learn: it would write but learn nothing",
    ),
    "own text that is too long": (
        {**WRITING, "models.first.on_policy": {"max_new_tokens": 129}},
        r"models.first.on_policy.max_new_tokens: 129 leaves too little of prompt.max_length = 256",
    ),
    "turns of a term that is not there": (
        {"models.first.bandit": {"arms": ["choices", "tokens"]}},
        r"models.first.bandit: arms: tokens is not a term of learn; allowed: ",
    ),
    "turns of a term with itself": (
        {"models.first.bandit": {"arms": ["choices", "choices"]}},
        r"models.first.bandit: arms: choices, choices names a term twice; name each once",
    ),
    "turns without learning": (
        {"models.start.bandit": {"arms": ["choices", "tokens"]}},
        r"models.start: bandit without learn: it has no terms that could take turns",
    ),
    "turns of two that learn together": (
        {**MUTUAL, "models.left.bandit": {"arms": ["gold", "other"]}},
        r"models.left.bandit: left, right learn from one another, so a change in",
    ),
    "own text of two that learn together": (
        {
            **MUTUAL,
            "models.left.on_policy": ON_POLICY,
            "signals.live_tokens": WRITING["signals.live_tokens"],
            "models.left.learn": {
                "tokens": WRITING["models.first.learn"]["tokens"],
                "other": {**KL, "from": "of_right", "recalibrate": "none"},
            },
        },
        r"models.left.on_policy: left, right learn from one another on the same text",
    ),
    "tokens of a server that is asked for letters": (
        {"models.served": {"init": SERVED}, "signals.tokens.of": "served"},
        r"signals.tokens.of: 'served' is asked for letters only; set its `ask` to texts",
    ),
    "tails of a server": (
        {
            "models.served": {"init": {**SERVED, "ask": "texts"}},
            "signals.tokens.of": "served",
            "signals.tokens.tail_nodes": 8,
        },
        r"signals.tokens.of: 'served' is behind a server, .* set tail_nodes to 0",
    ),
    "a live signal of a server": (
        {
            "models.served": {"init": SERVED},
            "signals.choices": {"kind": "choices", "of": "served", "live": True},
        },
        r"signals.choices.of: 'served' is behind a server and cannot run during training",
    ),
    "a student cut from a server": (
        {"models.served": {"init": SERVED}, "models.start.init.of": "served"},
        r"models.start.init.of: 'served' is behind a server, "
        r"and no other model can be made from it",
    ),
    "an export of a server": (
        {
            "models.served": {"init": SERVED},
            "evaluate.models": ["first", "served"],
            "exports": {
                "llama": {"kind": "gguf", "of": "served", "weights": "f16", "license": "MIT"}
            },
        },
        r"exports.llama.of: 'served' is behind a server: there is nothing to export",
    ),
    "a server's tokenizer that is not there": (
        {"models.served": {"init": {**SERVED, "tokenizer": "other"}}},
        r"models.served.init.tokenizer: there is no 'other' among models",
    ),
    "a key in the settings": (
        {"models.served": {"init": {**SERVED, "key": "sk-secret"}}},
        r"models.served.init.key: not the name of an environment variable (?!.*sk-secret)",
    ),
    "a password in the settings": (
        {"models.served": {"init": {**SERVED, "url": "http://me:secret@localhost/v1"}}},
        r"models.served.init.url: contains a user name or password(?!.*secret)",
    ),
    "a password in the address that questions are passed on to": (
        {"serve.escalate": {**ESCALATE, "url": "http://me:secret@localhost/v1"}},
        r"serve.escalate.url: contains a user name or password(?!.*secret)",
    ),
    "a model that is its own origin": (
        {"models.first.init": {"kind": "copy", "of": "first"}},
        r"a cycle: models.first → models.first; one of them must come first",
    ),
    "a cycle of starts": (
        {"models.base.init": {"kind": "copy", "of": "start"}},
        r"a cycle: models.base → models.start → models.teacher → models.base; ",
    ),
    "a teacher that learns from its student": (
        {"signals.choices.of": "first"},
        r"a cycle: .*models.first.*signals.choices.*; one of them must come first",
    ),
    "a model that learns from itself": (
        MUTUAL | {"models.left.learn.other.from": "of_left"},
        r"a cycle: models.left → signals.of_left → models.left; one of them must come first",
    ),
    "models that learn from one another's stored signals": (
        MUTUAL | {"signals.of_left.live": False},
        r"a cycle: .*signals.of_left.*; one of them must come first",
    ),
    "mutual learning from a start that has learned already": (
        MUTUAL | {"models.left.init.of": "right"},
        r"a cycle: models.\w+ → models.\w+.*; one of them must come first",
    ),
    "mutual learning with a stored signal between": (
        MUTUAL
        | {
            "signals.later": {"kind": "choices", "of": "left"},
            "models.right.learn.more": {**KL, "from": "later"},
        },
        r"a cycle: .*signals.later.*; one of them must come first",
    ),
    "mutual learning by two sections of train": (
        MUTUAL | {"models.right.train": "finetune"},
        r"models.left.train: differs from models.right's, but the two are trained together ",
    ),
    "mutual learning of two models that are the same": (
        MUTUAL | {"models.right.init.of": "start"},
        r"models.left: starts and learns just like models.right, .*so both stay identical",
    ),
    "a mean of itself": (
        {"signals.pooled": {"kind": "mean", "of": ["choices", "pooled"]}},
        r"a cycle: signals.pooled → signals.pooled; ",
    ),
    "a teacher that has learned the fold that it is asked of": (
        FOLDS | {"models.second.leave_out": {"fold": 0, "of": 2}},
        r"signals.unseen: of: 'others' stands for fold 1, so its teacher must not learn from it: "
        r"set models.second.leave_out to \{ fold: 1, of: 2 \}",
    ),
    "a teacher that has learned all folds": (
        FOLDS | {"models.teacher.leave_out": None},
        r"signals.unseen: of: 'choices' stands for fold 0, .*set models.teacher.leave_out to "
        r"\{ fold: 0, of: 2 \}",
    ),
    "a fold beyond the last": (
        {"models.teacher.leave_out": {"fold": 2, "of": 2}},
        r"models.teacher.leave_out: fold: 2 is out of range; with of: 2, set 0 to 1",
    ),
    "a source that leaves something out": (
        {"models.base.leave_out": {"fold": 0, "of": 2}},
        r"models.base: leave_out without learn: it learns nothing",
    ),
    "tokens asked out of fold": (
        FOLDS | {"signals.unseen": {"kind": "out_of_fold", "of": ["choices", "tokens"]}},
        r"signals.unseen: of: 'tokens' is a signal of tokens; only signals of choices can be "
        r"combined",
    ),
    "a start of a model that is not there": (
        {"models.first.init.of": "begin"},
        r"models.first.init.of: there is no 'begin' among models; allowed: average, base, first, ",
    ),
    "a signal of a model that is not there": (
        {"signals.tokens.of": "professor"},
        r"signals.tokens.of: there is no 'professor' among models; allowed: average, .*teacher",
    ),
    "a term from a signal that is not there": (
        {"models.first.learn.choices.from": "choice"},
        r"models.first.learn.choices.from: there is no 'choice' among signals; allowed: choices, t",
    ),
    "no signals at all": (
        {"signals": {}},
        r"models.first.learn.choices.from: there is no 'choices' among signals; allowed: none",
    ),
    "a pool of a signal that is not there": (
        {"signals.pooled": {"kind": "mean", "of": ["choices", "others"]}},
        r"signals.pooled.of: there is no 'others' among signals",
    ),
    "a pool of tokens": (
        {"signals.pooled": {"kind": "mean", "of": ["choices", "tokens"]}},
        r"signals.pooled: of: 'tokens' is a signal of tokens; only signals of choices can be "
        r"combined",
    ),
    "a term on choices from tokens": (
        {"models.first.learn.choices.from": "tokens"},
        r"models.first.learn.choices: it compares choices, but signals.tokens holds tokens",
    ),
    "a term on tokens from choices": (
        {"models.first.learn.tokens": {"kind": "sparse_kl", "from": "choices"}},
        r"models.first.learn.tokens: it compares tokens, but signals.choices holds choices",
    ),
    "a recalibration of what is not stored": (
        {
            "signals.choices.live": True,
            "models.first.learn.choices.recalibrate": "temperature",
        },
        r"models.first.learn.choices: recalibrate: temperature cannot be fitted to signals.choices",
    ),
    "a pool of what is not stored": (
        {
            "signals.now": {"kind": "choices", "of": "teacher", "live": True},
            "signals.pooled": {"kind": "mean", "of": ["choices", "now"]},
        },
        r"signals.pooled.of: 'now' is live: it stores nothing to combine",
    ),
    "hidden states of a signal of choices": (
        {"models.first.learn.states": {"kind": "hidden", "from": "choices"}},
        r"models.first.learn.states: it compares states, but signals.choices holds choices",
    ),
    "stored hidden states of other layers than the last": (
        {
            "signals.states": {"kind": "hidden_states", "of": "teacher", "live": False},
            "models.first.learn.states": {"kind": "hidden", "from": "states", "layers": "uniform"},
        },
        r"models.first.learn.states: layers: signals.states is stored and holds only the output "
        r"of the final norm; set layers: last, or live: true there",
    ),
    "attention that is stored": (
        {
            "signals.states": {"kind": "hidden_states", "of": "teacher", "live": False},
            "models.first.learn.attention": {"kind": "attention", "from": "states"},
        },
        r"models.first.learn.attention: signals.states is stored and holds no attention; set live",
    ),
    "hidden states pooled with others": (
        {
            "signals.states": {"kind": "hidden_states", "of": "teacher", "live": False},
            "signals.pooled": {"kind": "mean", "of": ["choices", "states"]},
        },
        r"signals.pooled: of: 'states' is a signal of states; only signals of choices can be "
        r"combined",
    ),
    "tails that are not kept": (
        {
            "models.first.learn.tokens": {
                "kind": "sparse_kl",
                "from": "tokens",
                "recalibrate": "vocabulary_temperature",
            }
        },
        r"models.first.learn.tokens: recalibrate: vocabulary_temperature needs the tail's nodes; "
        r"set signals.tokens.tail_nodes to 8",
    ),
    "an unknown kind of signal": (
        {"signals.choices.kind": "votes"},
        r"signals.choices.kind: 'votes' is not allowed; allowed: 'choices', 'tokens', 'answers', ",
    ),
    "an unknown kind of term": (
        {"models.sft.learn": {"golden": {}}},
        r"models.sft.learn.golden.kind: 'golden' is not allowed; allowed: 'gold', 'gold_choice', ",
    ),
    "an unknown kind of start": (
        {"models.start.init.kind": "cut"},
        r"models.start.init.kind: 'cut' is not allowed; allowed: 'source', 'copy', 'prune'",
    ),
    "a section of train that is not there": (
        {"models.first.train": "distil"},
        r"models.first.train: there is no section train.distil; allowed: distill, finetune",
    ),
    "learning without a way to train": (
        {"models.first.train": None},
        r"models.first: learn without train: a model needs both to be trained",
    ),
    "training without anything to learn": (
        {"models.first.learn": None},
        r"models.first: train without learn: a model needs both to be trained",
    ),
    "a source that learns": (
        {"models.base.train": "finetune", "models.base.learn": {"gold": {}}},
        r"models.base: a model of kind source is made once and does not learn; train another",
    ),
    "a pruned start that learns": (
        {"models.start.train": "finetune", "models.start.learn": {"gold": {}}},
        r"models.start: a model of kind narrow is made once and does not learn; train another",
    ),
    "a student that is not evaluated": (
        {"evaluate.models": ["teacher", "sft"]},
        r"record.student: 'average' is not evaluated; add it to evaluate.models or choose one of "
        r"them: sft, teacher",
    ),
    "a student that learns nothing": (
        {"evaluate.models": ["base", "first"], "record.student": "base"},
        r"record.student: 'base' learns nothing \(models.base\)",
    ),
    "an evaluated model that is not there": (
        {"evaluate.models": ["first", "frist"]},
        r"evaluate.models.1: 'frist' is not among models, exports or evaluate.ensembles; allowed: "
        r"average, base, first, ",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_one_line_with_its_key(tmp_path, case):
    changes, message = REFUSED[case]
    with pytest.raises(ConfigError) as raised:
        with_params(tmp_path, changes)
    assert raised.match(r"/params\.yaml: " + message)
    assert "\n" not in str(raised.value)


def test_a_student_that_writes_itself_is_accepted(tmp_path):
    settings = with_params(tmp_path, WRITING)
    assert settings.models["first"].on_policy.share == 0.5


def test_twins_with_different_teachers_may_learn_from_each_other(tmp_path):
    changes = {**MUTUAL, "models.right.init.of": "start"}
    changes["signals.others"] = {"kind": "choices", "of": "base"}
    for name, of in (("left", "choices"), ("right", "others")):
        changes[f"models.{name}.learn.teacher"] = {**KL, "from": of}
    assert {"left", "right"} <= with_params(tmp_path, changes).models.keys()


def position(lineage: Lineage, section: str, name: str) -> int:
    return lineage.order.index(Node(section, name))


def test_everything_comes_after_what_it_reads():
    lineage = load_settings(REPOSITORY / "params.yaml").lineage
    assert sorted(lineage.order) == sorted(set(lineage.order))
    for place, node in enumerate(lineage.order):
        assert all(lineage.order.index(other) < place for other in lineage.reads(node))


def test_sources_come_first_and_trainings_last(tmp_path):
    lineage = with_params(
        tmp_path,
        {
            "models.judge": {"init": SOURCE},  # written last, and of use to the last student only
            "signals.judged": {"kind": "choices", "of": "judge"},
            "signals.pooled": {"kind": "mean", "of": ["choices", "judged"]},
            "models.pupil": {
                "init": {"kind": "copy", "of": "start"},
                "train": "distill",
                "learn": {"pooled": {"kind": "choice_kl", "from": "pooled"}},
            },
        },
    ).lineage
    names = [f"{section}.{name}" for section, name in lineage.order]
    assert names == [
        "models.base",
        "models.judge",
        "signals.judged",
        "models.teacher",
        "models.start",
        "signals.choices",
        "signals.tokens",
        "signals.pooled",
        "models.sft",
        "models.first",
        "models.average",
        "models.pupil",
    ]
    assert lineage.roots == ["base", "judge"]
    assert lineage.teachers("pupil") == ["teacher", "judge"]
    assert lineage.teachers("first") == ["teacher"] and lineage.teachers("sft") == []
    assert lineage.teachers("average") == ["teacher"] and lineage.teachers("start") == []
    assert lineage.learns("average") and not lineage.learns("base")
    assert lineage.read_with("pooled") == "teacher" and lineage.read_with("judged") == "judge"
    assert lineage.root("pupil") == "base" and lineage.root("judge") == "judge"


def test_models_that_learn_from_one_another_come_after_what_any_of_them_reads(tmp_path):
    later = {
        "models.right.learn.more": {**KL, "from": "choices"},
        "signals.stored": {"kind": "choices", "of": "left"},
        "models.pupil": {
            "init": {"kind": "copy", "of": "start"},
            "train": "distill",
            "learn": {
                "live": {**KL, "from": "of_right", "recalibrate": "none"},
                "stored": {**KL, "from": "stored"},
            },
        },
    }
    settings = with_params(tmp_path, MUTUAL | later)
    lineage = settings.lineage
    assert lineage.peers("left") == lineage.peers("right") == ["left", "right"]
    assert lineage.peers("pupil") == ["pupil"]
    assert lineage.teachers("right") == ["teacher"] and lineage.teachers("left") == []
    assert lineage.teachers("pupil") == ["right", "left"]
    places = {name: position(lineage, "models", name) for name in ("left", "right", "pupil")}
    choices = position(lineage, "signals", "choices")
    assert choices < min(places["left"], places["right"])
    assert max(places["left"], places["right"]) < places["pupil"]


def test_three_models_may_learn_in_a_ring(tmp_path):
    ring = MUTUAL | {
        "models.right.learn.other.from": "of_third",
        "models.third": MUTUAL["models.left"] | {"init": {"kind": "copy", "of": "base"}},
        "signals.of_third": {"kind": "choices", "of": "third", "live": True},
    }
    ring["models.third"] = {
        **ring["models.third"],
        "learn": {"other": {**KL, "from": "of_left", "recalibrate": "none"}},
    }
    assert with_params(tmp_path, ring).lineage.peers("third") == ["left", "right", "third"]


def test_the_order_is_stable(tmp_path):
    first = with_params(tmp_path, {}).lineage.order
    again = with_params(tmp_path, {"train.distill.epochs": 9}).lineage.order
    assert first == again == with_params(tmp_path, {}).lineage.order


def test_a_chain_of_students_is_trained_in_turn(tmp_path):
    chain = {
        "models.grandchild": {"init": {"kind": "copy", "of": "first"}, "train": "distill",
                              "learn": {"again": {**KL, "from": "second_hand"}}},
        "signals.second_hand": {"kind": "choices", "of": "sft"},
    }  # fmt: skip
    lineage = with_params(tmp_path, chain).lineage
    assert position(lineage, "models", "sft") < position(lineage, "signals", "second_hand")
    assert position(lineage, "signals", "second_hand") < position(lineage, "models", "grandchild")
    assert position(lineage, "models", "first") < position(lineage, "models", "grandchild")
    assert lineage.root("grandchild") == "base"


def test_teachers_that_leave_out_their_folds_are_taken(tmp_path: Any) -> None:
    changes = FOLDS | {"models.first.learn.choices.from": "unseen"}
    settings = with_params(tmp_path, changes)
    assert settings.teachers == ["teacher", "second"]
