"""What reading a signal costs, against Python lists in Parquet and the step that consumes it.

- `open_seconds`, `open_rss_mb`: time to open a store of ten million tokens, including checksums,
  and the memory that this adds to a process with its libraries loaded.
- `rows_per_second`: records read per second. `read_vs_lists`: speed over that of reading the same
  records through Python lists from Parquet's list columns, for the same random batches.
- `read_share_of_step`: time to read a batch's records over that of the forward and backward pass on
  it, with the fetched base model.

Prints one JSON line; the last figure needs the stages fetch, prepare and model-base.

Run as  python -m benchmarks.store
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from firstkd.signals.knowledge import Knowledge
from firstkd.signals.select import TopK
from firstkd.signals.store import SignalStore, write_manifest, write_shard
from firstkd.signals.tokens import Tokens
from firstkd.signals.top_k import packed

TOKENS_PER_EXAMPLE = 20
EXAMPLES_PER_SHARD = 4096
SHARDS = 123  # 10,076,160 tokens
TOP_K, VOCABULARY = 5, 49_152
SIGNAL = Tokens(kind="tokens", of="teacher", select=TopK(kind="top_k", k=TOP_K))
BATCHES, BATCH = 50, 32


def random_block(number: int) -> Knowledge:
    generator = torch.Generator().manual_seed(number)
    records = TOKENS_PER_EXAMPLE * EXAMPLES_PER_SHARD
    logprobs = torch.randn(records, TOP_K + 2, generator=generator).log_softmax(-1)
    return Knowledge(
        top_ids=torch.randint(VOCABULARY, (records, TOP_K), generator=generator),
        top_logprobs=logprobs[:, :TOP_K],
        log_tail_mass=logprobs[:, TOP_K],
        gold_logprob=logprobs[:, 0],
        tail_bends=torch.empty(records, 0),
        vocabulary_size=VOCABULARY,
    )


def write_store(folder: Path) -> None:
    folder.mkdir()
    layout, facts = SIGNAL.layout(VOCABULARY), SIGNAL.facts(VOCABULARY)
    counts = torch.full((EXAMPLES_PER_SHARD,), TOKENS_PER_EXAMPLE, dtype=torch.int32)
    for number in range(SHARDS):
        keys = torch.arange(EXAMPLES_PER_SHARD) + number * EXAMPLES_PER_SHARD
        write_shard(folder, number, layout, packed(random_block(number), counts), keys.tolist())
    write_manifest(folder, layout, SIGNAL.kind, identity={}, **facts)


def write_lists(path: Path) -> None:
    """One example per row, as written by tools that keep lists of lists."""
    knowledge = random_block(0)
    shape = (EXAMPLES_PER_SHARD, TOKENS_PER_EXAMPLE, TOP_K)
    columns = {
        "top_ids": knowledge.top_ids.view(shape).tolist(),
        "top_logprobs": knowledge.top_logprobs.view(shape).tolist(),
        "tail_mass": knowledge.tail_mass.view(shape[:2]).tolist(),
    }
    pq.write_table(pa.table(columns), path)


def random_batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(EXAMPLES_PER_SHARD, (BATCH,), generator=generator) for _ in range(BATCHES)
    ]


def store_seconds(store: SignalStore, spread: int) -> float:
    """Seconds per batch; its examples come from all over the store if `spread` is SHARDS."""
    batches = [batch * spread for batch in random_batches()]
    started = time.perf_counter()
    for batch in batches:
        SIGNAL.decisions(store.of_examples(batch), store.facts)
    return (time.perf_counter() - started) / BATCHES


def list_seconds(path: Path) -> float:
    table = pq.read_table(path, memory_map=True)
    started = time.perf_counter()
    for batch in random_batches():
        rows = table.take(batch.numpy())
        for column in table.column_names:
            torch.cat([torch.tensor(value) for value in rows[column].to_pylist()])
    return (time.perf_counter() - started) / BATCHES


def measure_opening(folder: Path) -> None:
    before = _resident_mb()
    started = time.perf_counter()
    SignalStore(folder)
    seconds = time.perf_counter() - started
    print(json.dumps({"open_seconds": round(seconds, 3), "open_rss_mb": _resident_mb() - before}))


def _resident_mb() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) // 1024


def step_seconds(root: Path) -> float:
    """Seconds of one forward and backward pass on a batch of training questions."""
    from firstkd.data.examples import read_examples
    from firstkd.data.packing import batches_by_length, pack
    from firstkd.data.prompts import encode
    from firstkd.models.folders import load_model, load_tokenizer
    from firstkd.settings import load_settings
    from firstkd.terms.gold import Gold
    from firstkd.train.player import Player

    settings = load_settings(root / "params.yaml")
    torch.set_num_threads(settings.runtime.threads)
    tokenizer = load_tokenizer(root / "data/model/base")
    examples = read_examples(root / "data/prepare/train.parquet")[: 4 * BATCH]
    questions = [q.gold_only() for q in encode(examples, tokenizer, settings.prompt)]
    model = load_model(root / "data/model/base", "bf16")
    player = Player(model, {"gold": Gold(kind="gold")}, {}).train()
    batch = pack(questions, batches_by_length(questions, BATCH)[1])

    def step() -> None:
        found = player(batch, {})["gold"]
        (found.total / found.units).backward()

    step()
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        store_folder, lists = Path(folder) / "store", Path(folder) / "lists.parquet"
        write_store(store_folder)
        write_lists(lists)
        command = [sys.executable, "-m", "benchmarks.store", str(store_folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        store = SignalStore(store_folder)
        # the lists hold one shard, so the comparison uses one too; the step reads from all of them
        found["read_vs_lists"] = round(list_seconds(lists) / store_seconds(store, spread=1), 1)
        seconds = store_seconds(store, spread=SHARDS)
    found["rows_per_second"] = round(BATCH * TOKENS_PER_EXAMPLE / seconds)
    found["read_share_of_step"] = round(seconds / step_seconds(Path(".")), 5)
    print(json.dumps(found))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        measure_opening(Path(sys.argv[1]))
    else:
        main()
