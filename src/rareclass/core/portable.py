"""Values as files that hold no code: JSON for structure, npz for arrays, UBJ for boosted trees, skops for scikit-learn.

Only classes that the reader names are made again, field by field, so a file that somebody else wrote can give wrong
numbers but cannot run anything (docs/decisions/0021). Nothing in here reads a pickle.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from typing import Any

import numpy as np

from rareclass.core.compatibility import check_fields, newer
from rareclass.core.dataset import AnyArray
from rareclass.core.fitted import check_nodes
from rareclass.errors import ModelError, need_package

Files = dict[str, bytes]

KIND = "$"
"""Key that says what a JSON object stands for; objects without it are plain dictionaries."""

TRUSTED = (
    "functools.partial",
    "imblearn.ensemble._easy_ensemble.EasyEnsembleClassifier",
    "imblearn.ensemble._weight_boosting.RUSBoostClassifier",
    "imblearn.pipeline.Pipeline",
    "imblearn.under_sampling._prototype_selection._random_under_sampler.RandomUnderSampler",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
    "sklearn.utils.validation.check_array",
)
"""What our estimators hold beyond the classes that skops trusts; a partial's function has to be trusted as well."""


_RENAMED = {"kept": "negative_sampling_rate"}
"""Fields by the names that earlier versions of rareclass wrote."""


def pack(value: Any, types: Iterable[type], name: str = "value", *, small: bool = True) -> Files:
    """Return ``value`` as files: ``NAME.json``, and ``NAME.npz``, ``NAME-0.ubj``, ``NAME-1.skops`` where there is need.

    types : dataclasses and pydantic models that may be in it · small : compress arrays, which takes longer. Raises
        TypeError for anything else that is not plain data.
    """
    writer = _Writer({kind.__name__: kind for kind in types}, name)
    tree = writer.tree(value)
    files = {f"{name}.json": json.dumps(tree, allow_nan=False).encode(), **writer.files}
    if writer.arrays:
        buffer = io.BytesIO()
        save: Any = np.savez_compressed if small else np.savez
        save(buffer, **writer.arrays)
        files[f"{name}.npz"] = buffer.getvalue()
    return files


def unpack(files: Mapping[str, bytes], types: Iterable[type], name: str = "value") -> Any:
    """Return what `pack` was given. Raises ModelError for files that do not hold that."""
    reader = _Reader({kind.__name__: kind for kind in types}, files)
    try:
        if f"{name}.npz" in files:
            with np.load(io.BytesIO(files[f"{name}.npz"]), allow_pickle=False) as arrays:
                reader.arrays = {key: arrays[key] for key in arrays.files}
        return reader.value(json.loads(files[f"{name}.json"]))
    except (KeyError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"'{name}' is not what this rareclass writes ({type(error).__name__}: {error}). "
            "It was written by another version, or by something else: train again"
        ) from None


class _Writer:
    def __init__(self, types: Mapping[str, type], name: str) -> None:
        self._types, self._name = types, name
        self.files: Files = {}
        self.arrays: dict[str, AnyArray] = {}
        self._written: dict[int, tuple[Any, Any]] = {}

    def tree(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | str) or type(value) is int:
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {KIND: "float", "value": str(value)}
        if isinstance(value, list):
            return [self.tree(item) for item in value]
        if isinstance(value, tuple):
            return {KIND: "tuple", "items": [self.tree(item) for item in value]}
        if isinstance(value, Mapping):
            if all(isinstance(key, str) for key in value) and KIND not in value:
                return {key: self.tree(item) for key, item in value.items()}
            return {KIND: "dict", "items": [[self.tree(key), self.tree(item)] for key, item in value.items()]}
        if id(value) not in self._written:  # what several hold is written once; kept, so that its id stays its own
            self._written[id(value)] = value, self._object(value)
        return self._written[id(value)][1]

    def _object(self, value: Any) -> Any:
        kind: str = type(value).__name__
        if self._types.get(kind) is type(value):
            if is_dataclass(value):
                return {KIND: kind, **{item.name: self.tree(getattr(value, item.name)) for item in fields(value)}}
            model: Any = value
            return {KIND: kind, "model": model.model_dump(mode="json")}
        if isinstance(value, np.generic):
            value, scalar = np.asarray(value), True
        else:
            scalar = False
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            key = f"a{len(self.arrays)}"
            self.arrays[key] = value
            return {KIND: "scalar" if scalar else "array", "key": key}
        if isinstance(value, datetime):
            return {KIND: "datetime", "value": value.isoformat()}
        module = type(value).__module__.partition(".")[0]
        if module == "xgboost":
            return self._file("ubj", bytes(value.save_raw("ubj")))
        if module == "lightgbm":
            return self._file("lgb", value.model_to_string().encode())
        if module == "catboost":
            return self._file("cbm", value._serialize_model())
        if module in ("sklearn", "imblearn"):
            import skops.io

            return self._file("skops", skops.io.dumps(value, compression=zipfile.ZIP_DEFLATED, compresslevel=1))
        raise TypeError(
            f"{type(value).__module__}.{kind} cannot be written without code. Add it to the types that may be"
        )

    def _file(self, suffix: str, content: bytes) -> dict[str, str]:
        file = f"{self._name}-{len(self.files)}.{suffix}"
        self.files[file] = content
        return {KIND: suffix, "file": file}


