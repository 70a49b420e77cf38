"""Makes the golden files, or with --check says which differ from what the code makes."""

from __future__ import annotations

import difflib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools import chart, commands, settings  # noqa: E402


def pipeline(target: Path) -> None:
    """The compiled training pipeline."""
    subprocess.run([sys.executable, "-m", "pipelines.compile", str(target)], cwd=ROOT, check=True, capture_output=True)


def schema(target: Path) -> None:
    """The JSON schema of the configuration."""
    import json

    from rareclass.config import schema as made

    target.write_text(json.dumps(made(), indent=2) + "\n", encoding="utf-8")


def copy_of(source: Path) -> Callable[[Path], None]:
    """A file of monitoring/ in the chart, which cannot read outside its folder."""
    return lambda target: target.write_bytes(source.read_bytes())


def monitoring_in_chart() -> dict[str, Callable[[Path], None]]:
    found = {f"{CHART}/files/rules/{each.name}": copy_of(each) for each in (ROOT / "monitoring/rules").glob("*.yaml")}
    found |= {
        f"{CHART}/files/dashboards/{each.name}": copy_of(each)
        for each in (ROOT / "monitoring/dashboards").rglob("*.json")
    }
    return found


def inhibitions(target: Path) -> None:
    """The inhibit rules of monitoring/alertmanager as the Prometheus Operator's AlertmanagerConfig writes them."""
    import yaml

    source = yaml.safe_load((ROOT / "monitoring/alertmanager/alertmanager.yaml").read_text(encoding="utf-8"))

    def matchers(texts: list[str]) -> list[dict[str, str]]:
        made = []
        for text in texts:
            found = re.fullmatch(r'(\w+)(=~|!~|!=|=)"(.*)"', text)
            if found is None:
                raise SystemExit(f"an inhibit rule has a matcher that is not understood: {text}")
            made.append({"name": found[1], "matchType": found[2], "value": found[3]})
        return made

    rules = [
        {
            "sourceMatch": matchers(each["source_matchers"]),
            "targetMatch": matchers(each["target_matchers"]),
            "equal": each["equal"],
        }
        for each in source["inhibit_rules"]
    ]
    target.write_text(yaml.safe_dump(rules, sort_keys=False), encoding="utf-8")


def rendered(values: Path) -> Callable[[Path], None]:
    """The chart's objects for one of its ci values."""

    def render(target: Path) -> None:
        command = ["helm", "template", "release", CHART, "-n", "space", "--kube-version", "1.34.0", "-f", str(values)]
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"the chart cannot be rendered with {values.name}: {done.stderr.strip()}")
        target.write_text(done.stdout, encoding="utf-8")

    return render


def charts() -> dict[str, Callable[[Path], None]]:
    """The chart's renders, where there is a helm."""
    if shutil.which("helm") is None:
        print("the chart's renders are not looked at: there is no helm on the PATH")
        return {}
    return {
        f"tests/golden/chart/{each.name.removesuffix('-values.yaml')}.yaml": rendered(each)
        for each in sorted((ROOT / CHART / "ci").glob("*-values.yaml"))
    }


CHART = "helm/rareclass"


def dashboard(name: str) -> Callable[[Path], None]:
    """A Grafana dashboard as JSON."""

    def write(target: Path) -> None:
        from monitoring.dashboards import DASHBOARDS

        target.write_text(DASHBOARDS[name](), encoding="utf-8")

    return write


DASHBOARDS = ("live-quality", "drift", "serving", "retraining")
GOLDENS = {
    **{f"monitoring/dashboards/json/{name}.json": dashboard(name) for name in DASHBOARDS},
    "pipelines/compiled/training.yaml": pipeline,
    "docs/config.schema.json": schema,
    "docs/settings.md": settings.settings,
    "docs/commands.md": commands.commands,
    f"{CHART}/README.md": chart.readme,
    f"{CHART}/values.schema.json": chart.schema,
    f"{CHART}/files/inhibit.yaml": inhibitions,
    **monitoring_in_chart(),
    **charts(),
}
MADE = (f"{CHART}/files/rules", f"{CHART}/files/dashboards", "tests/golden/chart")
"""Folders that hold nothing but golden files."""


def left_over() -> list[Path]:
    """Files in folders of golden files that nothing makes any more."""
    folders = [each for each in MADE if any(name.startswith(f"{each}/") for name in GOLDENS)]
    found = [file for folder in folders for file in (ROOT / folder).glob("*") if file.is_file()]
    return [file for file in found if str(file.relative_to(ROOT)) not in GOLDENS]


def main(check: bool) -> int:
    stale = 0
    for name, make in GOLDENS.items():
        with tempfile.TemporaryDirectory() as folder:
            fresh = Path(folder) / Path(name).name
            make(fresh)
            text, golden = fresh.read_text(encoding="utf-8"), ROOT / name
        old = golden.read_text(encoding="utf-8") if golden.is_file() else ""
        if text == old:
            continue
        if check:
            stale += 1
            print(f"{name} is not what the code makes; run `make golden` and read the difference:")
            print(
                "\n".join(
                    list(difflib.unified_diff(old.splitlines(), text.splitlines(), "golden", "made", lineterm=""))[:20]
                )
            )
        else:
            golden.parent.mkdir(parents=True, exist_ok=True)
            golden.write_text(text, encoding="utf-8")
            print(f"wrote {name}")
    for file in left_over():
        if check:
            stale += 1
            print(f"{file.relative_to(ROOT)} is made by nothing any more; run `make golden`")
        else:
            file.unlink()
            print(f"removed {file.relative_to(ROOT)}")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
