"""The command: targets, published models, tables and errors."""

import io
import json

import planned
import pytest

from reft_jax import plan
from reft_jax.config import loading
from reft_jax.models import networks
from reft_jax.planner import (
  hardware,
  plans,
  showing,
  subject,
  timing,
  worker,
)
from reft_jax.runtime import console as console_lib


def printed(show, some) -> str:
  out = io.StringIO()
  show(some, console_lib.Console(out))
  return out.getvalue()


@pytest.mark.parametrize(
  ("text", "name", "devices", "topology"),
  [
    ("cpu", "cpu", 1, ""),
    ("CPU x8", "cpu x8", 8, ""),
    ("h100", "h100 x1", 1, "1x1x1"),
    ("a100-40gx4", "a100-40g x4", 4, "1x1x4"),
    ("h100 x64", "h100 x64", 64, "8x1x8"),
    ("v5litepod-16", "v5e-16", 16, "4x4"),
    ("v5p-8", "v5p-8", 4, "2x2x1"),
    ("v5p-128", "v5p-128", 64, "4x4x4"),
  ],
)
def test_targets(text, name, devices, topology):
  found = hardware.target(text)
  assert (found.name, found.devices) == (name, devices)
  assert found.topology == topology
  assert hardware.target(found.name) == found
  assert 0 < found.usable < found.chip.memory


def test_every_gpu_is_described():
  for chip in hardware.GPUS.values():
    text = hardware.description(chip)
    assert f"device_memory_size: {chip.memory}" in text


def test_published_models_have_as_many_parameters_as_published():
  shapes = {name: subject.read_shape(name) for name in subject.published()}
  for name, parameters in {
    "codellama-7b": 6_738_546_688,
    "llama-3.1-8b": 8_030_261_248,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "mistral-7b": 7_248_023_552,
    "codegen-350m": 356_712_448,
    "codeparrot-small": 111_008_256,
  }.items():
    assert networks.Networks(shapes[name]).parameters == parameters


def test_packaged_experiments_need_no_model():
  config = loading.load(["gsm8k_nl_codellama_7b"])
  found = subject.subject(config, None)
  assert found.model == "codellama-7b"
  assert found.problems == 7465 - config.data.dev_size
  assert (found.prompt_slots, found.response_slots) == (304, 400)
  assert found.supervised == "sft"


@pytest.mark.slow
def test_a_plan_says_what_a_tensor_axis_does_not_split():
  config = loading.load(["gsm8k_nl_codellama_7b"], ["mesh.tensor=8"])
  some = subject.subject(config, "qwen2.5-7b")
  target = hardware.target("h100 x8")
  found = worker.ask(some, target, compiled=False, search=False)
  warning = "q_DNH: N=28 does not divide by the mesh axis tensor=8;"
  warning += " replicated there."
  assert found["warnings"].count(warning) == 1
  assert f"\n{warning}\n" in printed(showing.show, found)
  eight = found["time"]["phases"]["update"]["flops"]
  parameters = found["parameters"], found["learnt"]
  four = timing.work(some.changed({"mesh.tensor": 4}), target, parameters)
  # Twice the devices share what is split, and attention's are not.
  assert eight > 1.5 * four["update"].flops


@pytest.mark.parametrize(
  ("stages", "unplanned"),
  [
    ("base,warmup,reft", ["base"]),
    ("warmup,online_st,reft", []),
    ("warmup,offline_st", ["collecting samples"]),
    ("warmup,reward_model", ["reward_model", "collecting samples"]),
  ],
)
def test_what_is_not_planned_is_named(stages, unplanned):
  some = planned.tiny_subject(f"stages=[{stages}]")
  target = hardware.target("h100")
  found = plans.make(some, target, compiled=False, search=False)
  assert found["unplanned"] == unplanned
  assert found["warnings"] == []
  told = printed(showing.introduce, some)
  assert (f"not planned: {', '.join(unplanned)}\n" in told) == bool(unplanned)
  limited = "what is planned " * bool(unplanned)
  assert showing.verdict(found).startswith(f"{limited}may fit: ")
  compiled = found | {"compiled": True}
  assert showing.verdict(compiled).startswith(f"{limited}fits: ")


