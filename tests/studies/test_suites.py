"""Suite files: what they mean, what runs lend each other, what is refused."""

import copy
import dataclasses
import functools
import pathlib

import pytest
import yaml

from reft_jax import errors
from reft_jax.config import loading
from reft_jax.studies import checking, reading, suites

SUITE = yaml.safe_load("""
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
GONE = object()
# A change to the suite, and words of the error. Without a value, the place is
# taken out.
REFUSED = """
runs = -> runs is missing
tables = {} -> tables: expected a list
rnus = {} -> unknown 'rnus'; expected name, about
file = here.yaml -> unknown 'file'
seeds = [0.5] -> seeds[0]: 0.5 should be a whole number
seeds = [] -> seeds is empty
seeds = [1, 2, 1] -> seeds: each can be run once
seeds = [1, 99999999999] -> run main, seed=99999999999 must be between
settings seed = 3 -> settings: seed follows from, leave it out
runs main output = here -> run main: output follows, leave it out
experiment = smok -> smok, no such file, smoke
settings reft stps = 1 -> reft.stps, steps
runs kl_0 stages = -> run kl_0: stages
runs kl_0 stages = [] -> run kl_0: stages is empty
runs kl_0 stages = [rft] -> run kl_0: , stages
runs kl_0 from = after_long -> run kl_0: from: after_long, it: main
runs after_long from = [long] -> from: ['long'] should be text
runs kl_0 data.test = no.jsonl -> run kl_0: data.test=no.jsonl: no such file
runs kl_0 model.path = a -> run kl_0: model.path=a: no Hugging Face model
runs main stages = [base, reft] -> evaluations[0]: run main has no stage
evaluations 0 reward_model = kl_0 -> [0]: run kl_0 has no stage 'reward_model'
evaluations 0 settings evaluation samples = 3 -> [0]: , 4 is more than, =3
evaluations 0 stages = [sft, reward_model] -> [0]: reward_model answers no
evaluations 0 settings evaluation reward_model = /no -> =/no: no reward model
evaluations 0 settings data.test = /no.json -> [0]: data.test=/no.json: no such
evaluations 0 settings evaluation split = dev -> [0]: , =dev, test problems
evaluations 0 settings evaluation batch_size = 0 -> [0]: , =0 must be above 0
evaluations = [&e {run: main, stages: [sft]}, *e] -> [1]: main/sft is evaluated
tables 0 rows 0 result = no/sft -> 'All', row 'SFT': no run 'no'; there are main
tables 0 rows 0 result = main -> rows[0]: result: 'main' should be RUN/STAGE
tables 0 rows 0 label = null -> tables[0]: rows[0]: label is missing
tables 0 columns = [majority@5] -> main/sft, majority@5, evaluation.at
tables 0 columns = [tset] -> unknown metric 'tset'; there are test
tables 0 note = [A] -> tables[0]: note: ['A'] should be text
figures 0 over = time -> figures[0]: over must be one of step, rows
figures 0 share = 'on' -> figures[0]: share: 'on' should be true or
figures 0 curves SFT = null -> curves: SFT: None should be RUN/STAGE
figures 0 curves SFT = main/rft -> figure 'Dev': run main has no stage
figures 0 x = steps -> figures[0]: unknown 'x'; expected curves
figures 0 curves = -> figures[0]: unknown 'over'; expected points
figures 1 points ReFT = {x: main/reft} -> points: ReFT: 'x' should be a number
figures 1 title = Dev! -> figure 'Dev!': its picture, dev.png, as that of 'Dev'
claims 0 below = kl_0/sft -> claim 'Better': run kl_0 has no stage
claims 0 below = .nan -> claims[0]: below: nan should be a number
claims 0 by = -0.1 -> claims[0]: by: -0.1 should be, 0 or more
claims 0 within = 0.1 -> claims[0]: unknown 'within'
claims 0 metric = 5 -> claim 'Better': unknown metric '5'
claims 0 text = true -> claims[0]: text: True should be text, in quotes
claims 2 equal = [main/reft] -> claims[2]: equal must hold two
claims 3 below = 0.3 -> claim 'None': compares 0.1 and 0.3, RUN/STAGE
"""


def changed(path: str, value):
  """The suite with one thing changed, or taken out; a path is a/0/b."""
  content = copy.deepcopy(SUITE)
  *parents, last = (int(key) if key.isdigit() else key for key in path.split())
  place = content
  for key in parents:
    place = place[key]
  if value is GONE:
    del place[last]
  else:
    place[last] = value
  return content


@pytest.fixture(scope="module", autouse=True)
def _each_config_is_loaded_once():
  """Most suites here differ in a place that changes no run's config."""
  cached = functools.cache(loading.load)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      loading, "load", lambda some, over=(): cached(tuple(some), tuple(over))
    )
    yield


