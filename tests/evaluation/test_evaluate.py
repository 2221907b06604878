"""Models evaluated: figures, what is kept, what is resumed and refused."""

import base64
import json
import logging
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import zlib

import jax
import pytest
import safetensors.numpy
import untrained

from reft_jax import evaluate
from reft_jax.config import cli, loading
from reft_jax.data import encode
from reft_jax.data import splits as splits_lib
from reft_jax.evaluation import evaluation as evaluation_lib
from reft_jax.huggingface import fingerprint
from reft_jax.sampling import grading
from reft_jax.sampling import judge as judge_lib
from reft_jax.tasks import prompts
from reft_jax.tasks.answers import grade
from reft_jax.tasks.answers.grade import Verdict
from reft_jax.tasks.problem import Problem

JUDGE = "evaluation.reward_model=models/reward_model"
UNSAMPLED = ("evaluation.samples=0", "evaluation.at=null")
SETTINGS = shlex.split("""
  data.dev_size=0 data.max_prompt_tokens=40 data.max_response_tokens=24
  embedded.questions=4 embedded.test=9 base.width=16 base.layers=1 base.ffn=16
  evaluation.batch_size=16 evaluation.samples=4 evaluation.at=[1,2,4]
  evaluation.resamples=50
""")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> pathlib.Path:
  """A run's folder as training leaves it, though its models know nothing."""
  folder = tmp_path_factory.mktemp("runs") / "run"
  _, models = untrained.write(folder, SETTINGS)
  warmup, reft, scorer = models.values()
  stages = folder / "stages"
  untrained.save_best(stages / "sft-lr0.001/best", 2, reft)
  for place, step, params in (
    ("reft", 3, {"policy": warmup}),
    ("reft", 12, {"policy": reft, "value": {}}),
    ("reward_model", 1, {"scorer": scorer}),
  ):
    untrained.save_state(stages / place / "checkpoints", step, params)
  return folder


@pytest.fixture
def run_folder(trained, tmp_path) -> pathlib.Path:
  """A copy of it for a test alone."""
  return shutil.copytree(trained, tmp_path / "run")


def summary(folder: pathlib.Path) -> dict:
  return json.loads((folder / "evaluation.json").read_text())


def page_data(folder: pathlib.Path) -> dict:
  page = (folder / "report.html").read_text()
  packed = re.search(r'id="data">([^<]*)<', page)[1]
  return json.loads(zlib.decompress(base64.b64decode(packed)))


# What the figures are.


def answered(*values) -> list[grading.Answer]:
  """Answers to a question whose answer is 7; None is no answer."""
  example = encode.Example(Problem("x", "embedded", "?", None, "7"), (), None)
  verdicts = {None: Verdict.NONE, 7.0: Verdict.CORRECT}
  grades = [
    grade.Grade(verdicts.get(value, Verdict.WRONG), value) for value in values
  ]
  return [
    grading.Answer(example, str(each.value), each, True) for each in grades
  ]


SAMPLED = [
  answered(7.0, 7.0, 8.0, 8.0),
  answered(8.0, 7.0, None, 7.0),
  answered(8.0, 9.0, None, 8.0),
  answered(None, None, None, None),
]
REWARDS = [
  [0.1, 0.2, 0.9, 0.8],
  [0.2, 0.3, 0.9, 0.3],
  [0.9, 0.1, 0.1, 0.1],
  [0.9, 0.9, 0.9, 0.9],
]


