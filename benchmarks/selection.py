"""What it costs to keep a few tokens per position: bytes, and errors in what the student learns.

Measures, for each way to keep tokens, the bytes per token in a store, and how far the gradient with
respect to the student's logits lies from that of KL(teacher ‖ student) over the whole vocabulary,
as a share of the latter: `error` for one capture, `bias` for the mean over many, in which chance
cancels out.

Prints a table, then one JSON line. Without models it uses two kinds of made-up distributions:
`peaked`, as on the answers of a fine-tuned teacher, and `flat`, as on open text. With the folders
of a teacher and a student it uses the answers of data/prepare/test.parquet.

Run as  python -m benchmarks.selection [TEACHER STUDENT]
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from firstkd.data.examples import read_examples
from firstkd.data.packing import batches_by_length, pack
from firstkd.data.prompts import encode
from firstkd.models.folders import load_model, load_tokenizer
from firstkd.models.scoring import ResponseScorer
from firstkd.settings import load_settings
from firstkd.signals.knowledge import Knowledge
from firstkd.signals.select import AnySelect
from firstkd.signals.store import Records
from firstkd.signals.tokens import Tokens
from firstkd.signals.top_k import packed
from firstkd.terms.divergences import most_uncertain, sparse_kl, without_absent

TOP_5 = {"kind": "top_k", "k": 5}
WAYS: dict[str, dict[str, Any]] = {
    "top-5, tail as one bin": {"select": TOP_5},
    "top-5, renormalised": {"select": TOP_5, "tail": "renormalise"},
    "top-p 0.9, at most 20": {"select": {"kind": "top_p", "p": 0.9, "k": 20}},
    "top-p 0.99, at most 64": {"select": {"kind": "top_p", "p": 0.99, "k": 64}},
    "5 draws": {"select": {"kind": "sample", "draws": 5}},
    "12 draws": {"select": {"kind": "sample", "draws": 12}},
    "50 draws": {"select": {"kind": "sample", "draws": 50}},
    "top-5 at the student's least sure fifth": {"select": TOP_5, "share": 0.2},
}
POSITIONS, VOCABULARY = 100, 8_000
CAPTURES = 50
"""Captures that are averaged for the bias."""
QUESTIONS = 40


def measured(
    teacher_RV: Tensor,
    student_RV: Tensor,
    select: dict[str, Any],
    tail: str = "ghost",
    share: float = 1.0,
) -> dict[str, float]:
    """Return bytes, error and bias of one way to keep the teacher's log-probabilities."""
    signal = Tokens(
        kind="tokens", of="teacher", select=TypeAdapter(AnySelect).validate_python(select)
    )
    draw, whole_RV = torch.Generator().manual_seed(0), student_RV.exp() - teacher_RV.exp()
    found = []
    for _ in range(CAPTURES if signal.is_sampled else 1):
        uniform = torch.rand(len(teacher_RV), generator=draw, dtype=torch.float64)
        stored, size = as_stored(signal, signal.select.kept(teacher_RV.clone(), 0, uniform))
        found.append(gradient(stored, student_RV, tail, share))

    def distance(gradient_RV: Tensor) -> float:
        return float((gradient_RV - whole_RV).norm() / whole_RV.norm())

    mean_RV = torch.stack(found).mean(0)
    return {"bytes": size / len(teacher_RV), "error": distance(found[0]), "bias": distance(mean_RV)}


def as_stored(signal: Tokens, knowledge: Knowledge) -> tuple[Knowledge, int]:
    """Return what a store gives back, and the bytes that it takes there."""
    records = packed(knowledge, torch.tensor([len(knowledge)]))
    size, columns = 0, {}
    for name, column in signal.layout(knowledge.vocabulary_size).items():
        kept = records.columns["top_kept"]
        on_disk = column.to_disk(records.columns[name].to(column.dtype), kept)
        size += on_disk.nbytes
        columns[name] = column.from_disk(on_disk, kept, torch.arange(len(kept)))
    facts = signal.facts(knowledge.vocabulary_size)
    return signal.decisions(Records(columns, records.counts), facts), size


