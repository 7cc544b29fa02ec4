"""Every kind of signal and term, from capture to gradient, against dense float64 references.

A kind that is listed in one of the tables is tested here: it needs a way to be made in MADE and,
if it is a term, a dense reference in DENSE. What else can be set is in MADE under other names.
"""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, StableLmConfig, StableLmForCausalLM

from firstkd.data.examples import Example, example_key
from firstkd.data.packing import pack
from firstkd.data.prompts import encode
from firstkd.data.settings import PromptSettings
from firstkd.data.spans import right_spans
from firstkd.models.folders import load_tokenizer
from firstkd.recalibration.none import Identity
from firstkd.signals import kinds as signal_kinds
from firstkd.signals.base import CombinedSignal
from firstkd.signals.capture import Capture
from firstkd.signals.live import Watched
from firstkd.signals.other_tokens import StoredBeside
from firstkd.signals.settings import CaptureSettings
from firstkd.signals.store import SignalStore, write_manifest, write_shard
from firstkd.signals.target import OtherTokens, Stored, Target
from firstkd.terms import kinds as term_kinds
from firstkd.terms.adaptive import Adaptive
from firstkd.terms.base import Pairing
from firstkd.terms.relations import FORMS
from firstkd.train.distributed import Ranks
from firstkd.train.player import Player
from tests.firstkd.data.tokenizers_of_kinds import byte_level