@pytest.fixture
def load(tmp_path):
  """Writes a suite file and reads it."""

  def write_and_read(content=SUITE) -> suites.Suite:
    file = tmp_path / "suite.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    suite = reading.load(str(file))
    return dataclasses.replace(suite, output=pathlib.Path("out"))

  return write_and_read


@pytest.fixture
def suite(load) -> suites.Suite:
  return load()


def test_a_suite_is_read(suite):
  checking.check(suite)
  assert suite.seeds == (1, 2)
  assert list(suite.runs) == ["main", "kl_0", "long", "after_long"]
  assert suite.tables[0].rows[0].paper == {"GSM8K": "41.0"}
  better, vote, same, none = suite.claims
  assert better.above == suites.Reference("main", "reft", "test")
  assert better.by == 0.3
  assert vote.above.metric == "majority@4"
  assert same.within == 0.02
  assert [side.run for side in same.sides] == ["main", "kl_0"]
  assert none.above == 0.1
  dev, kl = suite.figures
  assert dev.curves["SFT"].metric == "dev/accuracy"
  assert list(kl.points["ReFT"]) == [0.0, 0.01]


def test_the_metric_of_a_claim_or_figure_is_that_of_its_references(load):
  content = changed("claims 1 metric", "dev")
  content["figures"][1]["metric"] = "kl"
  suite = load(content)
  metrics = [side.metric for side in suite.claims[1].sides]
  assert metrics == ["majority@4", "dev"]
  assert suite.figures[1].points["ReFT"][0].metric == "kl"
  assert suite.claims[0].above.metric == "test"


@pytest.mark.parametrize(
  ("run", "base", "warmup"),
  [
    ("main", None, None),
    ("kl_0", "main", "main"),
    ("long", "main", None),
    ("after_long", "main", "long"),
  ],
)
def test_the_nearest_run_lends_its_models(suite, run, base, warmup):
  model = suite.config(run, 7).model
  assert model.path == (base and f"out/runs/{base}-seed7/models/base")
  assert model.warmup == (warmup and f"out/runs/{warmup}-seed7/models/warmup")
  lenders = {lender for lender, _ in suite.lent(run).values()}
  assert lenders == {base, warmup} - {None}


@pytest.mark.parametrize("own", ["{model.path: a/b}", "{model: {path: a/b}}"])
def test_a_run_with_its_own_base_model_is_lent_none(load, own):
  content = changed("runs own", yaml.safe_load(own) | {"stages": ["reft"]})
  model = load(content).config("own", 7).model
  assert (model.path, model.warmup) == ("a/b", None)


def test_settings_are_laid_over_the_experiment_in_order(suite):
  kl_0 = suite.config("kl_0", 7)
  assert (kl_0.reft.steps, kl_0.reft.kl_coef) == (2, 0)
  assert (kl_0.seed, kl_0.output) == (7, "out/runs/kl_0-seed7")
  (evaluation,) = suite.evaluations
  assert suite.evaluation_settings(evaluation, 7) == [
    "evaluation.reward_model=out/runs/main-seed7/models/reward_model",
    "evaluation.samples=4",
    "evaluation.at=[1,4]",
  ]
  over = ("reft.kl_coef=0.5", "evaluation.resamples=7")
  suite = dataclasses.replace(suite, overrides=over)
  assert suite.config("kl_0", 7).reft.kl_coef == 0.5
  config = suite.evaluation_config(evaluation, 7)
  assert config.reft.steps == 2
  assert config.evaluation.samples == 4
  assert config.evaluation.resamples == 7
  assert config.model.path == "out/runs/main-seed7/models/sft"
  assert config.model.warmup is None


