"""What trains, scores and judges runs on systems that have neither ``fcntl`` nor ``resource``; serving says why it does
not.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FORBID = """
import sys
for name in ("fcntl", "resource"):
    sys.modules[name] = None  # an import raises ImportError, as on Windows
"""
EVERYTHING = (
    FORBID
    + """
import importlib, pkgutil, rareclass
for module in pkgutil.walk_packages(rareclass.__path__, "rareclass."):
    if ".migrations." not in module.name and not module.name.endswith("__main__"):  # alembic runs those
        importlib.import_module(module.name)
from rareclass.services.training.results import peak_memory
assert peak_memory() is None
print("imported")
"""
)
DIAGNOSE = FORBID + "from rareclass.cli import main; main(['diagnose', sys.argv[1], '--target', 'label'])"
SPOOL = (
    FORBID
    + """
from rareclass.adapters.spool import Spool
from rareclass.errors import SpoolError
try:
    Spool(sys.argv[1], 1 << 20, "process", 50)
except SpoolError as error:
    print(error)
"""
)


def _run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300)


def test_every_module_is_imported_without_fcntl_and_resource() -> None:
    done = _run(EVERYTHING)
    assert done.stdout.strip().endswith("imported"), done.stderr


def test_a_table_is_diagnosed_without_them(tmp_path: Path) -> None:
    rows = ["amount,label", *(f"{at % 17},{int(at % 40 == 0)}" for at in range(2000))]
    (tmp_path / "rows.csv").write_text("\n".join(rows))
    done = _run(DIAGNOSE, str(tmp_path / "rows.csv"))
    assert (done.returncode, "2,000" in done.stdout) == (0, True), done.stderr


def test_serving_says_that_it_needs_another_system(tmp_path: Path) -> None:
    assert "Serve in a container" in _run(SPOOL, str(tmp_path)).stdout


def test_training_needs_no_extra() -> None:
    code = """
import sys
for name in ("kfp", "evidently", "starlette", "uvicorn", "grpc", "httptools", "uvloop"):
    sys.modules[name] = None
import rareclass.services.training.run, rareclass.services.training.steps, rareclass.estimator, rareclass.cli
"""
    done = _run(code)
    assert done.returncode == 0, done.stderr


def test_the_package_is_imported_before_anything_heavy_is() -> None:
    """What takes the time of an import: with none of these loaded, it takes hundredths of a second."""
    heavy = {"numpy", "pandas", "scipy", "sklearn", "xgboost", "optuna", "pyarrow", "pydantic", "mlflow", "sqlalchemy"}
    code = f"import sys, rareclass; rareclass.__all__; print(sorted(set(sys.modules) & {heavy}))"
    assert _run(code).stdout.strip() == "[]"
    light = {"mlflow", "sqlalchemy", "plotly", "optuna", "kfp", "evidently", "starlette", "grpc", "kubernetes"}
    code = (
        f"import sys; from rareclass import RareClassifier; RareClassifier(); print(sorted(set(sys.modules) & {light}))"
    )
    assert _run(code).stdout.strip() == "[]"


def test_an_install_without_extras_brings_no_pipelines_no_reports_and_no_server_of_ours() -> None:
    """Followed through what each installed package says it needs; starlette and uvicorn come with MLflow itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed, wanted = set(), [Requirement(text).name for text in project["dependencies"]]
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name in needed:
            continue
        needed.add(name)
        requirements = [Requirement(text) for text in metadata.requires(name) or ()]
        wanted += [each.name for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    assert {"mlflow", "xgboost-cpu", "scikit-learn"} <= needed
    assert not needed & {
        "kfp",
        "kfp-kubernetes",
        "kubernetes",
        "evidently",
        "grpcio",
        "httptools",
        "uvloop",
        "lightgbm",
        "catboost",
        "mlserver",
    }
