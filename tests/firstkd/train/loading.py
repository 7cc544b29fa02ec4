"""What loading a model takes of each process's memory, under ZeRO 3.

Run as  torchrun --nproc-per-node 2 -m tests.firstkd.train.loading MODEL TINY OUT

The weights that a process holds afterwards count, and the peak of its anonymous memory before:
pages of the mapped file are not in it, nor are weights that are left there on a CPU.
"""

import re
import sys
import threading
from pathlib import Path

from safetensors.torch import save_file

from firstkd.terms.gold import Gold
from firstkd.train.distributed import join_ranks, leave_ranks
from firstkd.train.engine import end_engine, load_to_train, make_engine
from firstkd.train.player import Player
from tests.firstkd.train.trainings import changed


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s*(\d+) kB", status)[1]) * 1024


class Peak(threading.Thread):
    def run(self) -> None:
        self.bytes, self.over = 0, threading.Event()
        while not self.over.wait(0.001):
            self.bytes = max(self.bytes, anonymous_bytes())


def main(folder: Path, tiny: Path, out: Path) -> None:
    ranks = join_ranks()
    settings, machine = changed(precision="bf16", zero_stage=3, micro_batches_per_step=2)
    load_to_train(tiny, settings, machine, ranks)  # loads the modules, which do not count
    before, peak = anonymous_bytes(), Peak(daemon=True)
    peak.start()
    model = load_to_train(folder, settings, machine, ranks)
    peak.over.set()
    peak.join()
    held = sum(getattr(weight, "ds_tensor", weight).nbytes for weight in model.parameters())
    (out / f"peak-{ranks.rank}").write_text(str(max(held, peak.bytes - before)))
    end_engine(
        make_engine(Player(model, {"gold": Gold(kind="gold")}, {}), settings, machine, ranks), ranks
    )
    if ranks.is_first:
        assert all(weight.device.type == "cpu" for weight in model.parameters())
        weights = {name: weight.contiguous() for name, weight in model.named_parameters()}
        save_file(weights, out / "gathered.safetensors")
    ranks.barrier()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
    leave_ranks()
