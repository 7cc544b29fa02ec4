"""Every kind of signal and term on another device than the CPU, against the CPU.

On a GPU where there is one (`make test-gpu`); everywhere on a device that is only pretended, where
what mixes devices fails as well.
"""

from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from firstkd.data.examples import example_key
from firstkd.data.packing import pack
from firstkd.data.prompts import encode
from firstkd.models.scoring import score_questions
from firstkd.signals.capture import Capture
from firstkd.signals.sparse import running_sum
from firstkd.signals.store import SignalStore
from firstkd.train.distributed import Ranks
from firstkd.train.player import Player
from tests.firstkd.data.tokenizers_of_kinds import byte_level
from tests.firstkd.test_kinds import (
    EXAMPLES,
    OF_TERMS,
    PROMPT,
    SETTINGS,
    SIGNALS,
    SPARSE,
    TERMS,
    float64_model,
    make,
    make_world,
    source_of,
    widened,
)
from tests.pretend import ELSEWHERE, PretendDevice, without_inference_mode

CAPTURED = ("choices", "tokens", "hidden_states", "other_tokens", *SPARSE)


@dataclass(frozen=True)
class Place:
    device: torch.device
    here: AbstractContextManager[object]
    """Within which there is such a device."""

    def moved(self, module: nn.Module) -> nn.Module:
        """Return a copy of a module on the device."""
        moved = deepcopy(module)
        for part in moved.modules():
            for name, weight in list(part.named_parameters(recurse=False)):
                setattr(part, name, nn.Parameter(weight.detach().to(self.device)))
            for name, buffer in list(part.named_buffers(recurse=False)):
                setattr(part, name, buffer.to(self.device))
        return moved


GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


@pytest.fixture(params=["pretended", pytest.param("cuda", marks=GPU)])
def place(request, monkeypatch):
    if request.param == "cuda":
        return Place(torch.device("cuda"), nullcontext())
    without_inference_mode(monkeypatch)
    return Place(ELSEWHERE, PretendDevice())


@pytest.fixture(scope="module")
def world(tiny_model, tmp_path_factory):
    return make_world(tiny_model, tmp_path_factory.mktemp("stores"))


def close(found, expected):
    torch.testing.assert_close(found.detach().cpu(), expected.detach(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", CAPTURED)
def test_a_signal_is_captured_as_on_the_cpu(world, place, name, tmp_path):
    signal = make(SIGNALS, name)
    model, questions = world.teacher, world.questions
    if name == "other_tokens":
        tokenizer = byte_level()
        model = float64_model(len(tokenizer), seed=3)
        questions = encode(EXAMPLES, tokenizer, PROMPT)
    keys = [example_key(example) for example in EXAMPLES]
    found = {}
    for where, there in (("cpu", None), ("device", place)):
        capture = Capture(signal, model.config.vocab_size, SETTINGS, Ranks(), 16)
        with there.here if there else nullcontext():
            own = there.moved(model) if there else model
            capture.write(own, questions, keys, tmp_path / where)
        capture.finish(tmp_path / where, {})
        found[where] = SignalStore(tmp_path / where).whole()
    assert torch.equal(found["device"].counts, found["cpu"].counts)
    for column, expected in found["cpu"].columns.items():
        torch.testing.assert_close(
            found["device"].columns[column], expected, rtol=2e-3, atol=1e-6, equal_nan=True
        )  # float16 is stored


def test_choices_are_scored_as_on_the_cpu(world, place):
    model = deepcopy(world.teacher).float()
    expected = score_questions(model, world.questions, 2)
    with place.here:
        found = score_questions(place.moved(model), world.questions, 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OF_TERMS)
def test_value_and_gradient_of_a_term_are_the_cpus(world, place, name):
    term = make(TERMS, name)
    questions = world.questions
    if not term.needs.choices:
        questions = [question.gold_only() for question in questions]
    batch = pack(questions, range(len(questions)))
    totals, gradients = [], []
    for there in (None, place):
        with there.here if there else nullcontext():
            own = world
            if there:
                models = {n: there.moved(getattr(world, n)) for n in ("student", "teacher", "wide")}
                own = replace(world, **models)
            torch.manual_seed(0)
            sources, places, beside = {}, (), term.modules(0, (0, 0))
            if term.signal:
                sources["term"], places, beside = source_of(own, term)
            beside = there.moved(beside) if there else beside
            player = Player(own.student, {"term": term}, sources, {"term": beside}, places)
            moved = batch.to(there.device) if there else batch
            player.zero_grad()
            found = player(moved, widened(player.targets(moved)))["term"]
            found.total.backward()
            totals.append(found.total)
            gradients.append([p.grad.cpu() for p in player.parameters() if p.grad is not None])
            player.zero_grad()
            close(totals[-1], totals[0])
    for found, expected in zip(*gradients[::-1], strict=True):
        close(found, expected)


def test_what_mixes_devices_or_cannot_repeat_fails_on_the_pretended_one():
    with PretendDevice():
        there = torch.rand(2, 3).to(ELSEWHERE)
        for mix in (
            lambda: there + torch.ones(3),
            lambda: there.index_add(0, torch.tensor([0]), there[:1]),
            lambda: torch.ones(2, 3)[there > 0],
            lambda: there.numpy(),
            lambda: there.cumsum(-1),
        ):
            with pytest.raises(RuntimeError):
                mix()
        assert (there + 1)[torch.tensor([0])].cpu().numpy().shape == (1, 3)


def test_running_sums_are_the_cpus(place):
    values = torch.rand(3, 1000, dtype=torch.float64)
    with place.here:
        found = running_sum(values.to(place.device))
    close(found, values.cumsum(-1))
