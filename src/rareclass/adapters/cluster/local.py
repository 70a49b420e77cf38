"""The compiled training pipeline, and KFP's local runner for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rareclass
from rareclass.errors import MissingExtraError, RareclassError


class PipelineFailedError(RareclassError):
    """A step of the pipeline failed."""

    exit_code = 1


def compiled() -> Path:
    """Return the compiled training pipeline: inside the installed package,
    or in the work tree it was installed from.
    """

    package = Path(rareclass.__file__).parent
    for path in (
        package / "compiled" / "training.yaml",
        package.parents[1] / "pipelines" / "compiled" / "training.yaml",
    ):
        if path.is_file():
            return path
    raise RareclassError(
        "the compiled pipeline is not part of this installation. Install the wheel, or run `make golden` in the work "
        "tree"
    )


def run_local(arguments: Mapping[str, Any], root: Path) -> None:
    """Execute the compiled pipeline with KFP's local runner, each step a process of this interpreter; artifacts under
    ``root``.

    Raises PipelineFailedError with the last line that the failed step wrote.
    """
    try:
        from kfp import components, local
    except ImportError:
        raise MissingExtraError("kfp", "pipelines", "--runner kfp") from None
    root.mkdir(parents=True, exist_ok=True)
    with _environment(), (root / "steps.log").open("w", encoding="utf-8") as log, _into(log):
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(root), raise_on_error=True)
        pipeline = components.load_component_from_file(str(compiled()))
        try:
            pipeline(**arguments)
        except Exception as error:
            log.flush()
            raise PipelineFailedError(
                f"the pipeline failed: {_last_error(root / 'steps.log') or error}. All output: {root / 'steps.log'}"
            ) from error


@contextmanager
def _environment() -> Iterator[None]:
    """Steps start three times slower without a bytecode cache."""
    held = os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    try:
        yield
    finally:
        if held is not None:
            os.environ["PYTHONDONTWRITEBYTECODE"] = held


@contextmanager
def _into(log: Any) -> Iterator[None]:
    """Send what this process and its children print to a file: the terminal belongs to the progress display."""

    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, target in zip(saved, (1, 2), strict=True):
            os.dup2(descriptor, target)
            os.close(descriptor)


def _last_error(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    errors = [
        line
        for line in lines
        if "rareclass.errors." in line or line.startswith(("RuntimeError", "ValueError", "TypeError"))
    ]
    return errors[-1].split("rareclass.errors.")[-1] if errors else ""
