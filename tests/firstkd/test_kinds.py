"""Every kind of signal and term, from capture to gradient, against dense float64 references.

A kind that is listed in one of the tables is tested here: it needs a way to be made in MADE and,
if it is a term, a dense reference in DENSE. What else can be set of a term is in VARIANTS.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, StableLmConfig, StableLmForCausalLM

from firstkd.data.examples import Example, example_key
from firstkd.data.packing import pack
from firstkd.data.prompts import encode
from firstkd.data.settings import PromptSettings
from firstkd.models.folders import load_tokenizer
from firstkd.recalibration.none import Identity
from firstkd.signals import kinds as signal_kinds
from firstkd.signals.base import CombinedSignal
from firstkd.signals.capture import Capture
from firstkd.signals.settings import CaptureSettings
from firstkd.signals.store import SignalStore, write_manifest, write_shard
from firstkd.signals.target import Stored
from firstkd.terms import kinds as term_kinds
from firstkd.train.distributed import Ranks
from firstkd.train.player import Player

EXAMPLES = [
    Example("a/0", "Where does the fox live?", "in a hive", ("in a den", "in a hive"), 1, "a"),
    Example("a/1", "Say where the bee lives.", "It lives in a hive.", None, None, "a"),
    Example("a/2", "Where is it?", "here", ("here", "in the old sea", "there"), 0, "a"),
    Example("a/3", "Where does the mole live?", "in a nest", ("in a cave", "in a nest"), 1, "a"),
]
SETTINGS = CaptureSettings(
    precision="fp32", micro_batch_size=2, micro_batch_tokens=8192, shard_examples=3
)
TOP_K = {"kind": "top_k", "k": 5}
MADE = {
    "choices": {"of": "teacher"},
    "tokens": {"of": "teacher", "select": TOP_K},
    "mean": {"of": ["choices", "choices"]},
    "out_of_fold": {"of": ["choices", "choices"]},
    "gold": {},
    "gold_choice": {},
    "choice_kl": {"from": "choices", "recalibrate": "none"},
    "hard_choice": {"from": "choices"},
    "sparse_kl": {"from": "tokens", "recalibrate": "none"},
}
VARIANTS = {
    "choice_kl, gold": ("choice_kl", {"gold_share": 0.3}),
}
SIGNALS = {kind.model_fields["kind"].annotation.__args__[0]: kind for kind in signal_kinds.KINDS}
TERMS = {kind.model_fields["kind"].annotation.__args__[0]: kind for kind in term_kinds.KINDS}


def make(kinds, name):
    kind, changes = VARIANTS.get(name, (name, {}))
    return kinds[kind].model_validate({"kind": kind, **MADE[kind], **changes})


@dataclass(frozen=True)
class World:
    """A teacher and a student in float64, and the stores of the teacher's signals."""

    questions: list
    student: torch.nn.Module
    teacher: torch.nn.Module
    size: int
    stores: dict


