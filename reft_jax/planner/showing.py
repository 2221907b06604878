"""Plans as tables and sentences."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reft_jax.planner import hardware
from reft_jax.planner import subject as subjects
from reft_jax.runtime import console as console_lib

_COLUMNS = ("weights", "optimizer", "reference", "published", "cache", "rest")


def introduce(subject: subjects.Subject, screen: console_lib.Console) -> None:
  """Prints what is planned."""
  problems = "?" if subject.problems is None else f"{subject.problems:,}"
  screen.line(
    f"{subject.config.name} with {subject.model}: prompts of"
    f" {subject.prompt_slots} and responses of {subject.response_slots} tokens,"
    f" all as long as allowed; {problems} training problems"
  )
  if subject.unplanned:
    screen.line(f"not planned: {', '.join(subject.unplanned)}")


def show(plan: Mapping[str, Any], screen: console_lib.Console) -> None:
  """Prints one target's plan: memory, time, collectives and the verdict."""
  mesh = " x ".join(f"{axis}={size}" for axis, size in plan["mesh"].items())
  screen.line(f"{plan['target']}, mesh {mesh}", style="bold")
  if plan.get("install"):
    screen.line(
      f"its compiler is not installed; to compile the programs for it:"
      f" {plan['install']}"
    )
  if not plan["compiled"]:
    screen.line(
      "arithmetic alone: of temporaries only gradients are counted, so the"
      " memory needed is more than this"
    )
  for warning in plan["warnings"]:
    screen.line(warning)
  unit, size = _unit([plan["memory"]["peak"]])
  screen.table(
    f"{unit} of a device by phase",
    ["phase", *_COLUMNS, "total"],
    [
      [
        name if row["fits"] else f"{name} !",
        *(_size(row.get(column), size) for column in (*_COLUMNS, "total")),
      ]
      for name, row in plan["memory"]["phases"].items()
    ],
  )
  screen.line(
    "rest: temporaries (gradients, activations), batches and results;"
    " published: the copy that is sampled from"
  )
  if not plan["memory"]["fits"]:
    screen.line(f"!: more than the usable {_text(plan['memory']['usable'])}")
  _show_time(plan, screen)
  screen.line(verdict(plan), style="bold")
  for line in _advice(plan):
    screen.line(line)


def _show_time(plan: Mapping[str, Any], screen: console_lib.Console) -> None:
  """Prints the least time of phases and stages, and the collectives."""
  screen.table(
    "the least time of a step, by phase",
    [
      *("phase", "TFLOP a device", "GB of memory", "GB sent"),
      *("seconds", "bound by"),
    ],
    [
      [
        *(name, x["flops"] / 1e12, x["memory"] / 1e9, _sent(x) / 1e9),
        *(x["seconds"], x["bound"]),
      ]
      for name, x in plan["time"]["phases"].items()
    ],
  )
  if traffic := list(_traffic(plan)):
    screen.table(
      "collectives of a step, by program",
      ["program", "kind", "how many", "GB of arrays", "GB sent a device"],
      traffic,
    )
  for name, times in plan["time"].items():
    if name != "phases":
      screen.line(_duration(name, times))


def compare(
  plans: Sequence[Mapping[str, Any]], screen: console_lib.Console
) -> None:
  """Prints a table of several targets."""
  unit, size = _unit([plan["memory"]["peak"] for plan in plans])
  screen.table(
    f"{unit} of a device in its largest phase, and the least time",
    [
      *("target", "fits", "largest phase", "needs", "of"),
      *("ReFT step", "epoch", "bound by", "supervised step"),
    ],
    [_row(plan, size) for plan in plans],
  )