class _Reader:
    def __init__(self, types: Mapping[str, type], files: Mapping[str, bytes]) -> None:
        self._types, self._files = types, files
        self.arrays: dict[str, AnyArray] = {}

    def value(self, tree: Any) -> Any:
        if isinstance(tree, list):
            return [self.value(item) for item in tree]
        if not isinstance(tree, dict):
            return tree
        kind = tree.get(KIND)
        if kind is None:
            return {key: self.value(item) for key, item in tree.items()}
        if kind in self._types:
            return self._made(self._types[kind], tree)
        return self._plain(kind, tree)

    def _made(self, of: type, tree: Mapping[str, Any]) -> Any:
        if not is_dataclass(of):
            return of.model_validate(tree["model"])  # type: ignore[attr-defined]
        given = {_RENAMED.get(key, key): self.value(item) for key, item in tree.items() if key != KIND}
        check_fields(of, given, f"a part of the kind '{of.__name__}'")
        return of(**given)

    def _plain(self, kind: str, tree: Mapping[str, Any]) -> Any:
        if kind == "float":
            return float(tree["value"])
        if kind == "tuple":
            return tuple(self.value(item) for item in tree["items"])
        if kind == "dict":
            return {self.value(key): self.value(item) for key, item in tree["items"]}
        if kind == "array":
            return self.arrays[tree["key"]]
        if kind == "scalar":
            return self.arrays[tree["key"]][()]
        if kind == "datetime":
            return datetime.fromisoformat(tree["value"])
        if kind == "ubj":
            return _booster(self._files[tree["file"]])
        if kind == "lgb":
            return _leaves(self._files[tree["file"]])
        if kind == "cbm":
            return _symmetric_trees(self._files[tree["file"]])
        if kind == "skops":
            return _estimator(self._files[tree["file"]])
        raise newer(f"a part is of the kind '{kind}', which this rareclass does not know")


def _booster(content: bytes) -> Any:
    import xgboost as xgb

    try:
        return xgb.Booster(model_file=bytearray(content))
    except xgb.core.XGBoostError as error:
        raise ValueError(str(error).splitlines()[-1][:200]) from None


def _leaves(content: bytes) -> Any:
    """A booster of LightGBM, after a look at every tree: its compiled code follows the numbers that a file gives it."""
    need_package("lightgbm", "lightgbm", "this model")
    import lightgbm as lgb

    text = content.decode("utf-8")
    head, *trees = text.partition("\nend of trees")[0].split("\nTree=")
    features = 1 + int(_fields(head)["max_feature_idx"])
    for tree in trees:
        _check_leaves(_fields(tree), features)
    try:
        return lgb.Booster(model_str=text)
    except lgb.basic.LightGBMError as error:
        raise ValueError(" ".join(str(error).split())[:200]) from None


def _fields(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def _check_leaves(tree: Mapping[str, str], features: int) -> None:
    """Raise ModelError where a tree of LightGBM points outside of itself: a child is a later node or, negative,
    a leaf.
    """

    def numbers(name: str) -> AnyArray:
        return np.array(tree.get(name, "").split(), dtype=np.float64).astype(np.int64)

    leaves = int(tree["num_leaves"])
    left, right, kind = numbers("left_child"), numbers("right_child"), numbers("decision_type")
    feature = numbers("split_feature")
    if len(tree["leaf_value"].split()) != leaves or leaves < 1 or (leaves == 1 and len(left)):
        raise ModelError("a tree does not have the leaves that it says: the model is damaged. Train again")
    if leaves == 1:
        return
    if not len(left) == len(right) == len(kind) == len(feature) == leaves - 1:
        raise ModelError("a tree does not have the nodes that it says: the model is damaged. Train again")
    at = np.arange(leaves - 1)
    for child in (left, right):
        if not np.where(child < 0, child >= -leaves, (child > at) & (child < leaves - 1)).all():
            raise ModelError("a tree's node points outside of the tree: the model is damaged. Train again")
    if not ((feature >= 0) & (feature < features)).all():
        raise ModelError("a tree's node asks for a column that is not there: the model is damaged. Train again")
    sets = numbers("threshold")[kind & 1 == 1]
    ends = numbers("cat_boundaries")
    if len(sets) and not (
        len(ends) == int(tree["num_cat"]) + 1
        and ((sets >= 0) & (sets < len(ends) - 1)).all()
        and (np.diff(ends) >= 0).all()
        and ends[0] == 0
        and ends[-1] <= len(numbers("cat_threshold"))
    ):
        raise ModelError("a tree asks for categories that are not there: the model is damaged. Train again")


def _symmetric_trees(content: bytes) -> Any:
    need_package("catboost", "catboost", "this model")
    from catboost import CatBoost, CatBoostError

    try:
        return CatBoost().load_model(blob=content)
    except CatBoostError as error:
        raise ValueError(" ".join(str(error).split())[:200]) from None


def _estimator(content: bytes) -> Any:
    import skops.io
    from skops.io.exceptions import UntrustedTypesFoundException

    try:
        estimator = skops.io.loads(content, trusted=list(TRUSTED))
    except UntrustedTypesFoundException as error:
        raise ValueError(f"it asks for classes that no learner needs: {' '.join(str(error).split())[:300]}") from None
    for tree in _trees(estimator):
        check_nodes(tree.children_left, tree.children_right, tree.feature, tree.n_features)
    for iteration in getattr(estimator, "_predictors", ()):
        for nodes in (predictor.nodes for predictor in iteration):
            left = np.where(nodes["is_leaf"], -1, nodes["left"].astype(np.int64))
            check_nodes(left, nodes["right"].astype(np.int64), nodes["feature_idx"], estimator.n_features_in_)
    return estimator


def _trees(estimator: Any) -> list[Any]:
    """Compiled trees anywhere inside an estimator."""
    if hasattr(estimator, "tree_"):
        return [estimator.tree_]
    inner = [*getattr(estimator, "estimators_", ()), *(step for _, step in getattr(estimator, "steps", ()))]
    return [tree for part in inner for tree in _trees(part)]