def float64_model(tokens: int, seed: int) -> PreTrainedModel:
    """A random model that computes in float64 throughout: norms and attention of Llama's do not."""
    config = StableLmConfig(
        vocab_size=tokens,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return StableLmForCausalLM(config).double().eval()


@pytest.fixture(scope="module")
def world(tiny_model, tmp_path_factory):
    tokenizer = load_tokenizer(tiny_model)
    questions = encode(EXAMPLES, tokenizer, PromptSettings(format="cloze", max_length=100))
    student, teacher = float64_model(len(tokenizer), seed=0), float64_model(len(tokenizer), seed=1)
    size = len(tokenizer)
    folder, stores = tmp_path_factory.mktemp("stores"), {}
    keys = [example_key(example) for example in EXAMPLES]
    for name in SIGNALS:  # combined signals come last in the table
        signal = make(SIGNALS, name)
        if isinstance(signal, CombinedSignal):
            (folder / name).mkdir()
            records = signal.combine([folder / member for member in signal.signals])
            layout = signal.layout(0)
            write_shard(folder / name, 0, layout, records, keys)
            write_manifest(folder / name, layout, name, {})
        else:
            capture = Capture(signal, size, SETTINGS, Ranks())
            capture.write(teacher, questions, keys, folder / name)
            capture.finish(folder / name, {})
        stores[name] = SignalStore(folder / name)
    return World(questions, student, teacher, size, stores)


def dense_logprobs(model, question, size) -> list[Tensor]:
    """Per response, log-probabilities [tokens, V] by a plain forward pass of the whole text."""
    found = []
    for response in question.responses:
        ids = torch.tensor([[*question.prompt, *response]])
        logits = model(ids).logits[0, len(question.prompt) - 1 : -1, :size]
        found.append(logits.log_softmax(-1))
    return found


def of_tokens(logprobs: Tensor, response: list[int]) -> Tensor:
    return logprobs.gather(-1, torch.tensor(response)[:, None])[:, 0]


def dense_scores(model, question, size) -> Tensor:
    rows = dense_logprobs(model, question, size)
    pairs = zip(rows, question.responses, strict=True)
    return torch.stack([of_tokens(row, response).mean() for row, response in pairs])


def dense_right(model, question, size) -> Tensor:
    """Log-probabilities [tokens, V] along the right response."""
    return dense_logprobs(model, question, size)[question.gold]


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_is_what_the_dense_model_says(world, name):
    signal, store = make(SIGNALS, name), world.stores[name]
    decisions = signal.decisions(store.whole(), store.facts)
    expected = []
    with torch.no_grad():
        for question in world.questions:
            if signal.decides == "choice" and len(question.responses) > 1:
                expected.append(dense_scores(world.teacher, question, world.size).softmax(-1))
            if signal.decides == "token":
                expected += dense_right(world.teacher, question, world.size).exp()
    assert len(decisions) == len(expected) == sum(map(signal.decisions_of, world.questions))
    width = decisions.top_ids.shape[1]
    for ids, logprobs, dense in zip(
        decisions.top_ids, decisions.top_logprobs.double(), expected, strict=True
    ):
        best = dense.sort(descending=True).values[:width] if signal.has_token_ids else dense
        kept = logprobs.exp()[: len(best)]
        torch.testing.assert_close(kept, best, rtol=2e-3, atol=1e-6)  # float16 is stored
        torch.testing.assert_close(dense[ids[: len(best)]], best, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", SIGNALS)
def test_a_store_gives_each_example_its_own_in_any_order(world, name):
    store, order = world.stores[name], torch.tensor([2, 0, 3])
    whole = store.whole().reordered(order)
    found = store.of_examples(order)
    assert torch.equal(found.counts, whole.counts)
    for column in store.layout:
        assert torch.equal(found.columns[column], whole.columns[column])


def dense_gold(world, term, target):
    rows = [
        -of_tokens(dense_right(world.student, q, world.size), q.responses[q.gold]).sum()
        for q in world.questions
    ]
    return torch.stack(rows).sum()


def dense_gold_choice(world, term, target):
    rows = [
        -dense_scores(world.student, q, world.size).log_softmax(-1)[q.gold]
        for q in world.questions
        if len(q.responses) > 1
    ]
    return torch.stack(rows).sum()


def dense_choice_kl(world, term, target):
    total = torch.zeros((), dtype=torch.float64)
    deciding = [q for q in world.questions if len(q.responses) > 1]
    for q, wanted in zip(deciding, target.probabilities_RK.double(), strict=True):
        wanted = wanted[: len(q.responses)] * (1 - term.gold_share)
        wanted[q.gold] += term.gold_share
        student = dense_scores(world.student, q, world.size).log_softmax(-1)
        total = total + (wanted * (wanted.log() - student)).sum()
    return total


def dense_hard_choice(world, term, target):
    total = torch.zeros((), dtype=torch.float64)
    for q in world.questions:
        if len(q.responses) > 1:
            label = dense_scores(world.teacher, q, world.size).argmax()
            total = total - dense_scores(world.student, q, world.size).log_softmax(-1)[label]
    return total


def dense_sparse_kl(world, term, target):
    student = torch.cat([dense_right(world.student, q, world.size) for q in world.questions])
    wanted = target.probabilities_RK.double()
    head = student.gather(-1, target.ids_RK)
    tail = (1 - head.exp().sum(-1)).log()
    tail_wanted = target.tail_R
    divergence = (wanted * (wanted.log() - head)).sum(-1)
    return (divergence + tail_wanted * (tail_wanted.log() - tail)).sum()


DENSE = {
    "gold": dense_gold,
    "gold_choice": dense_gold_choice,
    "choice_kl": dense_choice_kl,
    "hard_choice": dense_hard_choice,
    "sparse_kl": dense_sparse_kl,
}


@pytest.mark.parametrize("name", [*TERMS, *VARIANTS])
def test_value_and_gradient_of_a_term_are_the_dense_ones(world, name):
    term = make(TERMS, name)
    everything = range(len(world.questions))
    sources = {}
    if term.signal:
        signal, store = make(SIGNALS, term.signal), world.stores[term.signal]
        positions = torch.tensor([*everything])
        sources["term"] = Stored(signal, store, Identity(), positions)
    player = Player(world.student, {"term": term}, sources)
    questions = world.questions
    if not term.needs.choices:
        questions = [question.gold_only() for question in questions]
    batch = pack(questions, [*everything])
    targets = {
        key: target._replace(
            probabilities_RK=target.probabilities_RK.double(), tail_R=target.tail_R.double()
        )
        for key, target in player.targets(batch).items()
    }

    world.student.zero_grad()
    found = player(batch, targets)["term"]
    found.total.backward()
    gradients = [parameter.grad.clone() for parameter in world.student.parameters()]
    world.student.zero_grad()
    expected = DENSE[term.kind](world, term, targets.get("term"))
    expected.backward()
    assert found.units == sum(map(term.count, world.questions))
    torch.testing.assert_close(found.total, expected, rtol=0, atol=1e-9)
    for gradient, parameter in zip(gradients, world.student.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=0, atol=1e-9)
