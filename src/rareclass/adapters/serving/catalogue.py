"""What the server says about itself and its one model, in the protocol's words; the same over HTTP and gRPC."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from rareclass.adapters.serving.batcher import NotFoundError
from rareclass.adapters.serving.engine import Active, Engine
from rareclass.adapters.serving.v2_codec import OUTPUTS, shown

READ_ONLY = "models are loaded by their alias here. Use rareclass promote or rareclass rollback"


class Catalogue:
    """One model, whose only version is the one that answers."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine, self.name = engine, name

    @property
    def active(self) -> Active | None:
        """The version that answers; None while none is loaded."""
        return self._engine.active

    def check(self, name: str, wanted: str | None) -> None:
        """Raise NotFoundError unless this name, and this version when one is given, answers here."""
        if name != self.name:
            raise NotFoundError(f"model '{shown(name)[1:-1]}' is not served here. Use /v2/models/{self.name}")
        active = self.active
        if wanted and active is not None and wanted != active.version:
            raise NotFoundError(
                f"version '{shown(wanted)[1:-1]}' of {name} is not the champion; version {active.version} is. "
                "Leave /versions/... out"
            )

    def server(self) -> dict[str, Any]:
        """Return the server's metadata as protocol v2 words it."""
        return {"name": "rareclass", "version": version("rareclass"), "extensions": ["binary_tensor_data"]}

    def model(self) -> dict[str, Any]:
        """Return the model's metadata as protocol v2 words it: versions, inputs and outputs."""
        active = self.active
        features = () if active is None else active.signature.schema.features
        return {
            "name": self.name,
            "versions": [] if active is None else [active.version],
            "platform": "rareclass",
            "inputs": [
                {"name": each.name, "datatype": "FP32" if each.kind == "numeric" else "BYTES", "shape": [-1]}
                for each in features
            ],
            "outputs": [{"name": name, "datatype": kind, "shape": [-1]} for name, kind in OUTPUTS.items()],
        }

    def index(self, *, ready: bool) -> list[dict[str, Any]]:
        """Return the repository's models; ``ready`` leaves out one that is still loading."""
        active = self.active
        if active is None:
            return [] if ready else [{"name": self.name, "state": "LOADING", "reason": ""}]
        return [{"name": self.name, "version": active.version, "state": "READY", "reason": ""}]
