"""The card of an exported model: what it says, and what it leaves out."""

import json
import pathlib
from collections.abc import Callable

import huggingface_hub
import pytest
import tiny

from reft_jax.config import loading
from reft_jax.huggingface import card
from reft_jax.run import model_paths
from reft_jax.tasks import prompts
from reft_jax.tasks.problem import Problem

QUESTION = Problem("", "", "{question}", None, "")
RESULT = {
  "start": "warmup",
  "test_accuracy": 0.876,
  "majority_accuracy": None,
  "dev_accuracy": 0.5,
  "best_step": 31,
  "learning_rate": 3.5e-4,
}


@pytest.fixture
def run(tmp_path) -> pathlib.Path:
  """The folder of a run whose ReFT stage is done."""
  folder = tmp_path / "run"
  (folder / "stages/reft").mkdir(parents=True)
  (folder / "stages/reft/result.json").write_text(json.dumps(RESULT))
  return folder


@pytest.fixture
def card_of(run) -> Callable[..., huggingface_hub.ModelCard]:
  """`card_of(setting...)` is the card of the run's ReFT model."""

  def render(
    *settings: str, folder: str = "models/reft", checkpoint: bool = False
  ) -> huggingface_hub.ModelCard:
    config = loading.load(["embedded"], ["seed=7", *settings])
    (run / "config.yaml").write_text(loading.to_yaml(config))
    name = "reft-step1" if checkpoint else "reft"
    text = card.render(
      card.Exported(
        model=model_paths.Model(name, run / folder, run, checkpoint),
        shape=tiny.CONFIG,
        classifier=False,
        value=None,
        dtype="float32",
        name="my-model",
      )
    )
    return huggingface_hub.ModelCard(text)

  return render


def test_a_card_says_where_a_model_comes_from(card_of, run, tmp_path):
  problems = {"train": {"used": 1234}, "test": {"used": 987}, "dev": {}}
  (run / "summary.json").write_text(json.dumps({"problems": problems}))
  figure = {"value": 0.8125, "low": 0.75, "high": 0.875}
  for model, value in (("reft", 0.8125), ("warmup", 0.3125)):
    evaluation = {
      "model": model,
      "split": "test",
      "questions": 321,
      "accuracy": {"pass@4": figure | {"value": value}},
    }
    folder = run / f"evaluations/{model}-test"
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
  found = card_of("reft.kl_coef=0.0625")
  assert found.data.to_dict() == {
    "library_name": "transformers",
    "pipeline_tag": "text-generation",
    "tags": ["reft_jax", "llama", "reft", "embedded"],
  }
  assert found.text.startswith("\n# my-model\n\nMade with reft_jax")
  for row in (
    "| Method | ReFT: PPO rewarded by whether the final answer is right |",
    "| Started from | the warmup model |",
    "| Task | embedded, chains of thought in words |",
    "| Training questions | 1,234 |",
    "| Seed | 7 |",
    "| learning_rate | 0.00035 |",
    "| kl_coef | 0.0625 |",
    "| steps | 40 |",
    "| Kept after step | 31 |",
    "| test | greedy | 0.876 | 987 |",
    "| dev | greedy, chosen by | 0.500 |  |",
    "| test | pass@4 | 0.812 (0.750 to 0.875) | 321 |",
  ):
    assert f"\n{row}\n" in found.text
  for absent in (
    "0.312",  # Of another model.
    "epochs | 300",  # Not read where there are steps.
    "majority",
    "None",
    str(tmp_path),
  ):
    assert absent not in found.content
  assert f"```text\n{prompts.prompt(QUESTION)}\n```" in found.text
  assert "Not chosen yet" in found.text


def test_what_was_not_measured_is_left_out(card_of, run):
  (run / "stages/reft/result.json").unlink()
  found = card_of()
  assert "## Training" in found.text
  for absent in ("Scores", "questions |", "None"):
    assert absent not in found.text


def test_a_checkpoint_has_no_scores_of_its_stage(card_of):
  folder = "stages/reft-lr0.001/checkpoints/1/state"
  text = card_of(folder=folder, checkpoint=True).text
  assert "0.876" not in text
  assert "Kept after step" not in text
  assert "| Checkpoint | reft-step1 |" in text


def test_a_card_of_programs(card_of):
  text = card_of("data.reasoning=python", "data.add_bos=true").text
  assert f"```text\n{prompts.prompt(QUESTION, 'python')}\n```" in text
  assert "It ends in a line break" in text
  assert "beginning-of-sequence token comes first" in text
  assert "`solution()` returns" in text


def test_a_card_of_chats(card_of):
  text = card_of(
    "data.chat_template=true",
    "data.reasoning=python",
    'data.system_prompt="Let\'s <think> & {{ answer }}"',
  ).text
  assert 'the system message "Let\'s <think> & {{ answer }}":' in text
  assert f"```text\n{prompts.prompt(QUESTION)}\n```" in text
  start = prompts.start(QUESTION, "python")
  assert f"The assistant's turn starts with\n\n```text\n{start}\n```" in text


@pytest.mark.parametrize(
  ("path", "name"),
  [
    ("owner/tiny-model", "owner/tiny-model"),
    ("owner/tiny-model@main", "owner/tiny-model"),
    ("/cache/models--owner--tiny-model/snapshots/0123", "owner/tiny-model"),
    ("/models/tiny-model", None),
  ],
)
def test_the_base_model_has_the_hub_s_name(path, name, card_of):
  found = card_of(f"model.path={path}")
  assert found.data.base_model == name
  assert f"| Base model | {name or 'tiny-model'} |" in found.text