def gradient(stored: Knowledge, student_RV: Tensor, tail: str, share: float) -> Tensor:
    """Return the gradient [R, V] of `sparse_kl` with respect to the student's logits."""
    logits_RV = student_RV.clone().requires_grad_()
    logprobs_RV = logits_RV.log_softmax(-1)
    wanted_RK, of_tail_R = stored.top_logprobs.exp().to(logits_RV), stored.tail_mass.to(logits_RV)
    head_RK = logprobs_RV.gather(-1, stored.top_ids)
    log_tail_R = logprobs_RV.scatter(-1, stored.top_ids, -torch.inf).logsumexp(-1)
    candidates = without_absent(wanted_RK, head_RK, log_tail_R)
    losses_R = sparse_kl(wanted_RK, of_tail_R, *candidates, tail)
    if share < 1:
        entropy_R = -(logprobs_RV.exp() * logprobs_RV).sum(-1)
        one_text, limit = torch.zeros(len(entropy_R), dtype=torch.int64), share * len(entropy_R)
        losses_R = losses_R[most_uncertain(entropy_R, one_text, torch.tensor([int(limit)]))]
    (found,) = torch.autograd.grad(losses_R.sum(), logits_RV)
    return found


def made_up(sharpness: float) -> tuple[Tensor, Tensor]:
    """Return log-probabilities [R, V] of a teacher and of a student that differs from it in
    places: p ∝ rank^(−sharpness), so a large sharpness leaves little to the tail."""
    draw = torch.Generator().manual_seed(0)
    log_rank_V = torch.arange(1, VOCABULARY + 1).double().log()
    noise_RV = torch.randn(POSITIONS, VOCABULARY, generator=draw, dtype=torch.float64)
    order_RV = torch.rand(POSITIONS, VOCABULARY, generator=draw).argsort(-1)
    logits_RV = (-sharpness * log_rank_V).expand(POSITIONS, -1).gather(-1, order_RV)
    return logits_RV.log_softmax(-1), (0.8 * logits_RV + noise_RV).log_softmax(-1)


@torch.inference_mode()
def of_models(teacher: Path, student: Path, root: Path = Path(".")) -> tuple[Tensor, Tensor]:
    """Return both models' log-probabilities [R, V] at the tokens of right answers."""
    settings = load_settings(root / "params.yaml")
    torch.set_num_threads(settings.runtime.threads)
    examples = read_examples(root / "data/prepare/test.parquet")[:QUESTIONS]
    questions = [q.gold_only() for q in encode(examples, load_tokenizer(teacher), settings.prompt)]
    found = []
    for folder in (teacher, student):
        scorer = ResponseScorer(load_model(folder, "fp32")).eval()
        batches = [pack(questions, index) for index in batches_by_length(questions, 16)]
        rows = [scorer.head.logits(scorer.hidden(batch)) for batch in batches]
        found.append(torch.cat(rows).double().log_softmax(-1))
    return found[0], found[1]


def table(found: dict[str, dict[str, float]]) -> str:
    lines = ["| kept | bytes a token | error | bias |", "|---|---|---|---|"]
    for name, numbers in found.items():
        size, error, bias = numbers["bytes"], numbers["error"], numbers["bias"]
        lines.append(f"| {name} | {size:.1f} | {error:.3f} | {bias:.3f} |")
    return "\n".join(lines)


def main() -> None:
    if len(sys.argv) == 3:
        pairs = {"answers": of_models(Path(sys.argv[1]), Path(sys.argv[2]))}
    else:
        pairs = {"peaked": made_up(2.5), "flat": made_up(1.1)}
    found = {
        where: {name: measured(*pair, **way) for name, way in WAYS.items()}
        for where, pair in pairs.items()
    }
    for where, numbers in found.items():
        print(f"{where}\n{table(numbers)}\n", file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
