"""The training pipeline on a Kubeflow cluster: placed, uploaded when it is new, run once per key,
followed to its end.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from rareclass.adapters.cluster import Access, Kubeflow, Placement, Submitted, compiled, digest, placed
from rareclass.config import Config, SecretEnv, dump, environment_names, setting_fields, step_memory
from rareclass.errors import ConfigError
from rareclass.masking import masked_values
from rareclass.services import promotion
from rareclass.services.live import governor
from rareclass.services.live.ledger import Action, RepairBegun
from rareclass.services.training.steps import Progress, silent

IMAGE = "rareclass/pipeline"
_CRON_FIELDS = 6


@dataclass(frozen=True)
class Job:
    """One thing for Kubeflow to do. key : a second job of that key is the first one, unless that failed."""

    config: Config
    key: str
    arguments: Mapping[str, str]
    placement: Placement


def submit(
    config: Config,
    *,
    now: datetime,
    key: str | None = None,
    recurring: str | None = None,
    wait: bool = True,
    progress: Progress = silent,
) -> Submitted:
    """Run the pipeline on the cluster of ``config.cluster``, or with ``recurring`` on a schedule of six fields.

    key : name of the run; default: the model and the moment. Raises PipelineFailedError when the run fails and is
        waited for
    """
    if recurring is not None:
        return _schedule(config, checked_cron(recurring), progress)
    made = job(config, key=key or f"{config.name} {now:%Y-%m-%d %H:%M:%S}")
    return run(made, wait=wait, progress=progress)


def retrain(config: Config, number: int, *, now: datetime, progress: Progress = silent) -> Action:
    """Carry out a retrain that the governor reserved as a run of the pipeline, and record how it ended.

    Safe to repeat.
    """
    return governor.repair(
        config, number, now, retrain=lambda verdict: _retrained(config, number, verdict, progress), progress=progress
    )


def _retrained(config: Config, number: int, verdict: Any, progress: Progress) -> Action:
    from rareclass.services.live import repair

    repairs = promotion.history(config, kind="repair")
    reserved = next(entry for entry in repairs if RepairBegun.of(entry).number == number)
    # the moment of the decision, not of this attempt: a second attempt asks for the same rows
    asked = {"number": number, "now": reserved.at.isoformat(), "reason": reserved.reason}
    made = job(repair.judged_later(config), key=repair_key(config.name, number, reserved.at), repair=asked)
    run(made, wait=True, progress=progress)
    found = [e for e in promotion.history(config, kind="register") if e.payload.get("repair") == number]
    if not found:
        refused = [e.reason for e in promotion.history(config, kind="reject") if e.payload.get("repair") == number]
        why = f"gate: {refused[-1]}" if refused else "the run registered nothing: its report says why"
        return Action(reserved.at, "retrain", verdict.version or None, None, "rejected", why, {"run": made.key})
    version = str(found[-1].payload["version"])
    role = next((name for name, held in promotion.state(config).items() if held == version), "")
    outcome = "done" if role == "champion" else "challenger"
    numbers = {"run": made.key, "gate": found[-1].payload.get("gate"), "rows": found[-1].payload.get("trained")}
    return Action(reserved.at, "retrain", verdict.version or None, version, outcome, found[-1].reason, numbers)


def repair_key(model: str, number: int, reserved: datetime) -> str:
    """Name the run of a repair: the same for every attempt, and not that of another ledger, which counts from 1 too."""
    return f"{model}-repair-{number}-{reserved:%Y%m%dT%H%M%S}"


def job(config: Config, *, key: str, repair: Mapping[str, Any] | None = None, cache: bool = True) -> Job:
    """Put together what Kubeflow is asked for.

    repair : what a retrain is about; its rows come from the live log, so nothing of it may be cached
    cache : False for schedules, whose parameters stay the same while the data moves on
    """
    from rareclass.adapters import tables

    image = config.cluster.image or f"{IMAGE}:{installed('rareclass')}"
    dask = config.compute.dask
    if config.compute.engine == "dask" and dask.scheduler is None and dask.image is None:  # a step has one pod's room
        beside = config.compute.model_copy(update={"dask": dask.model_copy(update={"image": image})})
        config = config.model_copy(update={"compute": beside})
    version = tables.data_version(config.data.path) if cache and repair is None else None
    arguments = {
        "config": json.dumps(shown(config), sort_keys=True),
        "data_version": version or "",
        "repair": json.dumps(repair, sort_keys=True) if repair is not None else "",
    }
    cluster = config.cluster
    placement = Placement(
        image=image,
        cpu=config.compute.cpu,
        memory=step_memory(config.compute.memory),
        env=cluster.env,
        secrets=_secrets(cluster.secrets),
        cache=version is not None,
        user=cluster.run_as_user,
    )
    return Job(config, key, arguments, placement)


def run(job: Job, *, wait: bool, progress: Progress = silent) -> Submitted:
    """Upload what is new, start the run unless it is there, and follow it."""

    api, pipeline, version = _uploaded(job, progress)
    found = api.run(job.config.name, job.key, pipeline, version, job.arguments, job.config.cluster.account)
    progress("run", f"{found.name} ({found.id}){'' if found.new else ', there already'}")
    if wait:
        api.follow(found.id, progress)
    assert isinstance(found, Submitted)
    return found


def _schedule(config: Config, cron: str, progress: Progress) -> Submitted:
    made = job(config, key=f"{config.name}-schedule", cache=False)
    api, pipeline, version = _uploaded(made, progress)
    found: Submitted = api.schedule(
        config.name, made.key, cron, pipeline, version, made.arguments, config.cluster.account
    )
    progress("schedule", f"{cron} ({found.id}){'' if found.new else ', there already'}")
    return found


def _uploaded(job: Job, progress: Progress) -> tuple[Any, str, str]:

    api = Kubeflow(job.config.cluster.host, _access(job.config))
    name = f"rareclass-{job.config.name}"
    text = placed(compiled(), job.placement)
    pipeline, version, new = api.upload(name, text)
    progress("pipeline", f"{name} version {digest(text)}{' uploaded' if new else ', there already'}")
    return api, pipeline, version


def _secrets(named: Sequence[SecretEnv]) -> dict[str, dict[str, str]]:
    """Return Secret -> {variable: key}; one that is named twice gives all that it is asked for.

    Raises ConfigError when one variable comes from two places.
    """
    found: dict[str, dict[str, str]] = {}
    taken: dict[str, str] = {}
    for each in named:
        for variable, key in each.env.items():
            where = f"{each.name}/{key}"
            if taken.setdefault(variable, where) != where:
                raise ConfigError(
                    f"cluster.secrets gives {variable} from {taken[variable]} and from {where}. Name it once"
                )
            found.setdefault(each.name, {})[variable] = key
    return found


def asked_by(config: Config, cluster: Mapping[str, str], token: str | None) -> Config:
    """Return the configuration with what the command line says of the cluster.

    token : file that holds it, ``-`` for standard input; never the token itself, which every process listing would show
    """
    if token == "-":  # noqa: S105 (a file's name)
        os.environ[config.cluster.token_env] = sys.stdin.readline().strip()
    elif token is not None:
        if not Path(token).is_file():
            raise ConfigError("--token is not a file. Pass a file that holds the token, or - for standard input")
        os.environ.pop(config.cluster.token_env, None)
        cluster = {**cluster, "token_file": token}
    return config.model_copy(update={"cluster": config.cluster.model_copy(update=dict(cluster))})


def _access(config: Config) -> Any:
    """Who asks: the token of the environment before that of a file."""

    settings = config.cluster
    token = os.environ.get(settings.token_env, "").strip() or None
    return Access(settings.namespace, token, None if token else settings.token_file, settings.header, settings.ca_file)


def shown(config: Config) -> dict[str, Any]:
    """Return the configuration as the run's parameter shows it to everybody: without what Secrets give the steps.

    Raises ConfigError when a password would be left in it.
    """
    raw = dump(config)
    given = {name for each in config.cluster.secrets for name in each.env}
    for name in given & environment_names().keys():
        _leave_to_the_steps(raw, name, environment_names()[name])
    for name, value in config.cluster.env.items():
        if masked_values({name: value})[name] != value:
            raise ConfigError(
                f"cluster.env.{name} holds a password, which every reader of the run would see. "
                "Put it into a Secret and name that in cluster.secrets"
            )
    raw["cluster"] = {}
    for section, values in raw.items():
        for key, value in values.items() if isinstance(values, dict) else ():
            if value != masked_values({key: value})[key]:
                raise ConfigError(
                    f"{section}.{key} holds a password, which every reader of the run would see. "
                    "Put it into a Secret and name that in cluster.secrets"
                )
    return raw


def _leave_to_the_steps(raw: dict[str, Any], variable: str, setting: str) -> None:
    """Take out what a Secret gives the steps; a word stands for what has no default."""
    *sections, last = setting.split(".")
    values = raw
    for section in sections:
        values = values[section]
    if setting_fields()[setting].is_required():
        values[last] = f"from {variable}"
    else:
        del values[last]


def checked_cron(text: str) -> str:
    """Return a schedule of six fields (the first are seconds). Raises ConfigError."""
    if len(text.split()) != _CRON_FIELDS:
        raise ConfigError(
            f"--recurring '{text}' has {len(text.split())} fields; Kubeflow wants 6, the first are seconds, like '0 0 "
            "2 * * *' for every day at two"
        )
    return " ".join(text.split())