@pytest.mark.parametrize(
  ("argv", "says"),
  [
    (["--target", "b900 x8"], "not known"),
    (["--target", "h100 x12"], "a multiple of 8"),
    (["--target", "cpu x0"], "1 device or more"),
    (["--target", "v5e-3"], "v5e-1, v5e-4"),
    (["--target", "v5p-4"], "counts cores"),
    (["--target", "v5p-9"], "counts cores"),
    (["--model", "gpt-9", "--config", "smoke"], "--model gpt-9"),
    (["--model", "codellama-7b"], "name an experiment"),
    (["--target"], "--target needs a name"),
    (["--config", "smoke", "--frobnicate"], "unknown argument"),
    (["--frobnicate"], "expected [--target NAME]... [--model NAME]"),
    (["--config", "smoke", "model.path=no/such/folder"], "model.path"),
    pytest.param(
      ["--config", "smoke", "--arithmetic", "mesh.fsdp=3", "--target=cpu x2"],
      "mesh",
      marks=pytest.mark.slow,
    ),
  ],
)
def test_bad_input_is_one_line(argv, says, capsys):
  assert plan.main(argv) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ")
  assert error.count("\n") == 1
  assert says in error


@pytest.mark.parametrize(
  "argv", [["--model", "codellama-7b"], ["--frobnicate"], ["--target"]]
)
def test_help_comes_first(argv, capsys):
  assert plan.main([*argv, "--help"]) == 0
  out = capsys.readouterr().out
  assert "Usage: python -m reft_jax.plan [--target NAME]..." in out


@pytest.mark.slow
def test_arithmetic_of_seven_billion_parameters(capsys):
  """Without any compiler: 16 bytes a weight over 8 devices, and no guess."""
  argv = ["--config", "gsm8k_nl_codellama_7b", "--target", "h100 x8"]
  assert plan.main([*argv, "--arithmetic", "--json"]) == 0
  (found,) = json.loads(capsys.readouterr().out)["plans"]
  assert not found["compiled"]
  update = found["memory"]["phases"]["update"]
  each = 6_738_546_688 / 8
  for kind, size in (("weights", 4), ("optimizer", 8), ("reference", 4)):
    assert update[kind] == pytest.approx(size * each, rel=1e-3)
  sample = found["memory"]["phases"]["sample"]
  # The sampler's own layout: an eighth of the bfloat16 copy.
  assert found["sampler_tensor"] == 8
  assert sample["published"] == pytest.approx(2 * each, rel=1e-3)
  # 4 rows of 704 columns of 524 kB.
  assert sample["cache"] == pytest.approx(4 * 704 * 524_288, rel=1e-3)
  assert found["time"]["reft"]["epoch"] > found["time"]["reft"]["step"]


@pytest.mark.slow
def test_without_a_compiler_it_says_what_to_install(capsys, monkeypatch):
  monkeypatch.setattr(worker, "_found", lambda module: False)
  argv = ["--config", "gsm8k_nl_codellama_7b"]
  argv += ["--target", "h100 x8", "--target", "v5e-8", "--no-search"]
  assert plan.main(argv) == 0
  out = capsys.readouterr().out
  assert "pip install --no-deps jax-cuda13-pjrt==" in out
  assert 'pip install "jax[tpu]==' in out
  assert "arithmetic alone" in out
  assert "may fit" in out
  assert "does not fit" in out  # 16 bytes a weight are too many for a v5e.


@pytest.mark.parametrize("name", ["h100 x8", "v5e-8"])
def test_a_real_compiler(name, capsys):
  if lacking := worker.missing(hardware.target(name).chip.platform):
    pytest.skip(f"needs the target's compiler: {lacking}")
  argv = ["--config", "smoke", "--target", name, "--json", "base.layers=1"]
  argv += ["stages=[base,reft]", "reft.ppo_epochs=1"]
  assert plan.main(argv) == 0
  (found,) = json.loads(capsys.readouterr().out)["plans"]
  assert found["compiled"]
  assert found["memory"]["fits"]
  update = next(p for p in found["programs"] if p["name"] == "update")
  assert {"all-gather"} <= {row["kind"] for row in update["traffic"]}


def test_the_compilers_flags_stay_in_their_process(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "--ours")
  monkeypatch.setenv("JAX_PLATFORMS", "tpu")
  cpu = worker.environment(hardware.target("cpu x2"))
  gpu = worker.environment(hardware.target("h100 x8"))
  assert cpu["JAX_NUM_CPU_DEVICES"] == "2"
  assert "XLA_FLAGS" not in cpu
  assert "--ours" not in gpu["XLA_FLAGS"]
  assert gpu["JAX_PLATFORMS"] == cpu["JAX_PLATFORMS"] == "cpu"