EXAMPLES = [
    Example("a/0", "Where does the fox live?", "in a hive", ("in a den", "in a hive"), 1, "a"),
    Example("a/1", "Say where the bee lives.", "It lives in a hive.", None, None, "a"),
    Example("a/2", "Where is it?", "here", ("here", "in the old sea", "there"), 0, "a"),
    Example("a/3", "Where does the mole live?", "in a nest", ("in a cave", "in a nest"), 1, "a"),
]
PROMPT = PromptSettings(format="cloze", max_length=100)
SETTINGS = CaptureSettings(
    precision="fp32", micro_batch_size=2, micro_batch_tokens=8192, shard_examples=3
)
TOP_K = {"kind": "top_k", "k": 5}
PAIRS = [[0, 1], [1, 2], [2, 3]]
MADE = {
    "choices": {"of": "teacher"},
    "tokens": {"of": "teacher", "select": TOP_K},
    "answers": {"of": "teacher", "select": TOP_K, "max_new_tokens": 4},  # tests/tasks/test_said.py
    "mean": {"of": ["choices", "choices"]},
    "out_of_fold": {"of": ["choices", "choices"]},
    "wide_choices": {"kind": "choices", "of": "wide"},
    "ensemble": {"of": ["choices", "wide_choices"]},
    "hidden_states": {"of": "teacher"},
    "wide_states": {"kind": "hidden_states", "of": "wide"},
    "other_tokens": {"kind": "tokens", "of": "other", "select": TOP_K},
    "top_p": {"kind": "tokens", "of": "teacher", "select": {"kind": "top_p", "p": 0.7, "k": 9}},
    "sample": {"kind": "tokens", "of": "teacher", "select": {"kind": "sample", "draws": 7}},
    "live_choices": {"kind": "choices", "of": "teacher", "live": True},
    "live_tokens": {"kind": "tokens", "of": "teacher", "select": TOP_K, "live": True},
    "gold": {},
    "gold_choice": {},
    "adaptive_focal": {"bins": 4},
    **{
        f"{kind}, {loss['kind']}": {"kind": kind, "loss": loss}
        for kind in ("gold", "gold_choice")
        for loss in (
            {"kind": "label_smoothing", "epsilon": 0.2},
            {"kind": "focal", "gamma": 1.5},
            {"kind": "flsd"},
        )
    },
    "choice_kl": {"from": "choices", "recalibrate": "none"},
    "choice_kl, gold": {
        "kind": "choice_kl",
        "from": "choices",
        "recalibrate": "none",
        "gold_share": 0.3,
    },
    "choice_kl, live": {"kind": "choice_kl", "from": "live_choices", "recalibrate": "none"},
    **{
        f"{kind}, {divergence['kind']}": {
            "kind": kind,
            "from": signal,
            "recalibrate": "none",
            "divergence": divergence,
        }
        for kind, signal in (("choice_kl", "choices"), ("sparse_kl", "tokens"))
        for divergence in (
            {"kind": "reverse"},
            {"kind": "jsd", "beta": 0.3},
            {"kind": "skew", "alpha": 0.2},
        )
    },
    "choice_kl, tempered": {
        "kind": "choice_kl",
        "from": "choices",
        "recalibrate": "none",
        "student_temperature": 2.5,
    },
    "hard_choice": {"from": "choices"},
    "sparse_kl": {"from": "tokens", "recalibrate": "none"},
    **{
        f"sparse_kl, {signal}": {"kind": "sparse_kl", "from": signal, "recalibrate": "none"}
        for signal in ("top_p", "sample")
    },
    "sparse_kl, top_p, renormalised": {
        "kind": "sparse_kl",
        "from": "top_p",
        "recalibrate": "none",
        "tail": "renormalise",
    },
    "sparse_kl, uncertain": {
        "kind": "sparse_kl",
        "from": "tokens",
        "recalibrate": "none",
        "share": 0.4,
    },
    "sparse_kl, live": {"kind": "sparse_kl", "from": "live_tokens", "recalibrate": "none"},
    "alm": {"from": "other_tokens"},
    "alm, binary": {"kind": "alm", "from": "other_tokens", "temperature": 1.0},
    "alm, own tokens": {"kind": "alm", "from": "tokens", "temperature": 10.0},
    "uld": {"from": "other_tokens", "recalibrate": "none"},
    "hidden": {"from": "hidden_states", "layers": "uniform"},
    "hidden, mse": {"kind": "hidden", "from": "hidden_states", "distance": "mse"},
    "hidden, wide": {"kind": "hidden", "from": "wide_states", "layers": PAIRS},
    "hidden, mse, wide": {
        "kind": "hidden",
        "from": "wide_states",
        "layers": PAIRS,
        "distance": "mse",
    },
    "relation": {"from": "hidden_states", "layers": "uniform"},
    **{
        f"relation, {form}": {"kind": "relation", "from": "wide_states", "form": form}
        for form in ("distance", "angle", "similarity", "correlation")
    },
    "flow": {"from": "hidden_states"},
    "attention": {"from": "wide_states", "heads": 4, "layers": [[0, 2], [1, 1]]},
    "curriculum_kl": {"from": "choices", "recalibrate": "none", "rise": 0},
    "adversarial": {"from": "hidden_states", "units": 5},
    "adversarial, wide": {
        "kind": "adversarial",
        "from": "wide_states",
        "layers": PAIRS,
        "units": 5,
    },
    "dirichlet": {"from": "ensemble", "recalibrate": "none"},
    "dirichlet, samples": {
        "kind": "dirichlet",
        "from": "ensemble",
        "recalibrate": "none",
        "target": "samples",
        "offset": 3.0,
    },
    "flow, length": {"kind": "flow", "from": "wide_states", "form": "length", "layers": PAIRS},
}
SIGNALS = {kind.model_fields["kind"].annotation.__args__[0]: kind for kind in signal_kinds.KINDS}
TERMS = {kind.model_fields["kind"].annotation.__args__[0]: kind for kind in term_kinds.KINDS}
SPARSE = ("top_p", "sample")
"""Signals of tokens that keep others than the top-k (tests/firstkd/signals/test_select.py)."""
STORED = ("choices", "wide_choices", "tokens", "mean", "out_of_fold", "ensemble")
"""The signals of decisions, combined ones last."""


def make(kinds, name):
    kind = MADE[name].get("kind", name)
    return kinds[kind].model_validate({"kind": kind, **MADE[name]})


def test_every_kind_is_tested():
    made = {settings.get("kind", name) for name, settings in MADE.items()}
    assert made == {*SIGNALS, *TERMS}
    stored = {name for name in SIGNALS if make(SIGNALS, name).is_recalibrated}
    assert stored == {make(SIGNALS, name).kind for name in STORED}


OF_TERMS = [name for name, settings in MADE.items() if settings.get("kind", name) in TERMS]
RELATING = [name for name in OF_TERMS if name.startswith("relation")] + ["flow, length"]
"""Terms that relate the questions of a micro-batch to one another."""


@dataclass(frozen=True)
class World:
    """A student and its teachers in float64, and the stores of their signals.

    `other` has another tokenizer.
    """

    questions: list
    student: torch.nn.Module
    teacher: torch.nn.Module
    wide: torch.nn.Module
    size: int
    stores: dict
    tokenizers: dict
    """By the signal of tokens."""
    projectors: torch.nn.ModuleList | None = None


