"""Makes the golden files, or with --check says which differ from what the code makes."""

from __future__ import annotations

import difflib
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def pipeline(target: Path) -> None:
    """The compiled training pipeline."""
    subprocess.run([sys.executable, "-m", "pipelines.compile", str(target)], cwd=ROOT, check=True, capture_output=True)


def schema(target: Path) -> None:
    """The JSON schema of the configuration."""
    import json

    from rareclass.config import schema as made

    target.write_text(json.dumps(made(), indent=2) + "\n", encoding="utf-8")


GOLDENS = {"pipelines/compiled/training.yaml": pipeline, "docs/config.schema.json": schema}


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
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