def test_figures_by_hand():
  found = evaluation_lib.figures(
    evaluation_lib.Answered(answered(7.0, 7.0, 8.0, None), SAMPLED, REWARDS),
    at=(1, 2, 3, 4),
    mode="strict",
    resamples=20,
  )
  assert {name: figure.value for name, figure in found.items()} == (
    pytest.approx(
      {
        "greedy": 2 / 4,
        "sampled": (2 / 4 + 2 / 4) / 4,
        # Of one: each sample. Of two: (7 7) (8 8), (8 7) (- 7). Of three: the
        # first three, the fourth being no block. Of four: the first of a tie.
        "majority@1": (2 / 4 + 2 / 4) / 4,
        "majority@2": (1 / 2 + 1 / 2) / 4,
        "majority@3": (1 + 0) / 4,
        "majority@4": (1 + 1) / 4,
        # By the rewards: (7) (8), (7) (7); 8, 7; 8, 7. Without an answer nobody
        # is chosen, however great the reward.
        "rerank@1": (2 / 4 + 2 / 4) / 4,
        "rerank@2": (1 / 2 + 1) / 4,
        "rerank@3": (0 + 1) / 4,
        "rerank@4": (0 + 1) / 4,
        # 1 - C(2, k) / C(4, k), of the first two questions.
        "pass@1": (1 / 2 + 1 / 2) / 4,
        "pass@2": (5 / 6 + 5 / 6) / 4,
        "pass@3": (1 + 1) / 4,
        "pass@4": (1 + 1) / 4,
        "upper_bound": (1 + 1) / 4,
      }
    )
  )
  assert all(each.low <= each.value <= each.high for each in found.values())


def test_figures_without_samples_or_rewards():
  greedy, options = answered(7.0, 8.0), {"mode": "strict", "resamples": 5}
  without = evaluation_lib.Answered(greedy, [], None)
  assert list(evaluation_lib.figures(without, at=(), **options)) == ["greedy"]
  without = evaluation_lib.Answered(greedy, [greedy, greedy], None)
  found = evaluation_lib.figures(without, at=(2,), **options)
  names = "greedy sampled majority@2 pass@2 upper_bound"
  assert list(found) == names.split()


def test_official_votes_count_exact_numbers():
  group = [answered(8.0, 7.0, 8.0, 7.0 + 1e-9, 7.0 - 1e-9)]
  right = [answer.grade.verdict is Verdict.CORRECT for answer in group[0]]
  assert right == [False, True, False, False, False]
  for mode, value in (("strict", 1), ("official", 0)):
    found = evaluation_lib.figures(
      evaluation_lib.Answered(answered(8.0), group, None),
      at=(5,),
      mode=mode,
      resamples=5,
    )
    assert found["majority@5"].value == value


def test_a_fingerprint_is_of_the_weights(trained, tmp_path):
  marks = {
    path: fingerprint.of_weights(trained / path)
    for path in (
      "models/warmup",
      "models/reft",
      "stages/reft/checkpoints/3/state",
      "stages/reft/checkpoints/12/state",
    )
  }
  assert len(set(marks.values())) == 4
  copy = shutil.copytree(trained / "models/reft", tmp_path / "other-name")
  (copy / "training.json").unlink()
  assert fingerprint.of_weights(copy) == marks["models/reft"]
  file = copy / "model.safetensors"
  weights = bytearray(file.read_bytes())
  weights[-1] ^= 1
  file.write_bytes(weights)
  assert fingerprint.of_weights(copy) != marks["models/reft"]


# What a command does.


@pytest.fixture
def unopened(monkeypatch):
  """From now on no weights are opened."""

  def refuse(*_):
    raise AssertionError("weights were opened")

  def close():
    monkeypatch.setattr(evaluation_lib, "open_policy", refuse)
    monkeypatch.setattr(judge_lib, "load", refuse)

  return close


