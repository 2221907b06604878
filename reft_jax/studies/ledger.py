"""The ledger of a suite: which jobs were started, and how they ended."""

import json
import pathlib
import time

from reft_jax import files
from reft_jax.errors import UserError
from reft_jax.studies import jobs

# The exit code of reft_jax.train when updates are no longer finite.
DIVERGED = 4


class Ledger:
  """The file jobs.json in the folder of a suite's results.

  Attributes:
    file: the file.
    at_once: how many jobs could run at once when the last one started.
    seconds: how long jobs ran by the clock, in all commands that worked on the
      suite, up to the last `save`.
  """

  def __init__(self, folder: pathlib.Path):
    self.file = file = folder / "jobs.json"
    try:
      content = json.loads(file.read_text()) if file.exists() else {}
    except ValueError as error:
      raise UserError(
        f"{file} is damaged: not JSON; delete it and re-run the command, which"
        " resumes the runs that are there."
      ) from error
    self._jobs = content.get("jobs", {})
    self.at_once = content.get("at_once", 1)
    self.seconds = content.get("seconds", 0.0)
    self._saved: float | None = None  # None until a job is started.

  def started(self, job: jobs.Job, at_once: int) -> None:
    """Enters a job that has started."""
    self.at_once = at_once
    if self._saved is None:
      self._saved = time.monotonic()
    self._jobs[job.name] = {
      "command": list(job.command),
      "settings": job.settings,
      "origin": job.origin,
      "code": None,
    }
    self.save()

  def ended(self, job: jobs.Job, code: int, seconds: float) -> None:
    """Enters how a started job ended."""
    self._jobs[job.name] |= {"code": code, "seconds": round(seconds, 1)}
    self.save()

  def save(self, every: float = 0.0) -> None:
    """Writes the file, if the last save is `every` seconds ago or more.

    A command that starts no job leaves the file as it is.
    """
    now = time.monotonic()
    if self._saved is None or now - self._saved < every:
      return
    self.seconds = round(self.seconds + now - self._saved, 1)
    self._saved = now
    content = {"at_once": self.at_once, "seconds": self.seconds}
    content |= {"jobs": self._jobs}
    files.replace(self.file, json.dumps(content, indent=2) + "\n")

  def done(self, job: jobs.Job) -> bool:
    """Whether a job need not run: it ended as wanted, or diverged.

    An entry of an older version has no fingerprints: the job runs again, and
    resumes from what is there.
    """
    entry = self._jobs.get(job.name, {})
    if entry.get("settings") != job.settings or entry["origin"] != job.origin:
      return False
    code = entry["code"]
    return code == DIVERGED or (code == 0 and job.finished())

  def outdated(self, job: jobs.Job) -> bool:
    """Whether a job was started from models of other settings."""
    entry = self._jobs.get(job.name, {})
    return entry.get("origin", job.origin) != job.origin

  def why(self, job: jobs.Job) -> str | None:
    """Why a job has no results; None if it has."""
    entry = self._jobs.get(job.name)
    if entry is None or entry["code"] is None:
      return "not finished"
    if not self.done(job):
      return (
        "finished with other settings or from other models, or its results are"
        " gone"
      )
    if entry["code"] == DIVERGED:
      return "diverged: its updates were no longer finite"
    return None

  def succeeded(self) -> set[str]:
    """The names of the jobs whose models others can start from."""
    return {name for name, entry in self._jobs.items() if entry["code"] == 0}