def _row(plan: Mapping[str, Any], size: int) -> list[Any]:
  memory, times = plan["memory"], plan["time"]
  fits = "yes" if plan["compiled"] else "perhaps"
  reft = times.get("reft", {})
  supervised = times["phases"].get("supervised", {})
  bounds = dict.fromkeys(
    row["bound"]
    for name, row in times["phases"].items()
    if name in ("sample", "score", "update")
  )
  return [
    plan["target"],
    fits if memory["fits"] else "no",
    memory["phase"],
    *(_size(memory[name], size) for name in ("peak", "usable")),
    *(_span(reft.get(name)) for name in ("step", "epoch")),
    ", ".join(bounds) or None,
    _span(supervised.get("seconds")),
  ]


def verdict(plan: Mapping[str, Any]) -> str:
  """Whether it fits, in a sentence."""
  memory = plan["memory"]
  peak, usable = memory["peak"], memory["usable"]
  where = f"{memory['phase']} needs {_text(peak)} of a device"
  room = f"{_text(usable)} of its {_text(memory['capacity'])}"
  if not memory["fits"]:
    by = _text(peak - usable)
    return f"does not fit: {where}, {by} more than the usable {room}"
  some = "what is planned " if plan["unplanned"] else ""
  if not plan["compiled"]:
    return f"{some}may fit: {where}, temporaries not counted; usable are {room}"
  return (
    f"{some}fits: {where}; usable are {room}, which leaves"
    f" {_text(usable - peak)}"
  )


def _advice(plan: Mapping[str, Any]) -> Iterator[str]:
  memory = plan["memory"]
  kind = plan["target"].split(" x")[0]
  share = memory["peak"] / memory["capacity"]
  if kind in hardware.GPUS and memory["fits"] and share > hardware.GPU_FRACTION:
    yield (
      f"jax allocates {hardware.GPU_FRACTION:.0%} of a GPU's memory by"
      " default: set XLA_PYTHON_CLIENT_MEM_FRACTION=0.95"
    )
  if (found := plan["advice"]) is None:
    return
  fits = "fits" if plan["compiled"] else "may fit"
  if found["settings"] is not None:
    yield f"the smallest change that {fits}: {_settings(found['settings'])}"
    return
  yield "no change of batches, remat, dtype or mesh makes it fit"
  if found["lora"] is not None:
    yield (
      f"with adapters instead of weights, another method, it {fits}:"
      f" {_settings(found['lora'])}"
    )
  if found["target"] is not None:
    yield f"as it is, it {fits} {found['target']}"


def _settings(settings: Mapping[str, Any]) -> str:
  return " ".join(f"{key}={value}" for key, value in settings.items())


def _traffic(plan: Mapping[str, Any]) -> Iterator[list[Any]]:
  for program in plan["programs"]:
    for row in program["traffic"] or ():
      bound = "≤ " * row["bounded"]
      times = program["times"]
      yield [
        f"{program['phase']}: {program['name']}",
        row["kind"],
        f"{bound}{row['count'] * times:,.0f}",
        row["payload"] * times / 1e9,
        _sent(row) * times / 1e9,
      ]


def _sent(row: Mapping[str, Any]) -> float:
  return row["near"] + row["far"]


def _duration(name: str, times: Mapping[str, Any]) -> str:
  text = f"{name}: a step takes at least {_span(times['step'])}"
  if times["epoch"] is not None:
    text += f", an epoch {_span(times['epoch'])}"
  if times["all"] is not None:
    text += f", the stage {_span(times['all'])}"
  return text


def _span(seconds: float | None) -> str:
  if seconds is None:
    return "-"
  if seconds < 9.95:
    return f"{console_lib.number(seconds)}s"
  return console_lib.duration(seconds)


def _unit(sizes: Sequence[float]) -> tuple[str, int]:
  """A unit in which the largest size is readable: its name, its bytes."""
  return ("GiB", 2**30) if max(sizes) > 2**30 / 10 else ("MiB", 2**20)


def _size(value: float | None, size: int) -> str | None:
  return None if not value else f"{value / size:.1f}"


def _text(value: float) -> str:
  unit, size = _unit([abs(value)])
  return f"{value / size:.1f} {unit}"