def test_a_run_is_evaluated_once(run_folder, capsys, unopened):
  judge = f"evaluation.reward_model={run_folder / 'models/reward_model'}"
  assert evaluate.main([str(run_folder), judge]) == 0
  table = capsys.readouterr().out
  for word in ("warmup", "reft", "majority@2", "rerank@4", "9 test", "none"):
    assert word in table
  places = [run_folder / f"evaluations/{m}-test" for m in ("warmup", "reft")]
  before = [summary(place) for place in places]
  assert [each["model"] for each in before] == ["warmup", "reft"]
  for each, place in zip(before, places, strict=True):
    assert each["questions"] == 9
    assert each["seconds"].keys() == {"greedy", "sampled", "rewards"}
    assert sum(each["verdicts"]["sampled"].values()) == 36
    rows = (place / "rewards.jsonl").read_text().splitlines()
    assert len(rows) == 9
    assert all(len(json.loads(row)["probabilities"]) == 4 for row in rows)
    data = page_data(place)
    assert data["summary"] == each
    assert len(data["questions"]) == 9
    assert all(len(each["samples"]) == 4 for each in data["questions"])
  files = ("greedy.jsonl", "sampled.jsonl", "rewards.jsonl", "evaluation.json")
  kept = [(place / file).read_bytes() for place in places for file in files]

  unopened()
  assert evaluate.main([str(run_folder), judge]) == 0
  assert kept == [(p / file).read_bytes() for p in places for file in files]
  # Other rules, votes and intervals need no model either.
  others = ("data.answers=official", "evaluation.at=[3]")
  reft = str(run_folder / "models/reft")
  assert evaluate.main([reft, *others, "evaluation.resamples=7"]) == 0
  after = summary(places[1])
  assert after["answers"] == "official"
  assert after["accuracy"].keys() == {
    *("greedy", "sampled", "majority@3", "pass@3", "upper_bound")
  }


@pytest.mark.slow
def test_completions_are_graded_anew_by_other_rules(run_folder, unopened):
  model = str(run_folder / "models/reft")
  assert evaluate.main([model]) == 0
  place = run_folder / "evaluations/reft-test"
  assert summary(place)["accuracy"]["greedy"]["value"] == 0
  config = loading.load([str(run_folder / "config.yaml")])
  problems = {p.uid: p for p in splits_lib.problems(config)["test"].problems}
  for file in ("greedy.jsonl", "sampled.jsonl"):
    rows = [json.loads(row) for row in (place / file).read_text().splitlines()]
    for row in rows:
      wrong, right = "</pre><b>", prompts.bare(problems[row["uid"]])
      row["completions"] = [right, wrong, right, wrong][: len(row["ended"])]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (place / file).write_text(text)
  unopened()
  assert evaluate.main([model, "data.answers=official"]) == 0
  values = {k: v["value"] for k, v in summary(place)["accuracy"].items()}
  assert values["greedy"] == 1
  assert values["sampled"] == 1 / 2
  assert values["majority@2"] == values["majority@4"] == 1
  assert values["pass@2"] == pytest.approx(5 / 6)
  question = page_data(place)["questions"][0]
  assert question["vote_right"]
  assert question["samples"][1][:2] == ["</pre><b>", "none"]


