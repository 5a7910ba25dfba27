"""lm-eval through the swarm gives the score of the model in one process, and the same likelihoods."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from transformers import AutoTokenizer

from shoal.client.scores import log_softmax

from .conftest import HERE, Served, python_with

pytestmark = pytest.mark.swarm
QUESTIONS = [json.loads(line) for line in (HERE / "tasks/fish.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def evaluated(served: Served, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What lm-eval found through the gateway: its ``results``, and the ``samples`` by question."""
    python = python_with("clients-lm-eval", "requirements-eval.txt")
    folder = tmp_path_factory.mktemp("eval")
    shutil.copy(HERE / "tasks/fish.jsonl", folder)
    task = (HERE / "tasks/fish.yaml").read_text().replace("FISH_JSONL", str(folder / "fish.jsonl"))
    (folder / "fish.yaml").write_text(task)
    model = {
        "base_url": f"{served.url}/v1/completions",
        "model": served.model,
        "tokenizer": served.checkpoint,
        "num_concurrent": 2,
        "max_retries": 1,
    }
    command = [str(python), "-m", "lm_eval", "--model", "local-completions", "--tasks", "fish"]
    command += ["--model_args", ",".join(f"{key}={value}" for key, value in model.items())]
    command += ["--include_path", str(folder), "--output_path", str(folder / "out"), "--log_samples"]
    served.run(folder, command, HF_DATASETS_OFFLINE="1")
    (results,) = (folder / "out").rglob("results_*.json")
    (samples,) = (folder / "out").rglob("samples_fish_*.jsonl")
    return {
        "results": json.loads(results.read_text())["results"]["fish"],
        "samples": {
            sample["doc_id"]: [float(answer[0][0]) for answer in sample["resps"]]
            for sample in map(json.loads, samples.read_text().splitlines())
        },
    }


@pytest.fixture(scope="module")
def reference(served: Served) -> list[list[float]]:
    """For each question, the log-likelihood of each of its answers, by the whole model in this process."""
    tokenizer = AutoTokenizer.from_pretrained(served.checkpoint)
    model = served.one_process()

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def likelihood(question: str, answer: str) -> float:
        whole, begins = ids(f"{question} {answer}"), len(ids(question))
        model.restart()
        scores = log_softmax(model.step(whole))
        return sum(float(scores[place - 1, whole[place]]) for place in range(begins, len(whole)))

    return [[likelihood(q["question"], answer) for answer in q["choices"]] for q in QUESTIONS]


def test_every_answer_is_as_likely_as_in_one_process(
    evaluated: dict[str, Any], reference: list[list[float]]
) -> None:
    assert len(evaluated["samples"]) == len(QUESTIONS)
    for number, expected in enumerate(reference):
        assert evaluated["samples"][number] == pytest.approx(expected, abs=1e-3)


def test_the_score_is_that_of_one_process(evaluated: dict[str, Any], reference: list[list[float]]) -> None:
    by_sum = [max(range(3), key=lambda n, row=row: row[n]) for row in reference]
    lengths = [[len(answer) for answer in question["choices"]] for question in QUESTIONS]
    by_letter = [
        max(range(3), key=lambda n, row=row, size=size: row[n] / size[n])
        for row, size in zip(reference, lengths, strict=True)
    ]
    answers = [question["answer"] for question in QUESTIONS]
    for metric, chosen in (("acc", by_sum), ("acc_norm", by_letter)):
        score = sum(a == b for a, b in zip(chosen, answers, strict=True)) / len(answers)
        assert evaluated["results"][f"{metric},none"] == pytest.approx(score)
