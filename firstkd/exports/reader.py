"""Query an exported student without torch or firstkd: exports ship this file as answer.py.

It needs numpy and tokenizers, and onnxruntime for model.onnx, xllamacpp for model.gguf or vllm for
model.safetensors:

    python answer.py "Where does a fox live?" "in a den" "in a hive"
"""

import hashlib
import json
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

FACTS = "firstkd.json"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Ids = Sequence[int]


class Unusable(Exception):
    """An exported folder, or a question, that cannot be used; the message says why, in one line."""


class OnnxModel:
    def __init__(self, file: Path, threads: int, length: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(str(file), options, providers)

    def logprobs(self, prompt: Ids, responses: Sequence[Ids]) -> list[list[float]]:
        """Score every token of the responses, in one pass after the shared prompt."""
        start = len(prompt)
        ids, positions, segments = [*prompt], [*range(start)], [-1] * start
        rows, places = [start - 1], []
        for number, response in enumerate(responses):
            first = len(ids)
            ids += response
            positions += range(start, start + len(response))
            segments += [number] * len(response)
            places.append([0, *range(len(rows), len(rows) + len(response) - 1)])
            rows += range(first, first + len(response) - 1)
        named = {"input_ids": ids, "position_ids": positions, "segments": segments, "rows": rows}
        (logits,) = self.session.run(None, {n: np.array(v, np.int64) for n, v in named.items()})
        found = log_softmax(logits)
        return [
            [float(found[row, token]) for row, token in zip(row_of, response, strict=True)]
            for row_of, response in zip(places, responses, strict=True)
        ]


class LlamaModel:
    """Runs llama.cpp's server in this process, through the package xllamacpp."""

    def __init__(self, file: Path, threads: int, length: int) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx, params.n_parallel = length, 1
        params.api_keys = [secrets.token_hex()]  # it listens on a local port
        params.warmup, params.verbosity = False, 1
        if threads:
            params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        self.server = xllamacpp.Server(params)
        # a server dropped before its loop has begun hangs for ever, so wait for a first answer
        self.server.handle_completions({"prompt": [0], "n_predict": 1})

    def logprobs(self, prompt: Ids, responses: Sequence[Ids]) -> list[list[float]]:
        """Score every token of the responses; the shared prompt is computed once."""
        return [self._response(prompt, response) for response in responses]

    def _response(self, prompt: Ids, response: Ids) -> list[float]:
        """Make llama.cpp generate exactly these tokens: it reports their log-probabilities over
        the whole vocabulary."""
        only = " ".join(f"<[{token}]>" for token in response)
        asked = {"prompt": [*prompt], "n_predict": len(response), "grammar": f"root ::= {only}"}
        found = self.server.handle_completions({**asked, "n_probs": 1, "temperature": 0.0})
        content = found["choices"][0]["logprobs"]["content"]
        if [token["id"] for token in content] != [*response]:
            raise Unusable(f"llama.cpp did not return the tokens {[*response]}")
        return [token["logprob"] for token in content]


class VllmModel:
    def __init__(self, file: Path, threads: int, length: int) -> None:
        import vllm

        # vLLM takes its threads from OMP_NUM_THREADS; + 1 for the token that it must generate
        self.engine = vllm.LLM(str(file.parent), max_model_len=length + 1, enforce_eager=True)
        self.asked = vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)

    def logprobs(self, prompt: Ids, responses: Sequence[Ids]) -> list[list[float]]:
        """Score every token of the responses, all in one batch."""
        texts = [{"prompt_token_ids": [*prompt, *response]} for response in responses]
        found = self.engine.generate(texts, self.asked, use_tqdm=False)
        return [
            [place[token].logprob for place, token in zip(places, response, strict=True)]
            for response, places in zip(
                responses, (each.prompt_logprobs[len(prompt) :] for each in found), strict=True
            )
        ]


RUNTIMES: dict[str, type[OnnxModel] | type[LlamaModel] | type[VllmModel]] = {
    ".onnx": OnnxModel,
    ".gguf": LlamaModel,
    ".safetensors": VllmModel,
}


