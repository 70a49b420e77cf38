"""A model version: learner, calibrator, thresholds, reference profile and golden rows, as one thing that scores rows.

The only module of core that touches files: a version is a folder, and only the version knows what belongs into it.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rareclass.core import operating
from rareclass.core.compatibility import newer
from rareclass.core.dataset import BoolArray, FloatArray, FloatMatrix, Schema, decode, encode
from rareclass.core.jsonable import dumps
from rareclass.core.log_odds import logit
from rareclass.errors import ModelError

FORMAT = 2
"""Raised where a release of the one before would read something else, or nothing: see `core.compatibility`."""
_PARTS_OF_FORMAT = frozenset({"format", "schema", "calibrator", "thresholds", "primary", "profile", "meta"})
_LEARNER, _PARTS, _GOLDEN, _SUMS = "learner", "model.json", "golden.json", "sha256.json"
_IDS = "trained_ids.npy"


class FittedLearner(Protocol):
    """What a fitted learner can do."""

    def score(self, x: FloatMatrix) -> FloatArray:
        """Return (n,) raw scores in [0, 1] of (n, n_features) rows."""


class MonotoneMap(Protocol):
    """A strictly monotone map of scores to probabilities."""

    def __call__(self, score: FloatArray) -> FloatArray: ...
    def inverse(self, p: FloatArray) -> FloatArray:
        """Return the (n,) raw scores behind (n,) probabilities."""

    def to_json(self) -> dict[str, Any]:
        """Return the map's numbers and its kind."""