# The same command, but killed when all greedy answers are on disk, and the
# samples of all questions but the last.
KILLED = """
import itertools, os, signal, sys
from reft_jax import evaluate
from reft_jax.sampling import rollouts

batches, count = rollouts.BatchSampler.batches, itertools.count(1)

def struck(*arguments, **options):
  for groups in batches(*arguments, **options):
    if next(count) == 4:
      os.kill(os.getpid(), signal.SIGKILL)
    yield groups

rollouts.BatchSampler.batches = struck
sys.exit(evaluate.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_killed_evaluation_resumes(run_folder, root, tmp_path):
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  # A batch is an answer to each of eight questions.
  arguments = (str(run_folder / "models/reft"), "evaluation.batch_size=8")
  assert evaluate.main([*arguments, f"output={whole}"]) == 0

  arguments = (*arguments, f"output={broken}")
  killed = subprocess.run(
    [sys.executable, "-c", KILLED, *arguments],
    check=False,
    cwd=root,
    env={**os.environ, "JAX_NUM_CPU_DEVICES": "8"},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    timeout=200,
  )
  assert killed.returncode == -signal.SIGKILL, killed.stdout
  assert len((broken / "greedy.jsonl").read_text().splitlines()) == 9
  before = (broken / "sampled.jsonl").read_text()
  assert len(before.splitlines()) == 8
  assert not (broken / "evaluation.json").exists()

  assert evaluate.main([*arguments]) == 0
  assert (broken / "sampled.jsonl").read_text().startswith(before)
  for file in ("greedy.jsonl", "sampled.jsonl"):
    assert (broken / file).read_bytes() == (whole / file).read_bytes()
  ours, theirs = summary(broken), summary(whole)
  assert ours | {"seconds": None} == theirs | {"seconds": None}


@pytest.mark.slow
def test_judging_resumes_and_starts_anew_for_another_judge(run_folder):
  judge = run_folder / "models/reward_model"
  model = str(run_folder / "models/reft")
  arguments = [model, f"evaluation.reward_model={judge}"]
  assert evaluate.main(arguments) == 0
  file = run_folder / "evaluations/reft-test/rewards.jsonl"
  whole = file.read_text()
  lines = whole.splitlines(True)
  marked = lines[0].replace("[", "[ ")  # Read, not written again.
  file.write_text(marked + lines[1] + lines[2][:-4])
  assert evaluate.main(arguments) == 0
  assert file.read_text() == marked + "".join(lines[1:])
  # What a crash or a hand has spoilt is judged again, or left out.
  file.write_text(lines[0] + lines[2])
  file.with_name("evaluation.json").write_text('{"seconds": ')
  assert evaluate.main(arguments) == 0
  assert file.read_text() == whole
  file.with_name("rewards.json").write_text("{")
  assert evaluate.main(arguments) == 0
  assert file.read_text() == whole
  file.write_text(marked + "".join(lines[1:]))

  weights = judge / "model.safetensors"
  shutil.copy(run_folder / "models/reward_model/config.json", judge.parent)
  changed = bytearray(weights.read_bytes())
  changed[-3:] = b"\x00\x00\x00"
  weights.write_bytes(changed)
  assert evaluate.main(arguments) == 0
  assert file.read_text().splitlines(True)[0] != marked


@pytest.mark.slow
def test_checkpoints_answer_as_the_models_of_their_parameters(
  run_folder, caplog
):
  stages = run_folder / "stages"
  models = {
    "models/reft": "reft",
    "stages/sft-lr0.001/best": "sft-lr0.001-best",
    "stages/reft/checkpoints": "reft-step12",
    "stages/reft/checkpoints/3": "reft-step3",
  }
  before = sorted(os.walk(stages))
  assert evaluate.main([*(str(run_folder / path) for path in models)]) == 0
  assert sorted(os.walk(stages)) == before
  texts = [
    (run_folder / f"evaluations/{name}-test/sampled.jsonl").read_text()
    for name in models.values()
  ]
  assert texts[0] == texts[1] == texts[2] != texts[3]
  # Orbax does not complain that a part of a checkpoint is no whole one.
  assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.slow
def test_a_folder_in_no_run_is_asked_as_a_file_says(run_folder, tmp_path):
  model = shutil.copytree(run_folder / "models/reft", tmp_path / "somewhere")
  arguments = [str(model), "--config", str(run_folder / "config.yaml")]
  output = tmp_path / "out"
  assert evaluate.main([*arguments, f"output={output}"]) == 0
  assert evaluate.main([str(run_folder / "models/reft")]) == 0
  inside = run_folder / "evaluations/reft-test"
  for file in ("greedy.jsonl", "sampled.jsonl"):
    assert (output / file).read_bytes() == (inside / file).read_bytes()


def test_a_path_may_hold_an_equals_sign(run_folder, monkeypatch, capsys):
  sweep = shutil.copytree(run_folder / "models/reft", run_folder / "lr=1e-3/a")
  monkeypatch.chdir(run_folder)
  outside = ["--config", "config.yaml", "--dry-run"]
  settings = [*outside, "output=runs/a=b"]
  for path in (str(sweep), "./lr=1e-3/a", "~/lr=1"):
    command = cli.parse([path, *settings], evaluate.PROGRAM)
    assert command.paths == (path,)
    assert command.overrides == ("output=runs/a=b",)
  assert evaluate.main(["./lr=1e-3/a", *outside]) == 0
  assert "a: evaluations/a-test" in capsys.readouterr().out


def problem_file(path: pathlib.Path, *questions: str) -> str:
  same = {"answer_cot": "", "answer_value": 4}
  rows = [
    {"item_id": f"embedded_{number}", "question": question, **same}
    for number, question in enumerate(questions)
  ]
  path.write_text(json.dumps(rows))
  return str(path)


@pytest.mark.slow
def test_a_test_set_needs_no_training_set(run_folder, tmp_path):
  question = "Tom has 3 apples ."
  test = problem_file(tmp_path / "test.json", question, question)
  elsewhere = ("data.train=nowhere.json", "data.dev_size=100")
  model = str(run_folder / "models/reft")
  arguments = [model, *UNSAMPLED, *elsewhere, f"data.test={test}"]
  assert evaluate.main(arguments) == 0
  assert summary(run_folder / "evaluations/reft-test")["questions"] == 2


@pytest.mark.slow
def test_what_is_not_asked_is_told(run_folder, tmp_path, capsys):
  test = problem_file(
    tmp_path / "test.json", "Tom has 3 apples .", "apples " * 50
  )
  model = str(run_folder / "models/reft")
  left_out = "problems: 1 test (1 left out, their prompts are too long)"
  arguments = [model, f"data.test={test}", *UNSAMPLED]
  for more in (["--dry-run"], []):
    assert evaluate.main([*arguments, *more]) == 0
    assert left_out in capsys.readouterr().out
  place = run_folder / "evaluations/reft-test"
  for told in (summary(place), page_data(place)["summary"]):
    assert (told["questions"], told["long_prompts"]) == (1, 1)
    assert told["left_out"] == 0


@pytest.mark.slow
def test_models_of_one_name_are_told_apart(run_folder, capsys):
  other = shutil.copytree(run_folder, run_folder.with_name("other"))
  names = [str(folder / "models/reft") for folder in (run_folder, other)]
  assert evaluate.main([*names, "evaluation.samples=1"]) == 2
  assert "evaluation.at" in capsys.readouterr().err
  assert evaluate.main([*names, *UNSAMPLED]) == 0
  table = capsys.readouterr().out
  assert "run/reft" in table
  assert "other/reft" in table
  assert "sampled" not in table


def test_settings_are_those_of_the_run(run_folder, capsys):
  arguments = [str(run_folder), "seed=3", "--print-config"]
  assert evaluate.main(arguments) == 0
  warmup, reft = capsys.readouterr().out.split("---\n")
  assert "seed: 3" in warmup
  assert "base:\n  family: llama\n  layers: 1" in reft
  assert f"path: {run_folder / 'models/reft'}" in reft


def test_a_dry_run_samples_nothing(run_folder, capsys, unopened):
  unopened()
  assert evaluate.main([str(run_folder), "--dry-run"]) == 0
  assert "nothing was sampled" in capsys.readouterr().out
  assert not (run_folder / "evaluations").exists()


def test_help(capsys):
  assert evaluate.main(["--help"]) == 0
  out = capsys.readouterr().out
  assert "MODEL" in out
  assert "resamples" in out


# What is refused.


@pytest.fixture
def refused(run_folder, monkeypatch, capfd, caplog, unopened):
  """Runs what must be refused; returns what is said of it."""
  monkeypatch.chdir(run_folder)

  def run(*arguments: str) -> str:
    unopened()
    before = sorted(os.walk("."))
    capfd.readouterr()
    with jax.log_compiles():
      code = evaluate.main(arguments)
    out, err = capfd.readouterr()
    assert code == 2, out
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert sorted(os.walk(".")) == before, "something was written"
    assert not [r for r in caplog.records if "ompil" in r.getMessage()]
    return err

  return run


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    ([], ["which model?", "MODEL..."]),
    (["nowhere"], ["nowhere", "no such folder", "models"]),
    (["models/sft"], ["models/sft", "no such folder", "reft", "warmup"]),
    (["samples"], ["samples: no model there", "models/STAGE"]),
    (["stages/reft"], ["stages/reft: no model there", "checkpoints"]),
    (["stages/reft/checkpoints/5"], ["no such folder", "12, 3"]),
    (["models/reward_model"], ["holds a reward model", "language model"]),
    (["stages/reward_model/checkpoints"], ["no language model", "shape"]),
    (["stages/reft/best"], ["no such folder", "checkpoints"]),
    ([".", "evaluation.samples=3"], ["evaluation.at", "4 is more", "=3"]),
    ([".", "evaluation.at=[9]"], ["9 is more than evaluation.samples=4"]),
    ([".", "evaluation.at=[0]"], ["evaluation.at=0", "above 0"]),
    ([".", "evaluation.splitt=dev"], ["did you mean evaluation.split?"]),
    ([".", "evaluation.split=dev"], ["evaluation.split=dev", "data.dev_size"]),
    ([".", "data.test=no.json"], ["data.test=no.json: no such file"]),
    ([".", "data.max_response_tokens=99"], ["exceed the model's context"]),
    (
      [".", "evaluation.reward_model=./none/here"],
      ["evaluation.reward_model=./none/here: neither a folder nor a name"],
    ),
    (
      [".", "evaluation.reward_model=models/warmup"],
      ["models/warmup", "a language model, which cannot judge"],
    ),
    ([".", *UNSAMPLED, JUDGE], ["nothing to choose from", "samples=0"]),
    (["models/reft", "models/reft"], ["would both be kept in", "output"]),
    (
      ["models/reft", "data.train=no.json", "evaluation.split=train"],
      ["data.train=no.json: no such file"],
    ),
  ],
)
def test_bad_input(refused, run_folder, arguments, words):
  (run_folder / "samples").mkdir()
  said = refused(*arguments)
  for word in words:
    assert word in said


def test_a_folder_that_nothing_says_how_to_ask(refused, run_folder):
  (run_folder / "config.yaml").unlink()
  assert "lies in no run" in refused("models/reft")
  assert "no model there" in refused("stages/reft/checkpoints")


@pytest.mark.parametrize(
  ("model", "name", "words"),
  [
    ("reft", None, "neither model.safetensors nor"),
    ("reft", "model.norm.weight", "do not fit config.json: model.norm.weight"),
    ("reward_model", None, "neither model.safetensors nor"),
    ("reward_model", "score.weight", "has shape (1, 16)"),
  ],
)
def test_weights_that_cannot_be_opened(refused, run_folder, model, name, words):
  file = run_folder / "models" / model / "model.safetensors"
  arrays = safetensors.numpy.load_file(file)
  file.unlink()
  if name:
    arrays[name] = arrays[name][:1]
    safetensors.numpy.save_file(arrays, file)
  assert words in refused("models/warmup", "models/reft", JUDGE)


@pytest.mark.parametrize("output", ["config.yaml", "config.yaml/inside"])
def test_an_output_that_cannot_be_written(refused, output):
  said = refused("models/reft", f"output={output}")
  assert f"the evaluation's folder {output} cannot be written" in said
  assert "set output to another place" in said


def test_a_judge_that_reads_other_tokens(refused, run_folder):
  file = run_folder / "models/reward_model/tokenizer.json"
  tokenizer = json.loads(file.read_text())
  words = tokenizer["model"]["vocab"]
  a, b = list(words)[-2:]
  words[a], words[b] = words[b], words[a]
  file.write_text(json.dumps(tokenizer))
  said = refused(".", JUDGE)
  assert "its tokenizer is another than the model's" in said


@pytest.mark.slow
def test_samples_of_another_kind(refused, run_folder):
  model = "models/reft"
  assert evaluate.main([model]) == 0
  said = refused(model, "evaluation.temperature=0.5")
  assert "holds completions of another kind" in said
  assert "temperature: 1.0 -> 0.5" in said
  shutil.copy("models/warmup/model.safetensors", "models/reft")
  assert "(model: " in refused(model)