def float64_model(tokens: int, seed: int, layers: int = 2, width: int = 16) -> PreTrainedModel:
    """A random model that computes in float64 throughout: norms and attention of Llama's do not."""
    config = StableLmConfig(
        vocab_size=tokens,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=layers,
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
    return make_world(tiny_model, tmp_path_factory.mktemp("stores"))


def make_world(tiny_model, folder):
    """Return the world of a tiny model's tokenizer, with its stores in a folder."""
    tokenizer = load_tokenizer(tiny_model)
    questions = encode(EXAMPLES, tokenizer, PROMPT)
    size = len(tokenizer)
    student, teacher = float64_model(size, seed=0), float64_model(size, seed=1)
    wide = float64_model(size, seed=2, layers=3, width=24)
    other_tokenizer = byte_level()
    other = float64_model(len(other_tokenizer), seed=3)
    models = {
        "teacher": (teacher, questions),
        "wide": (wide, questions),
        "other": (other, encode(EXAMPLES, other_tokenizer, PROMPT)),
    }
    stores = {}
    keys = [example_key(example) for example in EXAMPLES]
    for name in (*STORED, *SPARSE, "other_tokens"):
        signal = make(SIGNALS, name)
        if isinstance(signal, CombinedSignal):
            (folder / name).mkdir()
            records = signal.combine([folder / member for member in signal.signals])
            layout = signal.layout(0)
            write_shard(folder / name, 0, layout, records, keys)
            write_manifest(folder / name, layout, name, {})
        else:
            model, whole = models[signal.of]
            capture = Capture(signal, model.config.vocab_size, SETTINGS, Ranks())
            capture.write(model, whole, keys, folder / name)
            capture.finish(folder / name, {})
        stores[name] = SignalStore(folder / name)
    tokenizers = {"tokens": tokenizer, "other_tokens": other_tokenizer}
    return World(questions, student, teacher, wide, size, stores, tokenizers)


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


@pytest.mark.parametrize("name", STORED)
def test_a_signal_is_what_the_dense_model_says(world, name):
    signal, store = make(SIGNALS, name), world.stores[name]
    decisions = signal.decisions(store.whole(), store.facts)
    members = {"ensemble": [world.teacher, world.wide], "wide_choices": [world.wide]}
    expected = []
    with torch.no_grad():
        for question in world.questions:
            if signal.decides != "token" and len(question.responses) > 1:
                for model in members.get(name, [world.teacher]):
                    expected.append(dense_scores(model, question, world.size).softmax(-1))
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


@pytest.mark.parametrize("name", STORED)
def test_a_store_gives_each_example_its_own_in_any_order(world, name):
    store, order = world.stores[name], torch.tensor([2, 0, 3])
    whole = store.whole().reordered(order)
    found = store.of_examples(order)
    assert torch.equal(found.counts, whole.counts)
    for column in store.layout:
        assert torch.equal(found.columns[column], whole.columns[column])


def dense_gold_loss(loss, logprobs, right) -> Tensor:
    """Of log-probabilities [candidates], one of which is right."""
    p = logprobs[right].exp()
    if loss.kind == "label_smoothing":
        smoothing = loss.epsilon
        return torch.nn.functional.cross_entropy(
            logprobs[None], torch.tensor([right]), label_smoothing=smoothing
        )
    gamma = {"cross_entropy": 0, "focal": getattr(loss, "gamma", 0), "flsd": 5 if p < 0.2 else 3}
    return -((1 - p) ** gamma[loss.kind]) * p.log()


def dense_gold(world, term, target):
    rows = [
        dense_gold_loss(term.loss, logprobs, token)
        for q in world.questions
        for logprobs, token in zip(
            dense_right(world.student, q, world.size), q.responses[q.gold], strict=True
        )
    ]
    return torch.stack(rows).sum()


def dense_gold_choice(world, term, target):
    rows = [
        dense_gold_loss(
            term.loss, dense_scores(world.student, q, world.size).log_softmax(-1), q.gold
        )
        for q in world.questions
        if len(q.responses) > 1
    ]
    return torch.stack(rows).sum()


def dense_adaptive_focal(world, term, target):
    (gammas,) = world.projectors
    total = torch.zeros((), dtype=torch.float64)
    for q in world.questions:
        if len(q.responses) > 1:
            p = dense_scores(world.student, q, world.size).softmax(-1)[q.gold]
            gamma = gammas.gammas[sum(edge <= p for edge in gammas.edges)]
            total = total - (1 - math.copysign(1, gamma) * p) ** abs(gamma) * p.log()
    return total


def adapted(modules) -> torch.nn.ModuleList:
    """Return a term's modules as after rounds of questions, if they adapt to these."""
    generator = torch.Generator().manual_seed(0)
    for module in modules:
        if isinstance(module, Adaptive):
            for _ in range(9):
                scores = torch.randn(40, 3, generator=generator, dtype=torch.float64)
                module.adapt(scores, torch.zeros(40, dtype=torch.int64))
    return modules


def dense_divergence(term, wanted, student) -> Tensor:
    kl = torch.nn.functional.kl_div  # of the first argument's exponential from the second
    divergence, found = term.divergence, student.exp()
    if divergence.kind == "forward":
        return kl(student, wanted, reduction="sum")
    if divergence.kind == "reverse":
        return kl(wanted.log(), found, reduction="sum")
    share = divergence.alpha if divergence.kind == "skew" else divergence.beta
    mixture = (share * wanted + (1 - share) * found).log()
    of_target = kl(mixture, wanted, reduction="sum")
    if divergence.kind == "skew":
        return of_target
    return share * of_target + (1 - share) * kl(mixture, found, reduction="sum")


def dense_choice_kl(world, term, target):
    total = torch.zeros((), dtype=torch.float64)
    deciding = [q for q in world.questions if len(q.responses) > 1]
    for q, wanted in zip(deciding, target.probabilities_RK.double(), strict=True):
        wanted = wanted[: len(q.responses)] * (1 - term.gold_share)
        wanted[q.gold] += term.gold_share
        temperature = term.student_temperature
        student = (dense_scores(world.student, q, world.size) / temperature).log_softmax(-1)
        total = total + temperature**2 * dense_divergence(term, wanted, student)
    return total


def dense_curriculum_kl(world, term, target):
    total = torch.zeros((), dtype=torch.float64)
    temperature = 1 + 4 * (100 * world.projectors[0].theta).sigmoid()
    temperature.register_hook(lambda gradient: -gradient / 100)
    deciding = [q for q in world.questions if len(q.responses) > 1]
    for q, wanted in zip(deciding, target.probabilities_RK.double(), strict=True):
        wanted = (wanted[: len(q.responses)].log() / temperature).softmax(-1)
        student = (dense_scores(world.student, q, world.size) / temperature).log_softmax(-1)
        kl = torch.nn.functional.kl_div(student, wanted, reduction="sum")
        total = total + temperature.sum() ** 2 * kl
    return total


def dense_dirichlet(world, term, target):
    total = torch.zeros((), dtype=torch.float64)
    deciding = [q for q in world.questions if len(q.responses) > 1]
    for q, members in zip(deciding, target.probabilities_RK.double().split(2), strict=True):
        choices = len(q.responses)
        members = members[:, :choices] * 0.999 + 0.001 / choices
        scores = dense_scores(world.student, q, world.size)
        student = torch.distributions.Dirichlet((scores + term.offset).exp() + 1)
        if term.target == "samples":
            total = total - student.log_prob(members).mean()
            continue
        mean = members.mean(0)
        spread = (mean * (mean.log() - members.log().mean(0))).sum()
        precision = min((choices - 1) / 2 / spread, torch.e**term.offset)
        wanted = torch.distributions.Dirichlet(mean * precision + 1)
        total = total + torch.distributions.kl_divergence(student, wanted) / precision
    return total


def dense_hard_choice(world, term, target):
    total = torch.zeros((), dtype=torch.float64)
    for q in world.questions:
        if len(q.responses) > 1:
            label = dense_scores(world.teacher, q, world.size).argmax()
            total = total - dense_scores(world.student, q, world.size).log_softmax(-1)[label]
    return total


def dense_sparse_kl(world, term, target):
    rows = iter(zip(target.ids_RK, target.probabilities_RK.double(), target.tail_R, strict=True))
    total = torch.zeros((), dtype=torch.float64)
    for q in world.questions:
        student = dense_right(world.student, q, world.size)
        entropies = torch.distributions.Categorical(logits=student).entropy()
        counted = entropies.topk(math.ceil(term.share * len(student))).indices.tolist()
        for token, logprobs in enumerate(student):
            ids, wanted, tail_wanted = next(rows)
            ids, wanted = ids[wanted > 0], wanted[wanted > 0]
            if token not in counted:
                continue
            head = logprobs[ids]
            if term.tail == "renormalise":
                wanted, found = wanted / wanted.sum(), head.log_softmax(0)
            else:
                assert term.tail == "ghost"
                wanted = torch.cat([wanted, tail_wanted[None]])
                found = torch.cat([head, (1 - head.exp().sum()).log()[None]])
            total = total + dense_divergence(term, wanted, found)
    return total


def suffix_bytes(tokenizer, ids) -> list[int]:
    """Bytes of the text behind each token: every one is a character of a byte-level token."""
    lengths = [len(token) for token in tokenizer.convert_ids_to_tokens(ids)]
    return [sum(lengths[i + 1 :]) for i in range(len(ids))]


def dense_alm(world, term, target):
    total, start = torch.zeros((), dtype=torch.float64), 0
    theirs = world.tokenizers[term.signal]
    for ours, other in zip(world.questions, encode(EXAMPLES, theirs, PROMPT), strict=True):
        right, others = ours.responses[ours.gold], other.responses[other.gold]
        logprobs = of_tokens(dense_right(world.student, ours, world.size), right)
        wanted = target.gold_logprob_T[start : start + len(others)].double()
        start += len(others)
        cuts = suffix_bytes(world.tokenizers["tokens"], right), suffix_bytes(theirs, others)
        done = [0, 0]
        for cut in sorted({*cuts[0]} & {*cuts[1]}, reverse=True):
            ends = [side.index(cut) + 1 for side in cuts]
            q = wanted[done[1] : ends[1]].sum().exp() ** (1 / term.temperature)
            p = logprobs[done[0] : ends[0]].sum().exp() ** (1 / term.temperature)
            done = ends
            kl = q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()
            total = total + term.temperature * kl
        assert done == [len(right), len(others)]
    return total


def dense_uld(world, term, target):
    total, start = torch.zeros((), dtype=torch.float64), 0
    for question, count in zip(world.questions, target.counts_B.tolist(), strict=True):
        student = dense_right(world.student, question, world.size).exp()
        wanted = target.probabilities_TK[start : start + count].double()
        rest = target.tail_T[start : start + count].double()
        start += count
        for ours, theirs, tail in zip(student, wanted, rest, strict=False):
            best = ours.sort(descending=True).values
            theirs = theirs.sort(descending=True).values
            total = total + (best[:5] - theirs).abs().sum() + (best[5:].sum() - tail).abs()
    return total


def dense_states(model, question) -> list[Tensor]:
    """Per place, the states [T, H] of the prompt's tokens and of each response's."""
    found = []
    for number, response in enumerate(question.responses):
        ids = torch.tensor([[*question.prompt, *response]])
        states = model(ids, output_hidden_states=True).hidden_states
        found.append([place[0, (len(question.prompt) if number else 0) :] for place in states])
    return [torch.cat(places) for places in zip(*found, strict=True)]


def dense_hidden(world, term, target):
    teacher = world.wide if "wide" in term.signal else world.teacher
    pairs = {"last": [(2, 2)], "uniform": [(1, 1), (2, 2)]}.get(term.layers, term.layers)
    total = torch.zeros((), dtype=torch.float64)
    for question in world.questions:
        question = question.gold_only()
        ours, theirs = dense_states(world.student, question), dense_states(teacher, question)
        for number, (place, other) in enumerate(pairs):
            found, wanted = ours[place], theirs[other]
            if world.projectors:
                found = found @ world.projectors[number].weight.T
            if term.distance == "mse":
                distance = ((found - wanted) ** 2).mean(-1)
            else:
                lengths = found.norm(dim=-1) * wanted.norm(dim=-1)
                distance = 1 - (found * wanted).sum(-1) / lengths
            total = total + distance.sum() / len(pairs)
    return total


def dense_places(world, term):
    """Per question, the states [T, H] of the student and of the other at each pair of places."""
    teacher = world.wide if "wide" in term.signal else world.teacher
    last = (2, teacher.config.num_hidden_layers)
    pairs = {"last": [last], "uniform": [(1, 1), (2, 2)]}.get(term.layers, term.layers)
    for question in world.questions:
        question = question.gold_only()
        ours, theirs = dense_states(world.student, question), dense_states(teacher, question)
        yield [(ours[place], theirs[other]) for place, other in pairs]


def dense_adversarial(world, term, target):
    total = torch.zeros((), dtype=torch.float64)
    for places in dense_places(world, term):
        for discriminator, (found, wanted) in zip(world.projectors, places, strict=True):
            if found.shape[1] != wanted.shape[1]:
                found = found @ discriminator.projector.weight.T
            student, teacher = found.mean(0), wanted.mean(0)
            if student.requires_grad:
                student.register_hook(lambda gradient: -gradient)
            first, _, second = discriminator.score
            chances = []
            for vector in (student, teacher):
                vector = vector / vector.square().mean().sqrt()
                hidden = torch.nn.functional.gelu(first.weight @ vector + first.bias)
                chances.append((second.weight @ hidden + second.bias).sigmoid().sum())
            right = (1 - chances[0]).log() + chances[1].log()
            total = total - right / 2 / len(places)
    return total


def huber(x) -> Tensor:
    return x * x / 2 if abs(x) <= 1 else abs(x) - 0.5


def cosine(x, y) -> Tensor:
    return x @ y / (x @ x * (y @ y)).sqrt()


def dense_relations(form, vectors) -> dict[tuple[int, ...], Tensor]:
    """The relations of questions, by their numbers."""
    n = range(len(vectors))
    if form == "similarity":
        rows = [torch.stack([vectors[i] @ vectors[j] for j in n]) for i in n]
        return {(i, j): rows[i][j] / rows[i].norm() for i in n for j in n}
    if form == "correlation":
        unit = [vector / vector.norm() for vector in vectors]
        return {(i, j): (-0.4 * ((unit[i] - unit[j]) ** 2).sum()).exp() for i in n for j in n}
    if form == "distance":
        found = {(i, j): (vectors[i] - vectors[j]).norm() for i in n for j in n if i != j}
        mean = sum(found.values()) / len(found)
        return {pair: length / mean for pair, length in found.items()}
    return {
        (i, j, k): cosine(vectors[i] - vectors[j], vectors[k] - vectors[j])
        for i in n
        for j in n
        for k in n
        if len({i, j, k}) == 3
    }


def dense_relation(world, term, target):
    of_questions = [[(s.mean(0), t.mean(0)) for s, t in each] for each in dense_places(world, term)]
    total = torch.zeros((), dtype=torch.float64)
    for vectors in zip(*of_questions, strict=True):
        ours = dense_relations(term.form, [student for student, _ in vectors])
        theirs = dense_relations(term.form, [other for _, other in vectors])
        differences = [ours[key] - theirs[key] for key in ours]
        parts = [huber(d) if term.form in ("distance", "angle") else d * d for d in differences]
        total = total + sum(parts) / len(parts) * len(vectors)
    return total / len(of_questions[0])


def dense_flow(world, term, target):
    of_questions, total = [*dense_places(world, term)], torch.zeros((), dtype=torch.float64)
    steps = len(of_questions[0]) - 1
    for step in range(steps):
        found = []  # per model, of each question
        for model in (0, 1):
            each = [(places[step][model], places[step + 1][model]) for places in of_questions]
            if term.form == "gram":
                found.append([torch.einsum("ta,tb->ab", a, b) / len(a) for a, b in each])
            else:
                lengths = torch.stack([(b.mean(0) - a.mean(0)).norm() for a, b in each])
                found.append([*(lengths / lengths.mean())])
        parts = [((ours - theirs) ** 2).mean() for ours, theirs in zip(*found, strict=True)]
        total = total + sum(parts) / steps
    return total


def dense_projections(model, question, layer, of) -> Tensor:
    """Queries, keys or values [tokens of the text, width] of a text of prompt and response."""
    found = []
    module = getattr(model.model.layers[layer].self_attn, f"{of}_proj")
    hook = module.register_forward_hook(lambda _, inputs, output: found.append(output[0]))
    model(torch.tensor([[*question.prompt, *question.responses[0]]]))
    hook.remove()
    return found[0]


def dense_attention(world, term, target):
    total = torch.zeros((), dtype=torch.float64)
    for question in [question.gold_only() for question in world.questions]:
        for ours, theirs in term.layers:
            for of in "qkv":
                student = dense_projections(world.student, question, ours, of)
                teacher = dense_projections(world.wide, question, theirs, of)
                heads = student.chunk(term.heads, -1), teacher.chunk(term.heads, -1)
                for found, wanted in zip(*heads, strict=True):
                    for t in range(len(found)):  # and all before it
                        p, q = (
                            (r[: t + 1] @ r[t] / r.shape[1] ** 0.5).softmax(0)
                            for r in (found, wanted)
                        )
                        kl = (q * (q / p).log()).sum()
                        total = total + kl / term.heads / len(term.layers)
    return total


DENSE = {
    "adversarial": dense_adversarial,
    "attention": dense_attention,
    "relation": dense_relation,
    "flow": dense_flow,
    "hidden": dense_hidden,
    "gold": dense_gold,
    "gold_choice": dense_gold_choice,
    "adaptive_focal": dense_adaptive_focal,
    "choice_kl": dense_choice_kl,
    "curriculum_kl": dense_curriculum_kl,
    "dirichlet": dense_dirichlet,
    "hard_choice": dense_hard_choice,
    "sparse_kl": dense_sparse_kl,
    "alm": dense_alm,
    "uld": dense_uld,
}


def source_of(world, term):
    """Return what a term is to match and what it trains beside the student."""
    signal = make(SIGNALS, term.signal)
    if not signal.is_live:
        positions = torch.arange(len(world.questions))
        stored = Stored(signal, world.stores[term.signal], Identity(), positions)
        beside = term.modules(0, (0, 0)).double()
        if term.other_tokens:
            spans = [
                right_spans(EXAMPLES, world.tokenizers[name], PROMPT)
                for name in ("tokens", term.signal)
            ]
            return StoredBeside.of_spans(stored, *spans), (), beside
        return stored, (), beside
    model = getattr(world, signal.of)
    configs = world.student.config, model.config
    layers = tuple(config.num_hidden_layers for config in configs)
    widths = tuple(config.hidden_size for config in configs)
    pairs = term.pairs(Pairing(layers, widths, None), "")
    beside = term.modules(len(pairs), widths).double()
    watched = Watched(model, {theirs for _, theirs in pairs})
    return signal.source(watched, pairs), [ours for ours, _ in pairs], beside


def widened(targets):
    """Return targets in float64, as the models compute here."""
    if isinstance(target := targets.get("term"), Target):
        wide = {"probabilities_RK": target.probabilities_RK.double()}
        return {"term": target._replace(**wide, tail_R=target.tail_R.double())}
    if isinstance(target, OtherTokens):
        names = ("probabilities_TK", "tail_T", "gold_logprob_T")
        wide = {name: getattr(target, name).double() for name in names}
        return {"term": target._replace(**wide)}
    return targets


@pytest.mark.parametrize("name", OF_TERMS)
def test_value_and_gradient_of_a_term_are_the_dense_ones(world, name):
    term = make(TERMS, name)
    sources, places, beside = {}, (), adapted(term.modules(0, (0, 0)))
    if term.signal:
        sources["term"], places, beside = source_of(world, term)
    world = replace(world, projectors=beside)
    player = Player(world.student, {"term": term}, sources, {"term": beside}, places)
    questions = world.questions
    if not term.needs.choices:
        questions = [question.gold_only() for question in questions]
    batch = pack(questions, range(len(questions)))
    targets = widened(player.targets(batch))
    trained = [*world.student.parameters(), *beside.parameters()]

    player.zero_grad()
    found = player(batch, targets)["term"]
    found.total.backward()
    gradients = [parameter.grad.clone() for parameter in trained if parameter.grad is not None]
    player.zero_grad()
    expected = DENSE[term.kind](world, term, targets.get("term"))
    expected.backward()
    assert found.units == sum(map(term.count, questions))
    torch.testing.assert_close(found.total, expected, rtol=0, atol=1e-9)
    reached = [parameter.grad for parameter in trained if parameter.grad is not None]
    for gradient, wanted in zip(gradients, reached, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-9)


PLACES = {"hidden": [[0, 0], [1, 1], [2, 2]], "attention": [[0, 0], [1, 1]]}
OF_STATES = [
    *({"kind": "hidden", "distance": distance} for distance in ("cosine", "mse")),
    *({"kind": "relation", "form": form} for form in FORMS),
    *({"kind": "flow", "form": form} for form in ("gram", "length")),
    {"kind": "attention"},
]


@pytest.mark.parametrize("settings", OF_STATES, ids=lambda settings: "-".join(settings.values()))
def test_a_model_has_nothing_to_learn_from_its_own_states(world, settings):
    kind = TERMS[settings["kind"]]
    layers = PLACES.get(settings["kind"], PLACES["hidden"])
    term = kind.model_validate({**settings, "from": "hidden_states", "layers": layers})
    source, places, beside = source_of(world, term)
    batch = pack(world.questions, range(4))  # with all their choices
    for model, is_zero in ((world.teacher, True), (world.student, False)):
        player = Player(model, {"term": term}, {"term": source}, {"term": beside}, places)
        found = player(batch, player.targets(batch))["term"]
        assert (abs(found.total.item()) < 1e-12 * found.units) is is_zero
        assert found.units == sum(map(term.count, world.questions))


@pytest.mark.parametrize("name", [name for name in OF_TERMS if name not in RELATING])
def test_the_cut_into_micro_batches_does_not_count(world, name):
    term = make(TERMS, name)
    sources, places, beside = {}, (), adapted(term.modules(0, (0, 0)))
    if term.signal:
        sources["term"], places, beside = source_of(world, term)
    player = Player(world.student, {"term": term}, sources, {"term": beside}, places)

    def total(index):
        batch = pack(world.questions, index)
        found = player(batch, widened(player.targets(batch)))["term"]
        return torch.stack([found.total, torch.tensor(found.units, dtype=torch.float64)])

    whole = total([0, 1, 2, 3])
    for parts in ([[0], [1], [2], [3]], [[3, 1], [0, 2]]):
        found = torch.stack([total(part) for part in parts]).sum(0)
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", RELATING)
def test_relations_are_those_within_each_micro_batch(world, name):
    """A step's loss is the mean over its micro-batches, by their questions, so their cut counts."""
    term = make(TERMS, name)
    source, places, _ = source_of(world, term)
    player = Player(world.student, {"term": term}, {"term": source}, {}, places)

    def total(index):
        batch = pack([world.questions[i].gold_only() for i in index], range(len(index)))
        return player(batch, player.targets(batch))["term"].total.item()

    assert total([3, 1, 0, 2]) == pytest.approx(total([0, 1, 2, 3]))
    assert total([0, 1, 2]) + total([3]) == pytest.approx(total([0, 1, 2]))  # alone: no relations
    assert total([0, 1, 2]) != pytest.approx(total([0, 1, 2, 3]))


def test_an_instance_relationship_graph_is_a_sum_of_three_terms(world):
    """As docs/method.md says: vertices, edges, and their change from one place to the next."""
    shown = {
        "vertices": {"kind": "hidden", "from": "hidden_states", "distance": "mse"},
        "edges": {"kind": "relation", "from": "hidden_states", "form": "distance"},
        "changes": {"kind": "flow", "from": "hidden_states", "form": "length"},
    }
    learn, sources, beside, places, expected = {}, {}, {}, [], 0.0
    batch = pack([question.gold_only() for question in world.questions], range(4))
    for name, settings in shown.items():
        learn[name] = TERMS[settings["kind"]].model_validate(settings)
        sources[name], ours, beside[name] = source_of(world, learn[name])
        places += [place for place in ours if place not in places]
        alone = Player(world.student, {name: learn[name]}, {name: sources[name]}, beside, ours)
        expected += alone(batch, alone.targets(batch))[name].total
    player = Player(world.student, learn, sources, beside, places)
    found = player(batch, player.targets(batch))
    torch.testing.assert_close(sum(each.total for each in found.values()), expected)


def test_terms_that_nobody_uses_leave_no_hooks(world):
    """A step without terms on states watches none, and one with them stops when it is over."""
    world = replace(world, student=float64_model(world.size, seed=0))  # transformers leaves hooks
    modules, hooked = [*world.student.model.layers.modules()], []

    def hooks() -> int:
        return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in modules)

    world.student.model.norm.register_forward_hook(lambda *_: hooked.append(hooks()))
    for name in ("choice_kl", "hidden"):
        term = make(TERMS, name)
        source, places, beside = source_of(world, term)
        player = Player(world.student, {"term": term}, {"term": source}, {"term": beside}, places)
        batch = pack(world.questions, range(4))
        player(batch, player.targets(batch))
    assert hooked[0] == 0 and hooked[-1] > 0 and hooks() == 0