class Student:
    def __init__(self, folder: Path, calibration: Path | None = None, threads: int = 0) -> None:
        """Open an exported folder; a `calibration` file replaces its temperature, threshold and
        choices, e.g. with those fitted through this runtime (data/evaluate/NAME/calibration.json).

        Raises Unusable if a file is missing or not the one that was exported.
        """
        from tokenizers import Tokenizer

        self.facts = read(folder / FACTS)
        for name, expected in self.facts["sha256"].items():
            if digest(folder / name) != expected:
                raise Unusable(
                    f"{folder / name} is not the file that was exported (SHA-256 differs)"
                )
        if calibration is not None:
            fitted = read(calibration)
            self.facts |= {key: fitted[key] for key in ("temperature", "policy", "choices")}
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.encode_special_tokens = True  # "</s>" in a question stays text
        file, length = folder / self.facts["file"], self.facts["prompt"]["max_length"]
        self.model = RUNTIMES[file.suffix](file, threads, length)

    def scores(self, prompt: Ids, responses: Sequence[Ids]) -> list[float]:
        """Return the mean log-probability of each response's tokens."""
        return [float(np.mean(tokens)) for tokens in self.model.logprobs(prompt, responses)]

    def answer(self, question: str, choices: Sequence[str] | None = None) -> dict[str, Any]:
        """Answer with one of the choices; without any, with one of those that all calibration
        questions share."""
        listed = choices or self.facts["choices"]
        if not listed or len(listed) < 2:
            raise Unusable("a question needs two choices or more")
        listed = [choice.strip() for choice in listed]
        scores = np.array(self.scores(*self.encode(question.strip(), listed)))
        probabilities = np.exp(log_softmax(scores / self.facts["temperature"]))
        best = int(probabilities.argmax())
        confidence, policy = float(probabilities[best]), self.facts["policy"]
        threshold = 0.0 if policy is None else policy["threshold"]
        return {
            "answer": listed[best],
            "confidence": confidence,
            "probabilities": probabilities.tolist(),
            "abstain": threshold is None or confidence < threshold,
        }

    def encode(self, question: str, choices: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """Return the token ids of the prompt and of each choice, as in the student's training."""
        how, start = self.facts["prompt"], self.facts["start_ids"]
        if how["format"] == "chat":
            raise Unusable("this student uses its chat template: pass token ids to `scores`")
        answers, options = [*choices], ""
        if how["format"] == "letter":
            if len(choices) > len(LETTERS):
                raise Unusable(f"{len(choices)} choices; this student answers with one letter")
            answers = [*LETTERS[: len(choices)]]
            options = "".join(f"{a}. {c}\n" for a, c in zip(answers, choices, strict=True))
        prompt = f"Question: {question}\n{options}Answer:"
        texts = [f"{prompt} {answer}" for answer in answers]
        found = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        shared = min(before(each.offsets, len(prompt)) for each in found)
        while any(each.ids[:shared] != found[0].ids[:shared] for each in found):
            shared -= 1
        responses = [each.ids[shared:] for each in found]
        room = how["max_length"] - max(map(len, responses)) - len(start)
        if room <= 0:
            raise Unusable("a choice is so long that it leaves no room for the question")
        return [*start, *found[0].ids[:shared][-room:]], responses


def before(offsets: Sequence[tuple[int, int]], border: int) -> int:
    """Return how many leading tokens lie before a character."""
    end = len(offsets)
    while end and offsets[end - 1][1] > border:
        end -= 1
    while end and offsets[end - 1][0] >= border:
        end -= 1
    return end


def log_softmax(logits: Any) -> Any:
    shifted = logits - np.max(logits, -1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def digest(file: Path) -> str:
    if not file.exists():
        raise Unusable(f"{file} is missing")
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def read(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Unusable(f"{file} cannot be read ({error})") from error
    return found


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit('usage: python answer.py "QUESTION" ["CHOICE" "CHOICE" …]')
    try:
        found = Student(Path(__file__).parent).answer(sys.argv[1], sys.argv[2:])
    except Unusable as error:
        sys.exit(str(error))
    print(json.dumps(found, ensure_ascii=False))


if __name__ == "__main__":
    main()