@dataclass(frozen=True)
class RareModel:
    """One deployable version.

    Attributes
    ----------
    schema : Schema
        How each column is read.
    learner : FittedLearner
        What gives raw scores.
    calibrator : MonotoneMap
        What makes probabilities of them.
    thresholds : dict of str to float
        Operating point -> cut-off on the calibrated score; a row is decided 1 when score >= cut-off.
    primary : str
        The operating point that decides when none is named.
    profile : dict
        Reference profile for drift (JSON, see ``core.profile``).
    golden : table
        Rows with the score this version gives them; a server is ready only when it reproduces them.
    meta : dict
        Name, config, data hash, time range and ids of the training rows, metrics.
    trained_ids : ndarray
        Sorted ids of the training rows, where no time tells which rows a version has seen.
    """

    schema: Schema
    learner: FittedLearner
    calibrator: MonotoneMap
    thresholds: Mapping[str, float]
    primary: str = "default"
    profile: Mapping[str, Any] = field(default_factory=dict)
    golden: pd.DataFrame | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    trained_ids: NDArray[np.uint64] | None = None

    def matrix(self, rows: pd.DataFrame | FloatMatrix) -> FloatMatrix:
        """Encode a table as the learner sees it.

        Parameters
        ----------
        rows : DataFrame or float32 matrix
            A table with the columns of the schema, or (n, n_features) encoded already.

        Returns
        -------
        ndarray of shape (n, n_features)
            float32; a matrix is returned as it is.

        Raises
        ------
        DataError
            For a column that is missing or a value that cannot be read.
        ModelError
            For a matrix of another width.
        """
        if isinstance(rows, pd.DataFrame):
            return encode(rows, self.schema)
        if rows.ndim != 2 or rows.shape[1] != len(self.schema.features):
            raise ModelError(
                f"a matrix of shape {rows.shape} does not fit: the model needs {len(self.schema.features)} columns: "
                f"{', '.join(self.schema.names)}"
            )
        return np.asarray(rows, dtype=np.float32)

    def raw(self, rows: pd.DataFrame | FloatMatrix) -> FloatArray:
        """Return the learner's scores before calibration.

        Parameters
        ----------
        rows : DataFrame or float32 matrix
            A table with the columns of the schema, or (n, n_features) encoded already.

        Returns
        -------
        ndarray of shape (n,)
            In [0, 1], of no meaning but their order.
        """
        return self.learner.score(self.matrix(rows))

    def score(self, rows: pd.DataFrame | FloatMatrix) -> FloatArray:
        """Return the calibrated probability of the rare class.

        Parameters
        ----------
        rows : DataFrame or float32 matrix
            A table with the columns of the schema, or (n, n_features) encoded already.

        Returns
        -------
        ndarray of shape (n,)
            In (0, 1).
        """
        matrix = self.matrix(rows)
        if not len(matrix):
            return np.empty(0)
        return np.asarray(self.calibrator(self.learner.score(matrix)), dtype=np.float64)

    def threshold(self, point: str | None = None) -> float:
        """Return the cut-off of an operating point.

        Parameters
        ----------
        point : str, optional
            Operating point; default: ``primary``.

        Returns
        -------
        float
            A row is decided 1 when its score reaches it.

        Raises
        ------
        ModelError
            For an unknown point, with the known ones.
        """
        return operating.decides(self.thresholds, self.primary, point, where="the operating point")[1]

    def decide(self, score: FloatArray, point: str | None = None) -> BoolArray:
        """Decide scores at an operating point.

        Parameters
        ----------
        score : ndarray of shape (n,)
            What `score` returned.
        point : str, optional
            Operating point; default: ``primary``.

        Returns
        -------
        ndarray of shape (n,)
            Whether the score reaches the cut-off.
        """
        return np.asarray(score >= self.threshold(point), dtype=bool)

    def contributions(self, rows: pd.DataFrame | FloatMatrix) -> FloatMatrix:
        """Return contributions to the log-odds of the raw score.

        Trees of XGBoost give their own SHAP values. Other learners are asked by occlusion: the change of the log-odds
        when a feature takes its reference value (the median, the commonest category), which ignores interactions.

        Parameters
        ----------
        rows : DataFrame or float32 matrix
            A table with the columns of the schema, or (n, n_features) encoded already.

        Returns
        -------
        ndarray of shape (n, n_features)
            float32 log-odds.
        """
        matrix = self.matrix(rows)
        own = getattr(self.learner, "contributions", None)
        if own is not None and (values := own(matrix)) is not None:
            return np.asarray(values, dtype=np.float32)
        typical = np.asarray(self.meta.get("typical", [np.nan] * matrix.shape[1]), dtype=np.float32)
        base = logit(self.learner.score(matrix))
        out = np.empty_like(matrix)
        for position in range(matrix.shape[1]):
            changed = matrix.copy()
            changed[:, position] = typical[position]
            out[:, position] = base - logit(self.learner.score(changed))
        return out

    def reasons(self, rows: pd.DataFrame | FloatMatrix, top: int = 3) -> list[list[dict[str, Any]]]:
        """Return for each row the features that moved its score the most.

        Parameters
        ----------
        rows : DataFrame or float32 matrix
            A table with the columns of the schema, or (n, n_features) encoded already.
        top : int
            How many of them, by absolute contribution.

        Returns
        -------
        list of lists of dict
            Of each row ``feature``, ``value`` and ``contribution`` to the log-odds.
        """
        matrix = self.matrix(rows)
        values = self.contributions(matrix)
        order = np.argsort(-np.abs(values), axis=1, kind="stable")[:, :top]
        shown = decode(matrix, self.schema)
        return [
            [
                {
                    "feature": self.schema.names[j],
                    "value": _plain(shown.iat[i, j]),
                    "contribution": round(float(values[i, j]), 6),
                }
                for j in order[i]
            ]
            for i in range(len(matrix))
        ]

    def retuned(self, cutoffs: Mapping[str, float]) -> RareModel:
        """Return the version with cut-offs that were tuned again.

        Parameters
        ----------
        cutoffs : mapping of str to float
            Operating point -> cut-off (see ``core.operating.in_force``).

        Returns
        -------
        RareModel
            Learner and calibrator are the same objects.
        """
        if not cutoffs:
            return self
        return replace(self, thresholds=operating.in_force(self.thresholds, self.primary, cutoffs))

    def with_golden(self, x: FloatMatrix) -> RareModel:
        """Return the version with golden rows: the given rows beside the scores it gives them.

        Parameters
        ----------
        x : ndarray of shape (n, n_features)
            Encoded rows.

        Returns
        -------
        RareModel
            The same version but for its golden rows.
        """
        frame = decode(x, self.schema)
        return replace(self, golden=frame.assign(**{golden_score(self.schema): self.score(x)}))

    def check_golden(self, tolerance: float = 1e-6) -> None:
        """Score the golden rows again.

        Parameters
        ----------
        tolerance : float
            Largest difference of a score that is let pass.

        Raises
        ------
        ModelError
            When a score differs by more.
        """
        if self.golden is None:
            return
        scored = self.score(self.golden)
        worst = float(
            np.max(np.abs(scored - self.golden[golden_score(self.schema)].to_numpy(dtype=np.float64)), initial=0.0)
        )
        if not worst <= tolerance:
            raise ModelError(
                f"the golden rows score differently here by {worst:.2g} (at most {tolerance:g}): "
                "wrong library versions or a damaged model. Use the versions in requirements.txt of the model"
            )

    def save(self, folder: str | Path) -> str:
        """Write the version into a folder.

        Parameters
        ----------
        folder : str or Path
            Created when it is not there.

        Returns
        -------
        str
            Hash of the version, over all its files.
        """
        from rareclass.core import portable

        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        parts = {
            "format": FORMAT,
            "schema": self.schema.to_json(),
            "calibrator": self.calibrator.to_json(),
            "thresholds": dict(self.thresholds),
            "primary": self.primary,
            "profile": self.profile,
            "meta": dict(self.meta),
        }
        files = {
            _PARTS: dumps(parts, indent=1).encode(),
            **portable.pack(self.learner, _saved(), _LEARNER),
        }
        if self.golden is not None:
            files[_GOLDEN] = json.dumps(_golden_json(self.golden, self.schema)).encode()
        if self.trained_ids is not None:
            files[_IDS] = _bytes(self.trained_ids)
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        for name, content in files.items():
            (target / name).write_bytes(content)
        (target / _SUMS).write_text(json.dumps(sums, indent=1), encoding="utf-8")
        return digest(sums)

    @staticmethod
    def load(folder: str | Path, *, expect: str | None = None) -> RareModel:
        """Read a version after checking every file against its hash; nothing in it is code.

        Parameters
        ----------
        folder : str or Path
            What `save` wrote.
        expect : str, optional
            Hash of the version as its registry knows it; the hashes beside the files only tell of damage.

        Returns
        -------
        RareModel
            The version, ready to score.

        Raises
        ------
        ModelError
            Where a file is missing, damaged, or not what the registry knows.
        """
        from rareclass.core import calibration, portable

        source = Path(folder)
        files = _verified(source)
        if expect is not None and (given := _digest_of(files)) != expect:
            raise ModelError(
                f"the files at '{source}' are not the ones that were registered (hash {given[:12]}, registered "
                f"{expect[:12]}). Register the model again"
            )
        parts = json.loads(files[_PARTS])
        if parts["format"] > FORMAT:
            raise ModelError(
                f"the model in '{source}' was written by a newer rareclass (format {parts['format']}, this one reads "
                f"{FORMAT}). Upgrade rareclass"
            )
        if parts["format"] < FORMAT:
            raise ModelError(
                f"the model in '{source}' was written by an older rareclass, as a pickle, which is code and is not "
                "loaded any more. Train again"
            )
        if surplus := sorted(parts.keys() - _PARTS_OF_FORMAT):
            raise newer(f"the version has a part '{surplus[0]}', which this rareclass does not know")
        if lacking := sorted(_PARTS_OF_FORMAT - parts.keys()):
            raise ModelError(f"the model in '{source}' lacks its part '{lacking[0]}'. Train again")
        schema = Schema.from_json(parts["schema"])
        return RareModel(
            schema=schema,
            learner=portable.unpack(files, _saved(), _LEARNER),
            calibrator=calibration.from_json(parts["calibrator"]),
            thresholds=parts["thresholds"],
            primary=parts["primary"],
            profile=parts["profile"],
            golden=_golden(files[_GOLDEN], schema) if _GOLDEN in files else None,
            meta=parts["meta"],
            trained_ids=np.load(io.BytesIO(files[_IDS]), allow_pickle=False) if _IDS in files else None,
        )


