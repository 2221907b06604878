"""Suite files: what is read, lent between runs, and refused."""

import copy
import math
import pathlib
import textwrap

import pytest
import yaml

from reft_jax import errors
from reft_jax.studies import checking, reading, suites

FOLDER = pathlib.Path("out/runs")
SUITE = yaml.safe_load(
  textwrap.dedent("""
    name: small
    about: For tests.
    experiment: smoke
    seeds: [1, 2]
    settings: {reft: {steps: 2}}
    runs:
      main: {stages: [base, warmup, sft, reft, reward_model]}
      kl_0: {stages: [reft], reft: {kl_coef: 0.0}}
      long: {stages: [warmup], warmup: {epochs: 9}}
      after_long: {from: long, stages: [sft, reft]}
    evaluations:
      - run: main
        stages: [sft]
        reward_model: main
        settings: {evaluation: {samples: 4, at: [1, 4]}}
    tables:
      - title: All
        columns: [test, majority@4, rerank@1]
        rows: [{label: SFT, result: main/sft, paper: {GSM8K: 41.0}}]
    figures:
      - {title: Dev, curves: {SFT: main/sft}, over: share}
      - {title: KL, x: cost, points: {ReFT: {0: kl_0/reft, 0.01: main/reft}}}
    claims:
      - {text: Better, above: main/reft, below: main/sft, by: 0.3}
      - {text: Vote, above: "main/sft:majority@4", below: main/sft}
      - {text: Same, equal: [main/reft, kl_0/reft], within: 0.02}
      - {text: None, above: 0.1, below: kl_0/reft}
    """)
)


def write(folder, content) -> str:
  file = folder / "suite.yaml"
  file.write_text(yaml.safe_dump(content, sort_keys=False))
  return str(file)


@pytest.fixture
def suite(tmp_path) -> suites.Suite:
  return reading.load(write(tmp_path, SUITE))


def test_what_is_read(suite):
  checking.check(suite)
  assert suite.seeds == (1, 2)
  assert list(suite.runs) == ["main", "kl_0", "long", "after_long"]
  assert suite.tables[0].rows[0].paper == {"GSM8K": 41.0}
  better, vote, same, none = suite.claims
  assert better.one == suites.Reference("main", "reft", "test")
  assert (better.by, better.within) == (0.3, None)
  assert vote.one.metric == "majority@4"
  assert same.within == 0.02
  assert none.one == 0.1
  dev, kl = suite.figures
  assert dev.lines["SFT"].metric == "dev/accuracy"
  assert list(kl.lines["ReFT"]) == [0.0, 0.01]


@pytest.mark.parametrize(
  ("run", "path", "warmup"),
  [
    ("main", None, None),
    ("kl_0", "out/runs/main-seed7/models/base", "main-seed7/models/warmup"),
    ("long", "out/runs/main-seed7/models/base", None),
    (
      "after_long",
      "out/runs/main-seed7/models/base",
      "long-seed7/models/warmup",
    ),
  ],
)
def test_models_are_lent_by_the_nearest_run_that_has_them(
  suite, run, path, warmup
):
  model = suite.config(run, 7, FOLDER).model
  assert model.path == path
  assert model.warmup == (warmup and f"out/runs/{warmup}")
  lenders = {"kl_0": {"main"}, "long": {"main"}, "after_long": {"main", "long"}}
  assert suite.lenders(run) == lenders.get(run, set())


def test_settings_are_laid_over_the_experiment_in_their_order(suite):
  kl_0 = suite.config("kl_0", 7, FOLDER, ["reft.kl_coef=0.5"])
  assert (kl_0.reft.steps, kl_0.reft.kl_coef) == (2, 0.5)
  kl_0 = suite.config("kl_0", 7, FOLDER)
  assert kl_0.reft.kl_coef == 0
  assert (kl_0.seed, kl_0.output) == (7, "out/runs/kl_0-seed7")


def test_an_evaluation_knows_its_reward_model(suite):
  assert suite.evaluation_overrides(suite.evaluations[0], 7, FOLDER) == [
    "evaluation.reward_model=out/runs/main-seed7/models/reward_model",
    "evaluation.samples=4",
    "evaluation.at=[1,4]",
  ]


def test_values_are_written_as_a_command_line_reads_them(suite):
  values = {"name": "two words", "stages": ["sft"], "model": {"path": None}}
  assert suites.written({"a": values, "b": 1e-5, "c": True}) == [
    'a.name="two words"',
    "a.stages=[sft]",
    "a.model.path=null",
    "b=1e-05",
    "c=true",
  ]


