"""What capturing a signal costs, against the forward pass that it needs and the usual way.

Measured on the fetched base model and the training questions, in one run:

- `capture_vs_forward`: throughput of capture (including packing, top-k and shards on disk) over
  that of the same batches, packed in advance, through the bare model with its head on the
  supervised positions. Uses right answers of a few tokens; `_open_text` supervises every token,
  and so does `_tail_nodes`, with eight tail nodes.
- `capture_vs_usual`: throughput over that of padded batches in the data's order, full logits,
  float32 log-softmax and top-k. `peak_memory_vs_usual`: ratio of the memory that each takes beyond
  the loaded model.
- `choices_vs_separate`: throughput of scoring all choices after one pass over the prompt, over that
  of a sequence for each; `largest_score_difference` is between the two, in float32.
- `bytes_per_token`: size of the shards' records; each example takes 12 bytes more for its key and
  count.

Prints one JSON line; needs the stages fetch, prepare and model-base.

Run as  python -m benchmarks.capture
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from benchmarks.models import CAPTURE, DEVICE, PRECISION, peak_growth_mb, seconds_of
from firstkd.data.examples import read_examples
from firstkd.data.packing import batches_by_length, pack
from firstkd.data.prompts import Question, encode
from firstkd.models.folders import load_model, load_tokenizer
from firstkd.models.scoring import ResponseScorer, score_questions
from firstkd.settings import load_settings
from firstkd.signals.capture import Capture
from firstkd.signals.select import TopK
from firstkd.signals.tokens import Tokens
from firstkd.train.distributed import Ranks

ROOT = Path(".")
QUESTIONS = 128
REPEATS = 3
TOP_K = 5
BATCH = 32


def real_questions() -> list[Question]:
    tokenizer = load_tokenizer(ROOT / "data/model/base")
    examples = read_examples(ROOT / "data/prepare/train.parquet")[:QUESTIONS]
    return encode(examples, tokenizer, load_settings(ROOT / "params.yaml").prompt)


def open_text(question: Question) -> Question:
    """Return the question's own text, with every token to be predicted."""
    assert question.gold is not None
    text = question.prompt + question.responses[question.gold]
    return Question(question.id, text[:1], [text[1:]], 0)


def run_capture(
    model: PreTrainedModel, questions: Sequence[Question], tail_nodes: Literal[0, 8] = 0
) -> int:
    """Return the bytes of the shards."""
    signal = Tokens(
        kind="tokens", of="base", select=TopK(kind="top_k", k=TOP_K), tail_nodes=tail_nodes
    )
    settings = CAPTURE.model_copy(update={"micro_batch_size": BATCH, "shard_examples": QUESTIONS})
    with tempfile.TemporaryDirectory() as folder:
        run = Capture(signal, model.config.vocab_size, settings, Ranks())
        run.write(model, questions, range(len(questions)), Path(folder))
        return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))


def bytes_per_token(
    model: PreTrainedModel, questions: Sequence[Question], tail_nodes: Literal[0, 8]
) -> float:
    """Bytes of the records, without the 12 for each example's key and count."""
    stored = run_capture(model, questions, tail_nodes) - 12 * len(questions)
    return round(stored / sum(len(question.responses[0]) for question in questions), 1)


@torch.inference_mode()
def run_forward(scorer: ResponseScorer, batches: Sequence[Any]) -> None:
    for batch in batches:
        scorer.hidden(batch.to(DEVICE)) @ scorer.head.weight.T


@torch.inference_mode()
def run_usual(model: PreTrainedModel, questions: Sequence[Question]) -> None:
    for start in range(0, len(questions), BATCH):
        rows = [q.prompt + q.responses[0] for q in questions[start : start + BATCH]]
        longest = max(map(len, rows))
        padded = [row + [0] * (longest - len(row)) for row in rows]
        masked = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
        ids, mask = (torch.tensor(values, device=DEVICE) for values in (padded, masked))
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        logits.float().log_softmax(-1).topk(TOP_K)


def ratio(ours: Callable[[], Any], other: Callable[[], Any]) -> float:
    """Throughput of `ours` over the other's: the median over alternating runs."""
    ours(), other()
    found = []
    for _ in range(REPEATS):
        seconds = [seconds_of(task) for task in (ours, other)]
        found.append(seconds[1] / seconds[0])
    return round(median(found), 3)


def capture_vs_forward(
    model: PreTrainedModel, questions: Sequence[Question], tail_nodes: Literal[0, 8] = 0
) -> float:
    scorer = ResponseScorer(model).eval()
    batches = [pack(questions, index) for index in batches_by_length(questions, BATCH)]
    return ratio(
        lambda: run_capture(model, questions, tail_nodes), lambda: run_forward(scorer, batches)
    )


def separate(questions: Sequence[Question]) -> list[Question]:
    return [Question(q.id, q.prompt, [response], 0) for q in questions for response in q.responses]


@torch.inference_mode()
def separate_scores(model: PreTrainedModel, questions: Sequence[Question]) -> torch.Tensor:
    scorer = ResponseScorer(model).eval()
    scores = torch.empty(len(questions))
    for index in batches_by_length(questions, BATCH):
        batch = pack(questions, index).to(DEVICE)
        logprobs = scorer(batch)[0]
        sums = logprobs.new_zeros(len(index)).index_add(0, batch.response_of_M, logprobs)
        scores[index] = (sums / batch.response_of_M.bincount(minlength=len(index))).cpu()
    return scores


def peak_memory(task: str) -> float:
    """Memory in MB that a task takes beyond the loaded model, in a separate process."""
    command = [sys.executable, "-m", "benchmarks.capture", task]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def measure_memory(task: str) -> None:
    model = load_model(ROOT / "data/model/base").eval()
    questions = [question.gold_only() for question in real_questions()]
    run = run_usual if task == "usual" else run_capture
    print(peak_growth_mb(lambda: run(model, questions)))


def main() -> None:
    torch.set_num_threads(load_settings(ROOT / "params.yaml").runtime.threads)
    model = load_model(ROOT / "data/model/base").eval()
    questions = real_questions()
    short = [question.gold_only() for question in questions]
    text = [open_text(question) for question in short]
    found: dict[str, float] = {
        "capture_vs_forward": capture_vs_forward(model, short),
        "capture_vs_forward_open_text": capture_vs_forward(model, text),
        "capture_vs_forward_tail_nodes": capture_vs_forward(model, text, tail_nodes=8),
        "capture_vs_usual": ratio(
            lambda: run_capture(model, short), lambda: run_usual(model, short)
        ),
        "choices_vs_separate": ratio(
            lambda: score_questions(model, questions[:64], BATCH),
            lambda: separate_scores(model, separate(questions[:64])),
        ),
        "bytes_per_token": bytes_per_token(model, text, tail_nodes=0),
        "bytes_per_token_tail_nodes": bytes_per_token(model, text, tail_nodes=8),
        "peak_memory_vs_usual": round(peak_memory("capture") / peak_memory("usual"), 3),
    }
    exact = load_model(ROOT / "data/model/base", "fp32").eval()
    together = score_questions(exact, questions[:32], BATCH)
    apart = separate_scores(exact, separate(questions[:32]))
    difference = (together[together.isfinite()] - apart).abs().max()
    found["largest_score_difference"] = float(f"{difference:.1e}")
    print(json.dumps({"precision": PRECISION, **found}))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        measure_memory(sys.argv[1])
    else:
        main()
