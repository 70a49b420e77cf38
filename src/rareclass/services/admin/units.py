"""What `rareclass up` runs, as files for those who start it otherwise: systemd units and timers, or a compose file."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from rareclass import __version__
from rareclass.config import Config
from rareclass.errors import ConfigError
from rareclass.services.admin.up import SERVICES, STOP_SECONDS, Unit, ports_of, set_options

IMAGES = {name: f"rareclass/{name}:{__version__}" for name in ("serving", "pipeline")}
"""The images that `make images` builds: one that answers, one that can train too."""


def write_systemd(config: Config, chosen: Sequence[Unit], folder: Path) -> list[Path]:
    """Write a unit per service, a unit and a timer per job, and one target that stands for all; return the files.

    They run as the user who writes them, in this folder, with this Python. Tokens and passwords do not belong into
    them: each reads `NAME.env` beside them, where that is. Raises ConfigError when the folder cannot be written.
    """
    name = f"rareclass-{config.name}"
    files = {f"{name}.target": _target(config, name, chosen)}
    for unit in chosen:
        files[f"{name}-{unit.name}.service"] = _service(config, name, unit, folder)
        if unit.every is not None:
            files[f"{name}-{unit.name}.timer"] = _timer(name, unit)
    return _written(folder, files)


def write_compose(config: Config, chosen: Sequence[Unit], path: str, overrides: Sequence[str], file: Path) -> Path:
    """Write a compose file: server, monitor and one container with the jobs, over this folder; return it.

    path : of the configuration, in this folder. Raises ConfigError where it is elsewhere, since a container would not
        see it.
    Tokens and passwords come from `NAME.env` beside the file, where that is, as with systemd.
    """
    import yaml

    here = Path.cwd()
    inside = Path(os.path.relpath(path, here))
    if inside.is_absolute() or inside.parts[0] == "..":
        raise ConfigError(
            f"the containers see '{here}' only, and '{path}' is elsewhere. Run this where the configuration is"
        )
    name = f"rareclass-{config.name}"
    secrets = {"path": _literal(str(file.resolve().parent / f"{name}.env")), "required": False}
    common: dict[str, Any] = {
        "user": f"{os.getuid()}:{os.getgid()}",
        "working_dir": "/work",
        "volumes": [{"type": "bind", "source": _literal(str(here)), "target": "/work"}],
        "restart": "unless-stopped",
        "stop_grace_period": f"{STOP_SECONDS:.0f}s",
        "read_only": True,
        "tmpfs": ["/tmp"],  # noqa: S108 (in the container)
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "entrypoint": ["rareclass"],
        "env_file": [secrets],
    }
    # inside the containers every address is listened on; from outside only this machine reaches the published ports
    environment = {
        **{f"RARECLASS_{service.upper()}__HOST": "0.0.0.0" for service in SERVICES},  # noqa: S104
        "HOME": "/tmp",  # noqa: S108
    }
    services: dict[str, Any] = {}
    for unit in chosen:
        if unit.every is None:
            published = [f"127.0.0.1:{port}:{port}" for port in ports_of(config, unit.name).values() if port]
            command = [_literal(str(inside) if argument == path else argument) for argument in unit.arguments]
            services[unit.name] = {
                "image": IMAGES["serving"],
                **common,
                "command": command,
                "environment": environment,
                "ports": published,
            }
    jobs = [unit.name for unit in chosen if unit.every is not None]
    if jobs:
        only = [part for job in jobs for part in ("--only", job)]
        command = [_literal(each) for each in ("up", *set_options(overrides), "-c", str(inside), *only)]
        services["jobs"] = {"image": IMAGES["pipeline"], **common, "command": command, "environment": environment}
    text = yaml.safe_dump({"name": name, "services": services}, sort_keys=False, width=200)
    [written] = _written(
        file.parent, {file.name: f"# written by `rareclass up --compose`; `make images` builds its images\n{text}"}
    )
    return written


def _literal(text: str) -> str:
    """What compose would replace by a variable of the shell is kept as it is."""
    return text.replace("$", "$$")


def _target(config: Config, name: str, chosen: Sequence[Unit]) -> str:
    wants = " ".join(f"{name}-{unit.name}.{'service' if unit.every is None else 'timer'}" for unit in chosen)
    return (
        "[Unit]\nDescription=rareclass: "
        f"everything live of '{config.name}'\nWants={wants}\n\n[Install]\nWantedBy=default.target\n"
    )


def _service(config: Config, name: str, unit: Unit, folder: Path) -> str:
    here = Path.cwd()
    command = " ".join(_quoted(part) for part in (sys.executable, "-m", "rareclass.cli", *unit.arguments))
    lines = [
        "[Unit]",
        f"Description=rareclass {unit.name} of '{config.name}'",
        "After=network-online.target",
        f"PartOf={name}.target",
        *(["StartLimitIntervalSec=0"] if unit.every is None else []),
        "",
        "[Service]",
        f"Type={'exec' if unit.every is None else 'oneshot'}",
        f"ExecStart={command}",
        f"WorkingDirectory={_escaped(str(here))}",
        f"EnvironmentFile=-{_escaped(str(folder.resolve() / f'{name}.env'))}",
        "UMask=0077",
    ]
    if unit.every is None:
        lines += ["Restart=always", "RestartSec=2", f"TimeoutStopSec={STOP_SECONDS:.0f}"]
    else:
        lines += ["KillSignal=SIGINT", f"SuccessExitStatus={' '.join(str(code) for code in sorted(unit.fine))}"]
    lines += ["NoNewPrivileges=yes", "PrivateTmp=yes", "ProtectSystem=full"]
    return "\n".join(lines) + "\n"


def _timer(name: str, unit: Unit) -> str:
    assert unit.every is not None
    first = max(unit.first, timedelta(seconds=10))
    return (
        f"[Unit]\nDescription=When rareclass {unit.name} runs\nPartOf={name}.target\n\n[Timer]\n"
        f"OnActiveSec={first.total_seconds():.0f}\nOnUnitInactiveSec={unit.every.total_seconds():.0f}\nAccuracySec=1s\n"
    )


def _quoted(part: str) -> str:
    """One argument of ExecStart: quoted where it must be, with what systemd expands taken literally."""
    text = _escaped(part).replace("$", "$$")
    if re.fullmatch(r"[A-Za-z0-9_./:=@,+%-]+", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _written(folder: Path, files: dict[str, str]) -> list[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"'{folder}' cannot be written: {error.strerror}. Pass another place") from None
    return [folder / file for file in files]