def test_settings_are_written_as_a_command_line_reads_them():
  values = {"a.name": "two words", "stages": ["sft"], "model.path": None}
  assert suites.written({**values, "b": 1e-5, "c": True}) == [
    'a.name="two words"',
    "stages=[sft]",
    "model.path=null",
    "b=1e-05",
    "c=true",
  ]


@pytest.mark.parametrize("case", REFUSED.strip().split("\n"))
def test_a_suite_that_cannot_run_is_refused_in_one_line(load, case):
  change, words = case.split(" -> ")
  path, value = change.split(" =")
  content = changed(path, yaml.safe_load(value) if value else GONE)
  with pytest.raises(errors.UserError) as caught:
    checking.check(load(content))
  text = str(caught.value)
  assert "\n" not in text
  for word in ["suite.yaml: ", *words.split(", ")]:
    assert word in text


def test_an_evaluation_has_its_runs_settings_and_the_overrides_too(load):
  content = changed("evaluations 0 settings evaluation", {"at": [1, 50]})
  content["runs"]["main"]["evaluation"] = {"samples": 4}
  suite = load(content)
  with pytest.raises(errors.UserError, match=r"50 is more .*samples=4"):
    checking.check(suite)
  suite = dataclasses.replace(suite, overrides=("evaluation.samples=2",))
  with pytest.raises(errors.UserError, match=r"50 is more .*samples=2"):
    checking.check(suite)


@pytest.mark.parametrize(
  ("samples", "computed", "missing"),
  [
    # Votes are of 1, 10, ... and all samples unless `at` says otherwise.
    (25, ["majority@1", "pass@10", "rerank@25"], "majority@4"),
    (0, ["greedy"], "sampled"),
  ],
)
def test_tables_hold_what_evaluations_compute(load, samples, computed, missing):
  content = changed("claims", [])
  (evaluation,), (table,) = content["evaluations"], content["tables"]
  evaluation["settings"] = {"evaluation": {"samples": samples}}
  evaluation["reward_model"] = "main" if samples else None
  table["columns"] = computed
  checking.check(load(content))
  table["columns"] = [missing]
  with pytest.raises(errors.UserError, match=missing):
    checking.check(load(content))


def test_a_number_is_text_and_a_key_without_a_value_counts_as_absent(load):
  content = changed("about", 7)
  content["runs"][16] = {"stages": ["warmup", "reft"], "model": None}
  content["runs"]["after"] = {"from": 16, "stages": ["sft"]}
  content["evaluations"].append(
    {"run": "long", "stages": ["warmup"], "reward_model": None}
    | {"settings": None}
  )
  (table,), (dev, kl) = content["tables"], content["figures"]
  table |= {"title": 7, "note": None}
  table["rows"][0] |= {"label": 7, "paper": {"GSM8K": None, "SVAMP": 1.0}}
  dev["title"] = kl["x"] = 7
  content["claims"][0] |= {"text": 7, "paper": 7, "by": None}
  content["claims"][0]["above"] = "16/reft"
  suite = load(content)
  checking.check(suite)
  (table,), (dev, kl), claim = suite.tables, suite.figures, suite.claims[0]
  shown = [suite.about, table.title, table.rows[0].label, dev.title, kl.x]
  assert [*shown, claim.text, claim.paper] == ["7"] * 7
  assert table.note == ""
  assert table.rows[0].paper == {"SVAMP": "1.0"}
  assert claim.by == 0
  assert claim.above.run == "16"
  assert not suite.evaluations[1].reward_model
  assert suite.config("16", 7).model.path
  assert suite.lent("after")["model.warmup"] == ("16", "warmup")


def test_pictures_are_named_after_their_titles():
  assert suites.picture("Dev, over steps (%)") == "dev-over-steps.png"
  assert suites.picture("%") == "figure.png"


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
