"""Weights & Biases: online, or offline for `wandb sync`."""

import html
import secrets
import shlex
from collections.abc import Callable
from typing import Any

from minigpt.config import RequestError, WandbConfig
from minigpt.training.loggers.base import Histogram, Logger, Metrics, RunInfo

INIT_SECONDS = (
    10.0  # to reach the server; less than a run waits at its end, so that this session is kept offline in time
)
FINISH_SECONDS = 10.0  # to upload the rest at the end


class WandbLogger(Logger):
    """Sends metrics, samples and histograms to W&B; the lines of one step become one row there.

    What it keeps is in RUN/wandb. A run that goes on is the same run there (its id is in RUN/loggers.json). Two things
    W&B does not take back. Its rows only ever go forward: of steps that are done again, after a resume or a
    restoration, it keeps what it was told first, and offline, where it cannot know, both. And the config that it shows
    is that of the last session.

    When the server cannot be reached in 10 seconds, the session is kept offline, and `say` tells how to send it later.
    """

    label = "Weights & Biases"

    def __init__(self, config: WandbConfig, say: Callable[[str], None]) -> None:
        self.config, self._say = config, say
        self._run: Any = None
        self._id = ""
        self._step = 0  # of the newest row
        self._exit_code = 0

    def start(self, run: RunInfo) -> None:
        """Begin the run there, or go on with it."""
        if self._run is not None:  # gone back to an earlier step: there is no way back in W&B
            return
        self._id = run.id
        try:
            self._run = self._init(run, run.id, self.config.mode)
        except _wandb().errors.CommError as error:
            self._say(f"{self.label} cannot be reached ({_first_line(error)})")
            self._run = self._init(run, f"{run.id}-{secrets.token_hex(2)}", "offline")  # W&B still holds the first id
        self._step = self._run.starting_step
        if self._run.offline:
            self._say(f"{self.label} is offline: `{self._sync_command()}` sends this session later")
        else:
            self._say(f"{self.label}: {self._run.url}")

    def _init(self, run: RunInfo, id: str, mode: str | None) -> Any:
        settings = quiet_setup()
        return _wandb().init(
            project=self.config.project, entity=self.config.entity, group=self.config.group, tags=self.config.tags,
            name=self.config.name or run.name, id=id, resume="allow", dir=run.run_dir, config=run.config, mode=mode,
            reinit="create_new", settings=settings,
        )  # fmt: skip

    def _sync_command(self) -> str:
        """Sends what is in the session's folder to the run, also if the folder has another id."""
        return f"wandb sync --id {self._id} {shlex.quote(str(self._run.settings.sync_dir))}"

    def log(self, metrics: Metrics) -> None:
        """All keys."""
        self._send(metrics["step"], metrics)

    def histograms(self, step: int, values: dict[str, Histogram]) -> None:
        """As W&B has them, bins and all."""
        self._send(step, {k: _wandb().Histogram(np_histogram=(h.counts, h.edges)) for k, h in values.items()})

    def sample(self, step: int, text: str) -> None:
        """A text, shown as it is."""
        self._send(step, {"sample": _wandb().Html(f"<pre style='white-space: pre-wrap'>{html.escape(text)}</pre>")})

    def failed(self, error: BaseException) -> None:
        """The run is shown as failed."""
        self._exit_code = 1

    def close(self) -> None:
        """Upload what is still waiting."""
        if self._run is None:
            return
        try:
            self._run.finish(exit_code=self._exit_code)
        except TimeoutError:
            self._say(f"{self.label} has not got everything: `{self._sync_command()}` sends the rest")

    def _send(self, step: int, values: dict[str, Any]) -> None:
        if step >= self._step:
            self._run.log(values, step=step)
            self._step = step


def quiet_setup() -> Any:
    """Settings with which wandb says nothing of its own, asks nothing, leaves the streams alone, and soon gives up."""
    settings = _wandb().Settings(
        silent=True, console="off", init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS, finish_timeout_raises=True
    )
    _wandb().setup(settings=settings)  # also for what it says before there is a run
    return settings


def require_login(config: WandbConfig) -> None:
    """Raises RequestError if the run is to be sent to a server that nobody has logged in to. Sends nothing."""
    quiet_setup()
    mode = config.mode or _wandb().setup().settings.mode  # which knows WANDB_MODE and `wandb offline`
    if mode == "online" and not _wandb().login(prompt=False, verify=False):
        raise RequestError(
            "loggers.wandb.enabled needs an account: run `wandb login` first, "
            "or choose loggers.wandb.mode=offline or --no-wandb"
        )


def _wandb() -> Any:
    """The package, which nobody needs unless it is asked for; without its types, which differ between its versions."""
    import wandb

    return wandb


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