def _saved() -> tuple[type, ...]:
    from rareclass.core.training import SAVED

    return SAVED


def golden_score(schema: Schema) -> str:
    """Return the column of the golden rows that holds their scores: ``score``, or one no feature is called."""
    name = "score"
    while name in schema.names:
        name = f"_{name}"
    return name


def digest(sums: Mapping[str, str]) -> str:
    """Return the one hash of a version from the hashes of its files."""
    return hashlib.sha256(json.dumps(dict(sorted(sums.items()))).encode()).hexdigest()


def digest_of(folder: str | Path) -> str:
    """Return the hash of the version in a folder after checking its files. Raises ModelError."""
    return _digest_of(_verified(Path(folder)))


def _digest_of(files: Mapping[str, bytes]) -> str:
    return digest({name: hashlib.sha256(content).hexdigest() for name, content in files.items()})


def _verified(source: Path) -> dict[str, bytes]:
    try:
        sums = json.loads((source / _SUMS).read_text(encoding="utf-8"))
        files = {name: (source / name).read_bytes() for name in sums if Path(name).name == name}
    except (OSError, json.JSONDecodeError):
        raise ModelError(
            f"'{source}' is not a whole rareclass model ({_SUMS} or a file it lists is missing). "
            "Pass the uri that summary.json names"
        ) from None
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != sums[name]:
            raise ModelError(
                f"'{source / name}' does not match its hash: the file was changed or damaged. Register the model again"
            )
    return files


def _golden_json(golden: pd.DataFrame, schema: Schema) -> dict[str, Any]:
    """Golden rows with all digits of their numbers."""
    features = {feature.name: feature for feature in schema.features}
    columns = [
        features[name].logged(golden[name]) if name in features else golden[name].astype(float).tolist()
        for name in golden
    ]
    return {"columns": list(golden.columns), "data": [list(row) for row in zip(*columns, strict=True)]}


def _golden(content: bytes, schema: Schema) -> pd.DataFrame:
    raw = json.loads(content)
    frame = pd.DataFrame(raw["data"], columns=raw["columns"])
    for feature in schema.features:
        if feature.kind == "numeric":
            frame[feature.name] = pd.to_numeric(frame[feature.name]).astype(np.float32)
    return frame


def _bytes(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return None if np.isnan(value) else float(value)
    return None if pd.isna(value) else str(value)
