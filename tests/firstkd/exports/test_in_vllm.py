"""Exported safetensors say in vLLM, on the CPU, what the model says: `make test-vllm`."""

import json
import subprocess

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from firstkd.data.prompts import encode
from firstkd.exports.safetensors import SafetensorsExport
from firstkd.models.folders import load_model, load_tokenizer
from firstkd.models.scoring import score_questions
from tests.firstkd.exports.test_exports import EXAMPLES, PROMPT, T, written
from tests.tasks.served import VLLM, VLLM_ON_CPU
from tests.tiny import write_tiny_model

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not VLLM.exists(), reason="vLLM is installed by make test-vllm"),
]
ASK = """
import json
import sys
from pathlib import Path

from answer import Student

if __name__ == "__main__":
    student = Student(Path.cwd(), threads=1)
    scores = [student.scores(prompt, responses) for prompt, responses in json.loads(sys.argv[1])]
    Path("scores.json").write_text(json.dumps(scores))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A Llama of heads as wide as vLLM wants them, and sure of what it says."""
    folder = tmp_path_factory.mktemp("model")
    write_tiny_model(folder)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    return folder


def asked(folder, questions):
    """Return the scores that an export gives to each of the questions, prompt and responses."""
    (folder / "ask.py").write_text(ASK)
    command = [VLLM, "ask.py", json.dumps(questions)]
    subprocess.run(command, cwd=folder, env=VLLM_ON_CPU, check=True)
    return json.loads((folder / "scores.json").read_text())


@pytest.mark.parametrize(("weights", "mean", "most"), [("bf16", 0.02, 0.1), ("int8", 0.1, 0.4)])
def test_it_scores_as_torch_does(model, tmp_path, weights, mean, most):
    written(SafetensorsExport, weights, model, tmp_path)
    questions = encode(EXAMPLES, load_tokenizer(model), PROMPT)
    found = asked(tmp_path, [[question.prompt, question.responses] for question in questions])
    expected = score_questions(load_model(model, "fp32"), questions, 1)
    assert expected[0, :2].std() > 0.3  # far from alike
    errors = torch.cat(
        [(torch.tensor(f) - row[: len(f)]).abs() for f, row in zip(found, expected, strict=True)]
    )
    assert errors.mean() < mean and errors.max() < most


def test_it_divides_logits_by_the_temperature_in_the_weights(model, tmp_path):
    written(SafetensorsExport, "bf16", model, tmp_path, folded=True)
    prompt, tokens = [5, 9, 7, 30], range(3, 60)
    logits = load_model(model, "fp32")(torch.tensor([prompt])).logits[0, -1]
    expected = (logits / T).log_softmax(-1)[list(tokens)]
    (found,) = asked(tmp_path, [[prompt, [[token] for token in tokens]]])
    errors = (torch.tensor(found) - expected).abs()
    assert errors.mean() < 0.02 and errors.max() < 0.1
