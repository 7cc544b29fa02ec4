"""Training that is stopped and goes on: the same bytes as if nothing had happened."""

import logging
import os
import shutil
import signal

import pytest
import torch

from firstkd.errors import ArtifactError
from firstkd.models.folders import load_model
from firstkd.signals.live import Watched
from firstkd.terms.gold import Gold
from firstkd.terms.hidden import Hidden
from firstkd.train.checkpoints import Checkpoints
from firstkd.train.distributed import Ranks
from firstkd.train.player import Player
from firstkd.train.stopping import stopping
from tests.firstkd.train.trainings import trained
from tests.firstkd.train.watching import STATES

STEPS = 20


def stopped_in_step(step, tiny_model, folder, checkpoints, by=signal.SIGTERM, **changes):
    """Train until a signal comes in the middle of a step."""
    calls = []

    class Interrupted(Gold):
        def __call__(self, view, name, target):
            calls.append(name)
            if len(calls) == step:
                os.kill(os.getpid(), by)
            return super().__call__(view, name, target)

    with pytest.raises(SystemExit) as stopped:
        learn = {"gold": Interrupted(kind="gold")}
        trained(tiny_model, folder, checkpoints, learn=learn, **changes)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert len(calls) == step  # the step was finished, and no other begun


def same(first, second):
    assert first[1] == second[1]
    for a, b in zip(first[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "changes",
    [
        {"zero_stage": 0, "precision": "bf16"},
        {"zero_stage": 1},
        {"zero_stage": 2, "precision": "bf16"},
        {"zero_stage": 3, "precision": "bf16"},
        {"zero_stage": 3, "cpu_offload": True},
    ],
)
def test_sigterm_saves_and_the_next_run_goes_on_bit_for_bit(tiny_model, tmp_path, changes):
    undisturbed = trained(tiny_model, tmp_path, **changes)
    checkpoints = tmp_path / "checkpoints"
    stopped_in_step(7, tiny_model, tmp_path, checkpoints, **changes)
    stopped_in_step(3, tiny_model, tmp_path, checkpoints, **changes)
    assert (checkpoints / "step-00000010").is_dir()
    same(undisturbed, trained(tiny_model, tmp_path, checkpoints, **changes))
    live = (tmp_path / "stage/curve.jsonl").read_text().splitlines()
    assert len(live) == STEPS


def test_a_first_ctrl_c_saves_too_and_a_second_ends_at_once(tiny_model, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    stopped_in_step(7, tiny_model, tmp_path, checkpoints, by=signal.SIGINT)
    assert (checkpoints / "step-00000007").is_dir()
    with pytest.raises(KeyboardInterrupt), stopping(held=True, ranks=Ranks()) as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.is_set()
        os.kill(os.getpid(), signal.SIGINT)
    with stopping(held=False, ranks=Ranks()), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    with stopping(held=True, ranks=Ranks(0, 2)) as asked:  # torchrun may send the second one
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        assert asked.is_set()


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_weights_that_no_gradient_reaches_are_as_they_began(tiny_model, tmp_path, zero_stage):
    """A term below the top layer leaves all above it alone."""

    def below(model):
        term = Hidden.model_validate({"kind": "hidden", "from": "states", "layers": [(1, 1)]})
        watched = Watched(load_model(tiny_model, "fp32"), [1])
        source = STATES.source(watched, [(1, 1)])
        beside = {"states": term.modules(1, (32, 32))}
        return Player(model, {"states": term}, {"states": source}, beside, [1])

    # sharded, a weight without a gradient gets one of 0, and AdamW would let it decay
    changes = {"player": below, "precision": "fp32", "zero_stage": zero_stage, "weight_decay": 0.0}
    undisturbed = trained(tiny_model, tmp_path, **changes)
    checkpoints = tmp_path / "checkpoints"
    trained(tiny_model, tmp_path, checkpoints, checkpoint_steps=6, **changes)
    shutil.rmtree(checkpoints / "step-00000018")
    same(undisturbed, trained(tiny_model, tmp_path, checkpoints, **changes))
    began, found = load_model(tiny_model, "fp32").model, undisturbed[0].model
    is_same = [
        all(map(torch.equal, before.parameters(), after.parameters()))
        for before, after in zip(began.layers, found.layers, strict=True)
    ]
    assert is_same == [False] + [True] * (len(is_same) - 1)


def test_saving_changes_nothing_and_keeps_only_the_newest(tiny_model, tmp_path):
    undisturbed = trained(tiny_model, tmp_path)
    same(undisturbed, trained(tiny_model, tmp_path, tmp_path / "saved", checkpoint_steps=6))
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "step-00000012",
        "step-00000018",
    ]


@pytest.mark.parametrize("damaged", ["rank-0.safetensors", "state.json", "sha256.json"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tiny_model, tmp_path, caplog, damaged):
    saved = tmp_path / "saved"
    undisturbed = trained(tiny_model, tmp_path, saved, checkpoint_steps=6)
    newest = saved / "step-00000018"
    content = bytearray((newest / damaged).read_bytes())
    content[len(content) // 2] ^= 1
    (newest / damaged).write_bytes(content)
    with caplog.at_level(logging.INFO):
        same(undisturbed, trained(tiny_model, tmp_path, saved, checkpoint_steps=6))
    assert "damaged checkpoint; using the one before it" in caplog.text
    assert "step-00000018" in caplog.text
    assert "resuming after step 12 of 20" in caplog.text


def test_what_a_kill_left_half_written_is_no_checkpoint(tiny_model, tmp_path):
    saved = tmp_path / "saved"
    half = saved / ".step-00000006.tmp"
    half.mkdir(parents=True)
    (half / "rank-0.safetensors").write_bytes(b"half")
    assert Checkpoints(saved, Ranks()).newest() is None
    assert not half.exists()


def test_a_full_disk_is_one_clear_error_and_leaves_the_checkpoint_before(
    tiny_model, tmp_path, small_disk
):
    with pytest.raises(ArtifactError, match=r"cannot write .*step-00000003: .*[Nn]o space left"):
        trained(tiny_model, tmp_path, small_disk / "saved", checkpoint_steps=3)
    assert list((small_disk / "saved").iterdir()) == []