EVALUATED = ("evaluations", 0, "settings")


def changed(*path, value=None, only=None):
  """The suite, or `only` a part, with one thing changed, or taken out."""
  content = copy.deepcopy(SUITE)
  place = content
  for key in path[:-1]:
    place = place[key]
  if value is None:
    del place[path[-1]]
  else:
    place[path[-1]] = value
  return {only: content[only]} if only else content


@pytest.mark.parametrize(
  ("content", "words"),
  [
    (changed("runs"), ["runs is missing"]),
    (changed("rnus", value={}), ["unknown 'rnus'", "runs"]),
    (changed("seeds", value=[0.5]), ["seeds", "whole numbers"]),
    (changed("seeds", value=[1, 2, 1]), ["seeds", "once"]),
    (
      changed("seeds", value=[1, 2**40]),
      ["run main", f"seed={2**40} must be between 0 and"],
    ),
    (changed("settings", "seed", value=3), ["settings", "seed", "leave it"]),
    (
      changed("runs", "main", "output", value="here"),
      ["run main", "output", "leave it"],
    ),
    (changed("experiment", value="smok"), ["smok", "no such file", "smoke"]),
    (changed("settings", "reft", "stps", value=1), ["reft.stps", "steps"]),
    (changed("runs", "kl_0", "stages"), ["run kl_0", "stages"]),
    (changed("runs", "kl_0", "stages", value=["rft"]), ["run kl_0", "stages"]),
    (
      changed("runs", "kl_0", "from", value="after_long"),
      ["run kl_0", "after_long", "above it: main"],
    ),
    (
      changed("runs", "kl_0", "data", value={"test": "none.jsonl"}),
      ["run kl_0", "data.test=none.jsonl", "no such file"],
    ),
    (
      changed("runs", "kl_0", "model", value={"path": "nowhere"}),
      ["run kl_0", "model.path=nowhere", "no Hugging Face model"],
    ),
    (
      changed("runs", "main", "stages", value=["base", "warmup", "reft"]),
      ["evaluations[0]", "main has no stage"],
    ),
    (
      changed("evaluations", 0, "reward_model", value="kl_0"),
      ["evaluations[0]", "kl_0 has no stage 'reward_model'"],
    ),
    (
      changed("evaluations", 0, "settings", "evaluation", "samples", value=3),
      ["evaluations[0]", "4 is more than evaluation.samples=3"],
    ),
    # An evaluation has its run's settings too.
    (
      changed("evaluations", 0, "settings", "evaluation", value={"at": [1, 50]})
      | changed(
        *("runs", "main", "evaluation"), value={"samples": 4}, only="runs"
      ),
      ["evaluations[0]", "50 is more than evaluation.samples=4"],
    ),
    (
      changed("evaluations", 0, "stages", value=["sft", "reward_model"]),
      ["evaluations[0]", "reward_model answers no questions"],
    ),
    (changed("evaluations", 0, "stages", value=[]), ["stages is empty"]),
    (
      changed(*EVALUATED, "evaluation", "reward_model", value="/nowhere/rm"),
      ["evaluations[0]", "/nowhere/rm", "no reward model there"],
    ),
    (
      changed(*EVALUATED, "data", value={"test": "/nowhere/test.json"}),
      ["evaluations[0]", "data.test=/nowhere/test.json", "no such file"],
    ),
    (
      changed(*EVALUATED, "evaluation", "split", value="dev"),
      ["evaluations[0]", "evaluation.split=dev", "test problems"],
    ),
    (
      changed(*EVALUATED, "evaluation", "batch_size", value=0),
      ["evaluations[0]", "evaluation.batch_size=0", "above 0"],
    ),
    (
      changed("evaluations", value=2 * SUITE["evaluations"]),
      ["evaluations[1]", "main/sft is evaluated before"],
    ),
    (
      changed("tables", 0, "rows", 0, "result", value="mian/sft"),
      ["'All', row 'SFT'", "no run 'mian'", "main, kl_0"],
    ),
    (
      changed("tables", 0, "rows", 0, "result", value="main"),
      ["tables[0]: rows[0]", "'main' should be RUN/STAGE"],
    ),
    (
      changed("tables", 0, "columns", value=["majority@5"]),
      ["main/sft", "majority@5", "evaluation.at"],
    ),
    (
      changed("tables", 0, "columns", value=[]),
      ["tables[0]", "columns is empty"],
    ),
    (
      changed("tables", 0, "columns", value=["tset"]),
      ["metric 'tset'", "test"],
    ),
    (
      changed("claims", 0, "below", value="kl_0/sft"),
      ["'Better'", "kl_0 has no stage 'sft'"],
    ),
    (changed("claims", 0, "by", value="much"), ["claims[0]", "'much'"]),
    (changed("claims", 2, "equal", value=["main/reft"]), ["claims[2]", "two"]),
    (changed("figures", 0, "over", value="time"), ["figures[0]", "share"]),
    (
      changed("figures", 1, "points", "ReFT", value={"none": "main/reft"}),
      ["figures[1]", "'none' should be a number"],
    ),
    (
      changed("figures", 1, "title", value="Dev!"),
      ["figure 'Dev!'", "dev.png, as that of 'Dev' is"],
    ),
    (
      changed("figures", 0, "share", value="per cent"),
      ["figures[0]: share: 'per cent'", "true or false"],
    ),
    (changed("figures", 0, "over", value=["step"]), ["figures[0]: over"]),
    (
      changed("tables", 0, "rows", 0, "label", value=["SFT"]),
      ["tables[0]: rows[0]: label: ['SFT'] should be text"],
    ),
    (
      changed("tables", 0, "columns", value=[["test"]]),
      ["tables[0]: columns: ['test'] should be text"],
    ),
    (changed("tables", 0, "columns", value=[1]), ["unknown metric '1'"]),
    (changed("tables", 0, "note", value=["A"]), ["tables[0]: note: ['A']"]),
    (
      changed("claims", 0, "metric", value=5),
      ["claim 'Better'", "unknown metric '5'"],
    ),
    (
      changed("claims", 0, "text", value=True),
      ["claims[0]: text: True should be text, in quotes"],
    ),
    (
      changed("claims", 3, "below", value=0.3),
      ["claims[3]: compares 0.1 and 0.3", "RUN/STAGE"],
    ),
    (
      changed("claims", 0, "below", value=math.nan),
      ["claims[0]: nan should be a number"],
    ),
    (changed("claims", 2, "within", value=-1), ["claims[2]: within: -1"]),
    (changed("claims", 0, "by", value=-0.1), ["claims[0]: by: -0.1"]),
    (
      changed("evaluations", 0, "run", value=["main"]),
      ["evaluations[0]: run: ['main'] should be text"],
    ),
    (
      changed("evaluations", 0, "reward_model", value=["main"]),
      ["evaluations[0]: reward_model: ['main'] should be text"],
    ),
    (
      changed("runs", "after_long", "from", value=["long"]),
      ["run after_long: from: ['long'] should be text"],
    ),
  ],
  ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_cannot_be_run_is_refused_in_one_line(tmp_path, content, words):
  file = write(tmp_path, content)
  with pytest.raises(errors.UserError) as caught:
    checking.check(reading.load(file))
  text = str(caught.value)
  assert "\n" not in text
  for word in ["suite.yaml", *words]:
    assert word in text


@pytest.mark.parametrize(
  ("path", "shown"),
  [
    (("tables", 0, "rows", 0, "label"), lambda s: s.tables[0].rows[0].label),
    (("tables", 0, "title"), lambda s: s.tables[0].title),
    (("tables", 0, "note"), lambda s: s.tables[0].note),
    (("figures", 0, "title"), lambda s: s.figures[0].title),
    (("figures", 1, "x"), lambda s: s.figures[1].x),
    (("claims", 0, "text"), lambda s: s.claims[0].text),
    (("claims", 0, "paper"), lambda s: s.claims[0].paper),
    (("about",), lambda s: s.about),
  ],
  ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_a_number_is_text_where_text_is_shown(tmp_path, path, shown):
  suite = reading.load(write(tmp_path, changed(*path, value=7)))
  checking.check(suite)
  assert shown(suite) == "7"


def test_a_run_is_named_by_a_number(tmp_path):
  content = changed("runs", 16, value={"stages": ["warmup", "reft"]})
  content["runs"]["after"] = {"from": 16, "stages": ["sft"]}
  content["claims"][0]["above"] = "16/reft"
  suite = reading.load(write(tmp_path, content))
  checking.check(suite)
  assert suite.claims[0].one.run == "16"
  assert suite.lenders("after") == {"16", "main"}


def test_what_is_left_empty_is_as_if_it_were_not_there(tmp_path):
  content = copy.deepcopy(SUITE)
  content["tables"][0]["note"] = None
  content["tables"][0]["rows"][0]["paper"] = {"GSM8K": None, "SVAMP": 1.0}
  content["claims"][0]["by"] = None
  content["evaluations"].append(
    {"run": "long", "stages": ["warmup"], "reward_model": None}
    | {"settings": None}
  )
  content["runs"]["kl_0"]["model"] = None
  suite = reading.load(write(tmp_path, content))
  checking.check(suite)
  (table,) = suite.tables
  assert table.note == ""
  assert table.rows[0].paper == {"SVAMP": 1.0}
  assert suite.claims[0].by == 0
  assert suite.evaluations[1].reward_model is None
  assert suite.config("kl_0", 7, FOLDER).model.path


@pytest.mark.parametrize("key", ["label", "result"])
def test_what_is_needed_is_not_left_empty(tmp_path, key):
  content = copy.deepcopy(SUITE)
  content["tables"][0]["rows"][0][key] = None
  with pytest.raises(errors.UserError, match=rf"rows\[0\]: {key} is missing"):
    reading.load(write(tmp_path, content))


@pytest.mark.parametrize(
  "own", [{"model.path": "a/b"}, {"model": {"path": "a/b"}}]
)
def test_a_run_with_a_base_model_of_its_own_is_lent_none(tmp_path, own):
  run = {"stages": ["reft"], **own}
  suite = reading.load(write(tmp_path, changed("runs", "own", value=run)))
  assert suite.lenders("own") == set()
  model = suite.config("own", 7, FOLDER).model
  assert (model.path, model.warmup) == ("a/b", None)


def test_pictures_are_named_after_their_titles():
  assert suites.picture("Dev, over steps (%)") == "dev-over-steps.png"
  assert suites.picture("%") == "figure.png"


def test_an_evaluation_is_of_the_runs_settings_and_its_own(suite):
  (evaluation,) = suite.evaluations
  overrides = ["evaluation.resamples=7"]
  config = suite.evaluation_config(evaluation, 7, FOLDER, overrides)
  assert config.reft.steps == 2
  assert config.evaluation.samples == 4
  assert config.evaluation.resamples == 7
  assert config.model.path == "out/runs/main-seed7/models/sft"
  assert config.model.warmup is None


def test_votes_are_of_1_10_and_all_samples_unless_told(tmp_path):
  settings = {"evaluation": {"samples": 25}}
  content = changed("evaluations", 0, "settings", value=settings)
  content["tables"][0]["columns"] = ["majority@1", "pass@10", "rerank@25"]
  content["claims"] = []
  checking.check(reading.load(write(tmp_path, content)))
  content["tables"][0]["columns"] = ["majority@4"]
  with pytest.raises(errors.UserError, match="majority@4"):
    checking.check(reading.load(write(tmp_path, content)))


def test_without_samples_only_greedy_answers_are_known(tmp_path):
  settings = {"evaluation": {"samples": 0}}
  content = changed("evaluations", 0, "settings", value=settings)
  del content["evaluations"][0]["reward_model"]
  content["tables"][0]["columns"] = ["greedy"]
  content["claims"] = []
  checking.check(reading.load(write(tmp_path, content)))
  content["tables"][0]["columns"] = ["sampled"]
  with pytest.raises(errors.UserError, match="sampled"):
    checking.check(reading.load(write(tmp_path, content)))


def test_a_command_lines_settings_are_checked_too(suite):
  with pytest.raises(errors.UserError, match="4 is more than"):
    checking.check(suite, ["evaluation.samples=2"])


def test_a_file_that_is_not_there_or_not_yaml(tmp_path):
  with pytest.raises(errors.UserError, match=r"no such file.*embedded.*tiny"):
    reading.load("embeded")
  (tmp_path / "broken.yaml").write_text("name: [")
  with pytest.raises(errors.UserError, match=r"broken.yaml line \d"):
    reading.load(str(tmp_path / "broken.yaml"))


@pytest.mark.parametrize("name", reading.packaged())
def test_packaged_suites_are_valid_and_named_like_their_file(name):
  suite = reading.load(name)
  checking.check(suite)
  assert suite.name == name
