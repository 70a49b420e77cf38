"""The one configuration model: frozen, unknown keys refused, units in the descriptions.

Paths are relative to the folder the command runs in. Durations are written ``30s``, ``15m``, ``12h``, ``7d``, ``2w``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema

from rareclass.errors import ConfigError, nearest
from rareclass.masking import has_secret, masked, masked_values

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_duration(value: object) -> object:
    """Turn ``7d`` into a timedelta; leave timedeltas alone. Raises ValueError otherwise."""
    if isinstance(value, timedelta):
        return value
    if value == 0:
        return timedelta(0)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw])\s*", str(value))
    if match is None:
        raise ValueError(f"'{value}' is not a duration; write a number and a unit, like 30s, 15m, 12h, 7d or 2w")
    return timedelta(**{_UNITS[match[2]]: float(match[1])})


def format_duration(value: timedelta) -> str:
    """Write a timedelta in the largest unit that keeps it whole."""
    seconds = value.total_seconds()
    for unit, size in (("w", 604800), ("d", 86400), ("h", 3600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f"{int(seconds // size)}{unit}"
    return f"{seconds:g}s"


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration, json_schema_input_type=str),
    PlainSerializer(format_duration, return_type=str),
]
Share = Annotated[float, Field(ge=0, le=1)]
_SIZES = {
    "": 1,
    "K": 1000,
    "M": 1000**2,
    "G": 1000**3,
    "T": 1000**4,
    "Ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": 1 << 30,
    "Ti": 1 << 40,
}


def parse_size(value: object) -> object:
    """Turn ``4GiB``, ``4Gi`` or ``4000M`` into bytes; leave numbers alone. Raises ValueError otherwise."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*((?:[KMGT]i?)?)B?\s*", str(value))
    if match is None:
        raise ValueError(f"'{value}' is not a size; write a number and a unit, like 4GiB, 512MiB or 2.5GB")
    return int(float(match[1]) * _SIZES[match[2]])


def format_size(value: int) -> str:
    """Write bytes in the largest unit that keeps them whole, as Kubernetes reads it: ``4Gi``."""
    for unit, size in sorted(_SIZES.items(), key=lambda item: -item[1]):
        if value and value % size == 0:
            return f"{value // size}{unit}"
    return str(value)


STEP_MEMORY = "4Gi"
"""What a pod of training takes where `compute.memory` says nothing."""


def step_memory(wanted: int | None) -> str:
    """Return the memory of a pod of training as Kubernetes reads it. wanted : bytes; None: ``STEP_MEMORY``"""
    return format_size(wanted) if wanted else STEP_MEMORY


Size = Annotated[
    int,
    Field(gt=0),
    BeforeValidator(parse_size, json_schema_input_type=str),
    PlainSerializer(format_size, return_type=str),
]


def _texts(value: object) -> object:
    """Turn a list of texts and numbers, as YAML reads them, into texts."""
    if not isinstance(value, list | tuple):
        return value
    return [
        str(int(each)) if isinstance(each, float) and each.is_integer() else str(each)
        for each in value
        if each is not None
    ]


Texts = Annotated[tuple[str, ...], BeforeValidator(_texts, json_schema_input_type=list[str | float])]
Condition = tuple[str, str, Any]
Severity = Literal["error", "warning", "off"]


class Section(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class ChecksSettings(Section):
    """What is done when a data check fails: `error` stops, `warning` reports, `off` skips it."""

    duplicate_ids: Severity = Field("error", description="The same `data.id` on more than one row")
    infinite_values: Severity = Field("error", description="Plus or minus infinity in a numeric feature")
    unparsable_time: Severity = Field("error", description="A value of `data.time` that is not a time")
    missing_target: Severity = Field(
        "error", description="Rows without a target (`warning` drops them and says how many)"
    )
    all_missing: Severity = Field("warning", description="A column without any value (dropped)")
    leak: Severity = Field("warning", description="A feature, or its missingness, that alone reaches `leak_ap`")
    leak_ap: Share = Field(0.99, description="Average precision from which one feature alone is suspect")
    identical_rows: Severity = Field(
        "warning", description="Rows equal in every feature (kept on one side of every split)"
    )


class DataSettings(Section):
    """Where the labelled history is and what its columns mean."""

    path: str = Field(
        description="CSV, Parquet file, folder, glob, URL (s3:// gs:// abfs:// hdfs://), table of a lake (delta:// "
        "iceberg://), "
        "SQL URL (sqlite:// postgresql:// snowflake:// bigquery://) or demo:NAME"
    )
    query: str | None = Field(
        None,
        description=(
            "SELECT statement of a SQL URL, or over the table `data` of what else `path` names (extra `duckdb`)"
        ),
    )
    target: str | None = Field(description="Column with the truth; null: no row is labelled, and a detector is trained")
    positive: Any = Field(
        None, description="Value of the target that is the rare class; default: the rarer of two values"
    )
    time: str | None = Field(None, description="Column with the time a row was known (UTC); gives a split by time")
    entity: str | None = Field(
        None, description="Column naming who a row belongs to (card, patient); keeps it on one side of a split"
    )
    id: str | None = Field(
        None, description="Column that identifies a row; used for stable splits and never as a feature"
    )
    time_format: str | None = Field(
        None,
        description=(
            "How times are written: `day-first`, `month-first`, `iso`, digits like `YYYYMM`, or a format like "
            "`%d.%m.%Y %H:%M`; default: found from all values"
        ),
    )
    time_unit: Literal["s", "ms", "us", "ns", "minute", "hour", "day", "week", "month", "year", "order"] | None = Field(
        None,
        description=(
            "What the numbers of `time` count, from `time_origin`; `order`: nothing but an order; default: "
            "epochs and dates are found by their size"
        ),
    )
    time_origin: str | None = Field(None, description="ISO time at which `time_unit` counts 0; default: 1970-01-01")
    label_delay: Duration = Field(
        timedelta(0),
        description=(
            "How long after a row its label is known; 0: not known, so that the monitor learns it from the labels "
            "that come"
        ),
    )
    drop: tuple[str, ...] = Field((), description="Columns that are not features (ids, leaks)")
    columns: tuple[str, ...] | None = Field(None, description="Only these columns are features; default: all others")
    categorical: tuple[str, ...] = Field(
        (), description="Numeric columns that are categories; text that is not numbers always is"
    )
    filter: tuple[Condition, ...] | tuple[tuple[Condition, ...], ...] = Field(
        (),
        description=(
            "Rows to keep, as [column, operator, value] conditions joined by and (a list of such lists: or); "
            "holds at serving too, may not see the target"
        ),
    )
    drop_empty: bool = Field(False, description="Drop rows in which every feature is missing")
    amount: str | None = Field(None, description="Column with the amount at stake in a row, in `costs.currency`")
    propensity: str | None = Field(
        None,
        description="Column with the probability that a row's label could be observed (1 = always, control groups < 1)",
    )
    contamination: Literal["none", "unknown"] | Annotated[float, Field(ge=0, lt=0.5)] = Field(
        "unknown",
        description=(
            "Share of the rows that detectors learn from which may not be normal: "
            "a number, none, or unknown (2 % of rows without labels, none of labelled ones)"
        ),
    )
    private: tuple[str, ...] = Field((), description="Columns never written to the prediction store")
    max_categories: int = Field(
        64, ge=2, description="Levels kept per category, most frequent first; the rest is pooled"
    )
    missing_values: Texts = Field(
        (),
        description=(
            "Texts and numbers that mean missing in every column (like `-999`, `unknown`), besides the empty cell; "
            "number and time columns also take NA, NaN, null, ? and the like so"
        ),
    )
    decimal: Literal[".", ","] = Field(".", description="Decimal sign of numbers that are written as text")
    thousands: Literal["", ",", ".", "'", " ", "_"] = Field(
        "", description="Sign between groups of three digits in numbers that are written as text"
    )
    encoding: str | None = Field(
        None, description="Encoding of CSV files, like `latin-1`; default: UTF-8, or what a byte order mark says"
    )
    checks: ChecksSettings = ChecksSettings()


class SplitSettings(Section):
    """How rows are set apart."""

    kind: Literal["auto", "time", "stratified", "grouped"] = Field(
        "auto", description="auto: time if `data.time`, grouped if `data.entity`, else stratified"
    )
    test: float = Field(0.2, gt=0, lt=0.9, description="Share of rows that judge the model once")
    validation: float = Field(
        0.25, gt=0, lt=0.9, description="Share of the other rows: scored forward in time where there is time"
    )
    folds: int = Field(
        5,
        ge=2,
        le=20,
        description="Folds of cross-fitting where there is no time; at most 3 above 100,000 rows with 1,000 positives",
    )
    windows: int = Field(
        3, ge=1, le=20, description="Forward windows that the validation rows are cut into, where there is time"
    )
    repeats: int = Field(1, ge=1, le=20, description="Repeats of the folds; raised by itself where positives are few")
    entities_apart: bool = Field(
        False,
        description=(
            "Where rows are split by time: rows of entities that were seen earlier leave the later side, so that no "
            "entity is on both"
        ),
    )
    drop_known_entities: bool = Field(
        False, description="Drop test rows of entities already known positive in training"
    )
    prequential: int = Field(
        0, ge=0, le=50, description="Additional prequential folds reported by `evaluate`; 0 is none"
    )


class OutliersSettings(Section):
    """Rows of one class with an unusual value of one column: no fit learns from them, they are still scored."""

    column: str = Field(description="A numeric feature")
    of: Literal["majority", "rare"] = Field("majority", description="Whose rows leave training")
    below: float | None = Field(
        None, gt=0, lt=0.5, description="Values below this quantile, among the class's rows of the training part"
    )
    above: float | None = Field(
        None, gt=0.5, lt=1, description="Values above this quantile, among the class's rows of the training part"
    )

    @model_validator(mode="after")
    def _some_end(self) -> OutliersSettings:
        if self.below is None and self.above is None:
            raise ValueError("an end is missing; set below or above to a quantile, like above: 0.999")
        return self


class TrainSettings(Section):
    """What only training sees."""

    filter: tuple[Condition, ...] | tuple[tuple[Condition, ...], ...] = Field(
        (),
        description=(
            "Rows that a fit may learn from; may see the target; others are still scored, and the effect on "
            "prevalence is corrected"
        ),
    )
    majority_quantile: float = Field(
        1.0,
        gt=0.5,
        le=1,
        description=(
            "No fit learns from majority rows with a numeric feature above this quantile of the training part's "
            "majority rows; they are still scored"
        ),
    )
    outliers: tuple[OutliersSettings, ...] = Field(
        (), description="Outliers of named columns, each of one class; the effect on prevalence is corrected"
    )
    refit: Literal["all", "train", "none"] = Field(
        "all",
        description=(
            "Rows of the final fit: every labelled row (all), or the very model that was judged, fitted on training "
            "and validation rows (train and none alike)"
        ),
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of everything random")


class ResampleStep(Section):
    """One step of a resampling chain."""

    name: str = Field(description="A member of RESAMPLERS")
    ratio: float | None = Field(None, gt=0, description="Majority rows per minority row after this step (5 = 1:5)")
    rows: int | None = Field(
        None, gt=0, description="Absolute number of rows of the class that changes, instead of a ratio"
    )
    params: dict[str, Any] = Field({}, description="Further settings of the resampler")


class CandidateSpec(Section):
    """One recipe to try."""

    name: str | None = Field(None, description="Default: made of the parts")
    learner: str = Field("xgboost", description="A member of LEARNERS")
    params: dict[str, Any] = Field({}, description="Settings of the learner")
    resample: tuple[ResampleStep, ...] = Field((), description="Resampling chain, in order")
    weighting: str = Field("none", description="A member of WEIGHTINGS")
    loss: Literal["logistic", "focal"] = Field("logistic", description="Loss of XGBoost")


class SearchSettings(Section):
    """What is tried and how long."""

    seconds: float = Field(
        60, gt=0, description="Wall-clock seconds for fitting candidates; the first is always finished"
    )
    trials: int | None = Field(None, ge=1, description="Number of fits instead of seconds: repeatable exactly")
    candidates: tuple[CandidateSpec, ...] = Field(
        (), description="Tried after the plan's candidate 0 instead of the plan"
    )
    extra: tuple[CandidateSpec, ...] = Field((), description="Tried in addition to the plan")
    only: CandidateSpec | None = Field(
        None, description="One recipe is forced: it is finished however long it takes, and nothing is tried beside it"
    )
    tune: bool = Field(
        True, description="Search the hyper-parameters of the leading learner with what is left of the budget"
    )
    ensemble: Literal["auto", "none", "voting", "weighted", "stacking"] = Field(
        "auto", description="Combination of fitted candidates"
    )
    metric: Literal["average_precision", "cost", "recall_at_precision"] = Field(
        "average_precision",
        description=(
            "What decides between candidates: how they rank, what the best threshold saves (`costs`), or the recall "
            "within reach at `threshold.min_precision`"
        ),
    )
    replay: str | None = Field(None, description="A recorded trials.json: fit exactly what it lists, in its order")


class DaskSettings(Section):
    """The workers of `compute.engine: dask`."""

    scheduler: str | None = Field(
        None,
        description="Address of a scheduler that exists, like tcp://dask-scheduler:8786, whose workers have this "
        "package and reach the data; default: workers of this run, on this machine",
    )
    workers: int = Field(2, ge=1, le=1024, description="Workers to start where there is no `scheduler`")
    worker_memory: Size | None = Field(
        None,
        description="Memory from which a worker is replaced, like 4GiB; default: its share of the machine, and on "
        "Kubernetes `compute.memory`",
    )
    image: str | None = Field(
        None,
        description="Inside of a pod: image of the workers that Dask's operator starts beside it where there is no "
        "`scheduler`, each with `compute.cpu` and `worker_memory`. `rareclass submit` sets the image of the steps",
    )


class TransferSettings(Section):
    """Labels of a related domain (another region, product or year) that candidates may learn from. Rows of the target
    alone compare and judge them, and one that does not win is dropped.
    """

    path: str | None = Field(
        None, description="Labelled rows of the related domain, named as `data.path` is; `data.filter` is not for them"
    )
    query: str | None = Field(None, description="SELECT statement of `path`, as `data.query`")
    filter: tuple[Condition, ...] | tuple[tuple[Condition, ...], ...] = Field(
        (), description="Rows of `path` to take, as [column, operator, value] conditions on its own columns"
    )
    model: str | None = Field(
        None, description="A registered model of the related domain instead of its rows, like models:/NAME/3"
    )
    columns: dict[str, str] = Field({}, description="Column of the target -> its name in the related domain")
    weight: Literal["auto"] | Annotated[float, Field(gt=0)] = Field(
        "auto",
        description=(
            "What a row of `path` counts for beside one of the target: a number, or auto: several are tried, "
            "among them how much a row looks like one of the target"
        ),
    )
    rows: int = Field(50_000, ge=100, description="Rows of `path` that are used at most, drawn at random")
    future: Literal["refuse", "accept"] = Field(
        "refuse",
        description=(
            "Where nothing tells whether what is lent knows the future or the entities of the rows that judge "
            "(it has no `data.time` or `data.entity`, or a model was trained later): refuse, or accept that figures "
            "may flatter"
        ),
    )

    @property
    def source(self) -> str | None:
        """What is named: rows or a model; None where nothing is."""
        return self.path if self.model is None else self.model

    @model_validator(mode="after")
    def _one_source(self) -> TransferSettings:
        if self.path is not None and self.model is not None:
            raise ValueError("transfer.path and transfer.model are two sources. Keep one of them")
        if self.model is not None and (self.query or self.filter or self.weight != "auto"):
            raise ValueError(
                "transfer.query, transfer.filter and transfer.weight are of rows. Take them out, or set transfer.path"
            )
        if self.source is None and (self.query or self.filter or self.columns):
            raise ValueError("transfer has no source. Set transfer.path or transfer.model")
        return self


class ComputeSettings(Section):
    """Where fitting happens."""

    engine: Literal["local", "dask"] = Field(
        "local", description="Who reads, samples, trains and scores: this process, or workers of Dask (extra `dask`)"
    )
    dask: DaskSettings = DaskSettings()

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Device of XGBoost")
    threads: int | None = Field(None, ge=1, description="Threads; default: the processors this process may use")
    cpu: str = Field("2", pattern=r"^\d+(\.\d+)?m?$", description="CPU request of a pipeline step on Kubernetes")
    memory: Size | None = Field(
        None,
        description=(
            "Most memory that a command takes, like 4GiB; a table that needs more is read as a stream and trained on "
            "a sample of its negatives. Default: .8 of what the process may use. "
            "On Kubernetes also the request and limit of a pipeline step (4Gi unless set)"
        ),
    )

    def processors(self) -> int:
        """Threads to use: what is configured, else the processors this process may run on."""
        allowed = getattr(os, "sched_getaffinity", None)
        return self.threads or (len(allowed(0)) if allowed else os.cpu_count() or 1)


class SecretEnv(Section):
    """Keys of a Secret that become environment variables of every pipeline step."""

    name: str = Field(description="Name of the Secret, in the namespace that the steps run in")
    env: dict[str, str] = Field(description="Environment variable -> key of the Secret, like RARECLASS_STORE_URL: url")


class ClusterSettings(Section):
    """The Kubeflow Pipelines that `rareclass submit` runs on."""

    host: str = Field("http://ml-pipeline.kubeflow:8888", description="Address of the Kubeflow Pipelines API")
    namespace: str | None = Field(None, description="Namespace of the user, where Kubeflow has users")
    account: str | None = Field(None, description="Service account of the steps; default: Kubeflow's own")
    token_env: str = Field(
        "RARECLASS_KUBEFLOW_TOKEN", description="Environment variable with the bearer token of the API; unset: none"
    )
    token_file: str | None = Field(
        None,
        description=(
            "File with the token instead, read anew when it changes: a projected token of the pod's service account"
        ),
    )
    header: str | None = Field(
        None, description="One more header of each request, like `kubeflow-userid: me@example.org` or a proxy's cookie"
    )
    ca_file: str | None = Field(None, description="Certificate authorities that the API is trusted by")
    run_as_user: int | None = Field(
        None,
        ge=1,
        description=(
            "User and group id of the steps, as their securityContext with runAsNonRoot; "
            "needs a Kubeflow Pipelines that knows it (2.17; 2.14 refuses it). Unset: "
            "the image's own user, which is not root"
        ),
    )
    image: str | None = Field(None, description="Image of every step; default: rareclass/pipeline of this version")
    env: dict[str, str] = Field({}, description="Plain environment variables of every step")
    secrets: tuple[SecretEnv, ...] = Field(
        (),
        description="Secrets whose keys become environment variables: passwords never enter the pipeline's parameters",
    )


class CostsSettings(Section):
    """What mistakes cost. Without any, costs are 1 for a false alarm and prevalence-balanced for a miss."""

    false_negative: float | None = Field(None, gt=0, description="Cost of one missed positive, in `currency`")
    false_positive: float | None = Field(None, gt=0, description="Cost of one false alarm, in `currency`")
    amount_share: float | None = Field(
        None, gt=0, description="Share of `data.amount` lost by a missed positive, instead of `false_negative`"
    )
    currency: str = Field("cost units", description="Name of the unit of money")


class OperatingPoint(Section):
    """One named threshold."""

    name: str = Field(description="Name of the operating point")
    objective: str = Field(
        "cost",
        description=(
            "A member of OBJECTIVES: f1, f2, fbeta, mcc, cost, recall_at_precision, precision_at_recall, "
            "alerts_per_day, false_alarm_rate"
        ),
    )
    beta: float = Field(1.0, gt=0, description="beta of fbeta")
    min_precision: Share | None = Field(None, description="Constraint: precision at least this")
    min_recall: Share | None = Field(None, description="Constraint: recall at least this")
    max_alerts_per_day: float | None = Field(
        None, gt=0, description="Constraint: at most this many decisions 1 a day (capacity)"
    )
    max_false_alarm_rate: float | None = Field(
        None, gt=0, lt=1, description="Constraint: at most this share of normal rows is decided 1"
    )


class ThresholdSettings(Section):
    """What the decision is tuned for. The first operating point is the one that decides."""

    objective: str = Field(
        "auto",
        description=(
            "auto: cost where costs are given, else f1; without a row of the rare class alerts_per_day where "
            "max_alerts_per_day is set, else false_alarm_rate"
        ),
    )
    beta: float = Field(1.0, gt=0, description="beta of fbeta")
    min_precision: Share | None = Field(None, description="Constraint: precision at least this")
    min_recall: Share | None = Field(None, description="Constraint: recall at least this")
    max_alerts_per_day: float | None = Field(None, gt=0, description="Constraint: at most this many decisions 1 a day")
    max_false_alarm_rate: float | None = Field(
        None, gt=0, lt=1, description="Constraint: at most this share of normal rows is decided 1"
    )
    points: tuple[OperatingPoint, ...] = Field((), description="Further named operating points")
    fixed: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="A threshold set by hand, judged beside the tuned ones as the point `fixed`; it never decides",
    )
    calibration: Literal["auto", "none", "isotonic", "platt", "beta"] = Field(
        "auto", description="auto: chosen by cross-fitted log loss, none if none is better"
    )


class EvaluateSettings(Section):
    """What is reported on the test rows."""

    bootstraps: int = Field(200, ge=50, le=5000, description="Bootstrap resamples behind each interval")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Coverage of each interval")
    slices: tuple[str, ...] = Field((), description="Columns to report by; default: up to three categories")
    test_ratio: float | None = Field(
        None, gt=0, description="Also report on a test thinned to this many negatives per positive"
    )
    top_k: tuple[int, ...] = Field((10, 100), description="k of precision@k per day")
    cross_fitting_repeats: int = Field(
        3,
        ge=0,
        le=20,
        description=(
            "Where the test rows hold fewer positives than gate.min_positives: "
            "how often the recipe is cross-fitted over all rows to judge it (up to 100,000 rows); 0: "
            "then there is never enough evidence"
        ),
    )
    importance_repeats: int = Field(
        3,
        ge=0,
        le=50,
        description="How often each feature is scrambled to see what the model owes to it; 0 leaves it out",
    )


class GateSettings(Section):
    """When a recipe is good enough."""

    mode: Literal["disabled", "dry_run", "enabled"] = Field(
        "enabled", description="dry_run judges and registers anyway"
    )
    min_positives: int = Field(
        50,
        ge=1,
        description=(
            "Positives below which the verdict is 'not enough evidence': "
            "of the test rows, or of all rows that cross-fitting judges where the test rows hold fewer"
        ),
    )
    min_ap_lift: float = Field(2.0, ge=1, description="AP at least this many times the prevalence (lower bound)")
    min_ap: Share | None = Field(None, description="AP at least this (lower bound)")
    max_ap_loss: Share = Field(0.05, description="Relative AP that may be lost against the champion")
    without_comparison: Literal["insufficient", "approve"] = Field(
        "insufficient",
        description=(
            "When the champion cannot be compared (its columns are gone, it learned another target, ...): "
            "not enough evidence, or no objection"
        ),
    )
    max_calibration_error: float = Field(
        0.5, gt=0, description="|mean score / prevalence - 1| at most this, where its interval excludes 1"
    )
    without_labels: Literal["register", "insufficient"] = Field(
        "register",
        description=(
            "What becomes of a detector that no label can judge, where no champion was ever judged by labels: "
            "it is registered all the same, or not. Also of a classifier that too few labels could judge: beside such "
            "a detector it becomes challenger; without any champion and below 10 positives it goes live"
        ),
    )
    max_slice_recall_gap: Share | None = Field(None, description="Recall of any slice at most this below the whole")


class PromotionSettings(Section):
    """What happens to an approved version."""

    mode: Literal["immediate", "shadow", "manual"] = Field(
        "immediate",
        description=(
            "immediate: champion at once; shadow: wins on live labels first; manual: "
            "a person approves it first, and it scores in the shadow while it waits"
        ),
    )
    four_eyes: bool = Field(False, description="With mode manual: whoever trained a version may not approve it")
    probation: Duration = Field(
        timedelta(days=14), description="How long the previous champion keeps scoring as shadow"
    )


class TrackingSettings(Section):
    """MLflow."""

    uri: str = Field("sqlite:///.rareclass/mlflow.db", description="MLflow tracking and registry URI")
    experiment: str | None = Field(None, description="MLflow experiment; default: `name`")
    artifacts: str | None = Field(
        None, description="Artifact root of a new experiment; default: beside a SQLite store, the server's otherwise"
    )

    @field_validator("artifacts")
    @classmethod
    def _nothing_secret(cls, value: str | None) -> str | None:
        if value is not None and has_secret(value):
            raise ValueError(
                "it holds a password, and MLflow writes it into every run. "
                "Give the storage its key by its environment variables"
            )
        return value


class StoreSettings(Section):
    """Predictions, labels and the ledger."""

    url: str = Field(
        "sqlite:///.rareclass/store.db", description="SQLAlchemy URL: sqlite:///... or postgresql+psycopg://..."
    )
    retention: Duration = Field(
        timedelta(days=400),
        description=(
            "Predictions older than this are deleted by `rareclass retention`; "
            "the server refuses rows whose event time is older"
        ),
    )
    wait: Duration = Field(
        timedelta(0),
        description=(
            "How long a command that needs the store waits for it when it starts; "
            "a pod's first connections may be refused"
        ),
    )


class ServeSettings(Section):
    """The model server."""

    host: str = Field("127.0.0.1", description="Address to listen on")
    http_port: int = Field(8080, ge=0, lt=65536, description="HTTP port; 0 picks a free one")
    grpc_port: int = Field(8081, ge=0, lt=65536, description="gRPC port; 0 picks a free one")
    metrics_port: int = Field(8082, ge=0, lt=65536, description="Prometheus port; 0 picks a free one")
    max_rows: int = Field(10_000, ge=1, description="Rows in one request at most")
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes that share the ports, each with the model in memory and a spool of its own",
    )
    spool: str = Field(".rareclass/spool", description="Folder of the durable prediction spool")
    spool_limit_bytes: int = Field(
        1 << 30, ge=1 << 16, description="Spool size from which rows decided 0 are sampled, in bytes"
    )
    sample_rate: float = Field(
        0.1, gt=0, le=1, description="Share of rows decided 0 that is kept above the limit (weights kept)"
    )
    durability: Literal["process", "power"] = Field(
        "process", description="What an answered row survives: the process or a power cut"
    )
    sync_milliseconds: float = Field(50, gt=0, description="Window between group fsyncs, in milliseconds")
    operating_point: str | None = Field(
        None, description="Operating point of servers and of `rareclass score -c`; default: the first"
    )
    operating_point_file: str | None = Field(
        None, description="Watched file that names the operating point or a threshold (JSON)"
    )
    shadows: bool = Field(True, description="Score challenger and previous champion in the shadow")
    shadow_seconds: float = Field(5, gt=0, description="A shadow slower than this is skipped")
    shadow_memory_bytes: int = Field(
        2 << 30, ge=1 << 27, description="Memory that the shadow process may take for its versions, in bytes"
    )
    token_env: str = Field(
        "RARECLASS_SERVE_TOKEN", description="Environment variable with the bearer token; unset: open"
    )
    refresh_seconds: float = Field(10, gt=0, description="How often aliases and operating points are looked up")


class KafkaSettings(Section):
    """Topics that `rareclass listen` reads (extra `kafka`)."""

    servers: str | None = Field(None, description="Brokers to ask first, `host:port,host:port`; null: no Kafka")
    predictions: str | None = Field(
        None, description="Topic with predictions, as CloudEvents of KServe or as JSON objects; null: none"
    )
    labels: str | None = Field(
        None, description="Topic with late labels, each a JSON object or list as POST /labels takes it; null: none"
    )
    group: str | None = Field(None, description="Consumer group; default: `rareclass-NAME`")
    security: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = Field(
        "plaintext", description="How the brokers are spoken to"
    )
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="How the user is proven where `security` begins with sasl"
    )
    username: str | None = Field(None, description="User where `security` begins with sasl")
    password_env: str = Field("RARECLASS_KAFKA_PASSWORD", description="Environment variable with the user's password")
    ca_file: str | None = Field(None, description="Certificates that sign the brokers'; default: the system's")

    @model_validator(mode="after")
    def _something_to_read(self) -> KafkaSettings:
        topics = self.predictions or self.labels
        if bool(self.servers) != bool(topics):
            raise ValueError(
                "Kafka needs servers and a topic. Set listen.kafka.servers and listen.kafka.predictions "
                "or listen.kafka.labels"
            )
        return self


class ListenSettings(Section):
    """Predictions of a model that something else serves, into the prediction log (`rareclass listen`)."""

    host: str = Field("127.0.0.1", description="Address to listen on")
    port: int = Field(8095, ge=0, lt=65536, description="HTTP port; 0 picks a free one")
    spool: str = Field(
        ".rareclass/listen", description="Folder of its durable spool, of waiting events and of dead letters"
    )
    service: str | None = Field(
        None, description="InferenceService whose events are taken, others are ignored; default: the model's name"
    )
    score: str | None = Field(
        None,
        description="Output with the probability of the rare class; default: `score`, `probability`, `predict_proba` "
        "or the only one of floats",
    )
    column: int = Field(
        1, ge=0, description="Column of the rare class where that output has several, like scikit-learn's predict_proba"
    )
    threshold: Share | None = Field(
        None,
        description="Cut-off that decides where an answer has neither `decision` nor a threshold; null: it must have",
    )
    version: str = Field(
        "external", description="Version that predictions are logged under where the answer does not name one"
    )
    features: tuple[str, ...] | None = Field(
        None, description="Names of the columns where a request has none; default: those of the registered champion"
    )
    join_seconds: float = Field(
        600, gt=0, description="How long a request and its answer wait for each other, in seconds"
    )
    token_env: str = Field(
        "RARECLASS_LISTEN_TOKEN",
        description="Environment variable with the token: a bearer token, or the password of a URL; unset: open",
    )
    kafka: KafkaSettings = KafkaSettings()


class LabelsSettings(Section):
    """Late ground truth."""

    missing: Literal["unknown", "negative"] = Field(
        "unknown", description="What a label that never came means, after `horizon`"
    )
    horizon: Duration = Field(timedelta(days=90), description="When a missing label counts as never coming")
    token_env: str = Field(
        "RARECLASS_LABELS_TOKEN",
        description="Environment variable with the bearer token of POST /labels; unset: the route is closed",
    )
    max_batch: int = Field(10_000, ge=1, description="Labels in one POST at most")
    requests_per_minute: int = Field(120, ge=1, description="POST /labels requests a minute at most")


class ReviewSettings(Section):
    """Which rows a person looks at next (`rareclass review`)."""

    labels: Literal["all", "chosen"] = Field(
        "all",
        description=(
            "Where labels come from: all = a feed that brings one for every row; chosen = people who look at the rows "
            "that `rareclass review` chose, so each counts by its inverse probability and others are left out"
        ),
    )
    window: Duration = Field(timedelta(days=1), description="Stretch of prediction time that rows are chosen from")
    budget: int = Field(30, ge=1, description="Rows to look at per window, on average")
    top: Share = Field(0.3, description="Share of the budget for the highest scores, which are taken for certain")
    control: Share = Field(
        0.1, gt=0, description="Share of the budget that gives all other rows one chance; what is left goes by doubt"
    )

    @model_validator(mode="after")
    def _shares(self) -> ReviewSettings:
        if self.top + self.control > 1:
            raise ValueError(
                f"review.top {self.top} and review.control {self.control} are more than the whole budget. "
                "Lower one of them"
            )
        if self.window < timedelta(seconds=1):
            raise ValueError("review.window must be 1s or longer")
        return self


class MonitorSettings(Section):
    """What is watched live."""

    host: str = Field("127.0.0.1", description="Address to listen on")
    port: int = Field(8090, ge=0, lt=65536, description="HTTP port; 0 picks a free one")
    every: Duration = Field(timedelta(minutes=5), description="How often the store is evaluated")
    window: Duration = Field(timedelta(days=7), description="Length of one disjoint window of prediction time")
    windows: int = Field(5, ge=1, le=60, description="Windows kept in view")
    min_positives: int = Field(20, ge=1, description="Positives below which a window's quality is not reported")
    min_rows: int = Field(200, ge=1, description="Rows below which drift is not judged")
    max_ap_loss: Share = Field(
        0.2, description="Relative AP loss at the reference prevalence that counts as a violation"
    )
    psi: float = Field(0.2, gt=0, description="Decile PSI from which a feature has drifted")
    missing_jump: Share = Field(0.2, description="Rise of a missing rate that counts as broken data")
    unknown_share: Share = Field(0.05, description="Share of unknown categories that counts as broken data")
    prevalence_ratio: float = Field(1.5, gt=1, description="Change of prevalence, either way, that counts as a shift")
    starvation: Share = Field(0.2, description="Share of matured rows with a label below which labels have stopped")
    bootstraps: int = Field(200, ge=50, le=5000, description="Bootstrap resamples behind each interval")
    token_env: str = Field(
        "RARECLASS_MONITOR_TOKEN",
        description="Environment variable with the bearer token of the status page; unset: open",
    )


class RetrainSettings(Section):
    """What a retrain learns from."""

    source: Literal["store", "data"] = Field(
        "store",
        description=(
            "store: served features joined with matured labels, after the training rows; data: `data.path` again"
        ),
    )
    windows: tuple[Literal["all", "since_change", "recent", "weighted"], ...] = Field(
        ("all", "since_change", "weighted"), description="How much history is tried, decided forward in time"
    )
    min_positives: int = Field(30, ge=1, description="New positives needed since the last training")


class GovernorSettings(Section):
    """Brakes on automatic repair."""

    cooldown: Duration = Field(timedelta(days=7), description="Rest after a retrain")
    max_per_month: int = Field(4, ge=0, description="Retrains in 30 days at most")
    loop_guard: int = Field(2, ge=1, description="Retrains in a row that did not help before a person must act")


class UpSettings(Section):
    """What `rareclass up` runs beside the server and the monitor, and how often."""

    listen: bool = Field(False, description="Also take what another server predicts (`rareclass listen`)")
    labels: str | None = Field(
        None, description="Label file, folder, glob, object or SQL URL#TABLE that is imported; null: no import"
    )
    labels_every: Duration = Field(timedelta(minutes=15), description="How often labels are imported")
    triage_every: Duration = Field(timedelta(minutes=30), description="How often a turn is taken: `triage --act`")
    retention_every: Duration = Field(timedelta(days=1), description="How often predictions past `store.retention` go")
    backup: str | None = Field(None, description="Folder or object-store prefix of backups; null: none")
    backup_every: Duration = Field(timedelta(days=1), description="How often a backup is made")
    backup_keep: int = Field(7, ge=1, description="Backups that stay, the newest")

    @model_validator(mode="after")
    def _not_too_often(self) -> UpSettings:
        for name in ("labels_every", "triage_every", "retention_every", "backup_every"):
            if getattr(self, name) < timedelta(seconds=1):
                raise ValueError(f"{name} must be 1s or longer")
        return self


class ReplaySettings(Section):
    """History through the whole loop on a virtual clock."""

    train_until: date | None = Field(
        None, description="Rows before this date train the first model; default: the first 60 %"
    )
    step: Duration = Field(timedelta(days=7), description="Length of one step")
    peers: bool = Field(True, description="Also play 'never retrain' and 'retrain every week'")
    unlabelled: bool = Field(
        False,
        description="Begin without a label: of the rows before `train_until` none is known, so detectors answer first; "
        "a team that waits for 250 positives is played beside",
    )


class RegimeSettings(Section):
    """Bounds of the regimes, in positives."""

    few: int = Field(30, ge=1, description="Fewer positives than this: 'few'")
    scarce: int = Field(300, ge=2, description="Fewer positives than this: 'scarce'; otherwise 'ample'")


class Config(Section):
    """Everything a project sets.

    The smallest useful one: name, data.path, data.target and data.time if there is one.
    """

    name: str = Field(
        pattern=r"^[a-z0-9]([a-z0-9-]{0,48}[a-z0-9])?$", description="Name of the model: lower case, digits and dashes"
    )
    data: DataSettings
    split: SplitSettings = SplitSettings()
    train: TrainSettings = TrainSettings()
    search: SearchSettings = SearchSettings()
    transfer: TransferSettings = TransferSettings()
    compute: ComputeSettings = ComputeSettings()
    cluster: ClusterSettings = ClusterSettings()
    costs: CostsSettings = CostsSettings()
    threshold: ThresholdSettings = ThresholdSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    gate: GateSettings = GateSettings()
    promotion: PromotionSettings = PromotionSettings()
    regime: RegimeSettings = RegimeSettings()
    tracking: TrackingSettings = TrackingSettings()
    store: StoreSettings = StoreSettings()
    serve: ServeSettings = ServeSettings()
    listen: ListenSettings = ListenSettings()
    labels: LabelsSettings = LabelsSettings()
    review: ReviewSettings = ReviewSettings()
    monitor: MonitorSettings = MonitorSettings()
    retrain: RetrainSettings = RetrainSettings()
    governor: GovernorSettings = GovernorSettings()
    replay: ReplaySettings = ReplaySettings()
    up: UpSettings = UpSettings()

    @property
    def missing_negative_after(self) -> timedelta | None:
        """The age from which a label that never came counts as 0; None: it stays unknown."""
        return self.labels.horizon if self.labels.missing == "negative" else None

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        data = self.data
        if self.split.kind == "time" and data.time is None:
            raise ValueError(
                "split.kind is 'time' but there is no time column. Set data.time, or split.kind: stratified"
            )
        if self.split.kind == "grouped" and data.entity is None:
            raise ValueError(
                "split.kind is 'grouped' but there is no entity column. Set data.entity, or split.kind: stratified"
            )
        if self.review.labels == "chosen" and self.labels.missing == "negative":
            raise ValueError(
                "review.labels: chosen says that only chosen rows are looked at, so a missing label means nothing. "
                "Set labels.missing: unknown"
            )
        if self.search.metric == "recall_at_precision" and self.threshold.min_precision is None:
            raise ValueError(
                "search.metric: recall_at_precision needs the precision. Set threshold.min_precision, like 0.7"
            )
        if data.decimal == data.thousands:
            raise ValueError(f"data.decimal and data.thousands are both '{data.decimal}'. Set one of them otherwise")
        if data.time_origin is not None and data.time_unit in (None, "order"):
            raise ValueError(
                "data.time_origin needs to know what is counted from it. Set data.time_unit, like hour or day"
            )
        if data.time_unit == "order" and data.label_delay:
            raise ValueError(
                "data.time_unit: order tells no calendar, so data.label_delay cannot be waited for. "
                "Set data.time_unit to what the numbers count, or data.label_delay: 0"
            )
        objectives = [self.threshold.objective, *(point.objective for point in self.threshold.points)]
        bounds = [self.threshold.max_alerts_per_day, *(point.max_alerts_per_day for point in self.threshold.points)]
        if data.time_unit == "order" and ("alerts_per_day" in objectives or any(bounds)):
            raise ValueError(
                "alerts a day need days, and data.time_unit: order tells no calendar. "
                "Set data.time_unit to what the numbers count, or another objective"
            )
        if data.target is None and data.positive is not None:
            raise ValueError(
                "data.positive is a value of a target. Set data.target to its column, or take data.positive out"
            )
        if self.split.entities_apart and data.entity is None:
            raise ValueError("split.entities_apart needs to know whose rows they are. Set data.entity to that column")
        if self.costs.amount_share is not None and data.amount is None:
            raise ValueError("costs.amount_share needs the amounts. Set data.amount to the column that holds them")
        if self.costs.amount_share is not None and self.costs.false_negative is not None:
            raise ValueError(
                "costs.amount_share and costs.false_negative are two ways to say the same. Keep one of them"
            )
        if data.target is not None and data.target in (data.time, data.entity, data.id, data.amount):
            raise ValueError(
                f"data.target '{data.target}' has a second role. Set data.time, data.entity, data.id and data.amount "
                "to other columns"
            )
        if any(column == data.target for group in filter_groups(data.filter) for column, _, _ in group):
            raise ValueError(
                f"data.filter may not see the target '{data.target}', because it holds at serving too. Use train.filter"
            )
        if data.target is not None and data.columns is not None and data.target in data.columns:
            raise ValueError(f"data.columns lists the target '{data.target}' as a feature. Take it out")
        names = [point.name for point in self.threshold.points]
        if len(set(names)) < len(names) or "default" in names:
            raise ValueError("threshold.points must have different names, none of them 'default'")
        return self


def filter_groups(conditions: Sequence[Any]) -> list[Sequence[Condition]]:
    """Return a filter as or-ed groups of and-ed conditions, however it was written; none for no filter."""
    if not conditions:
        return []
    return list(conditions) if isinstance(conditions[0][0], list | tuple) else [conditions]


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML or JSON configuration and apply ``a.b=v`` overrides. Raises ConfigError with one line."""
    import yaml

    file = Path(path)
    if not file.is_file():
        raise ConfigError(
            f"configuration '{path}' is not a file. Pass -c PATH to a YAML or JSON file; "
            "`rareclass schema` lists the settings"
        )
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"configuration '{path}' is not valid YAML or JSON: {reason}") from None
    if not isinstance(raw, dict):
        raise ConfigError(
            f"configuration '{path}' must be a mapping of settings, like 'name: my-model'; it is {type(raw).__name__}"
        )
    return parse(with_overrides(with_environment(raw), overrides))


ENVIRONMENT = {
    "RARECLASS_STORE_URL": "store.url",
    "RARECLASS_STORE_WAIT": "store.wait",
    "RARECLASS_TRACKING_URI": "tracking.uri",
    "RARECLASS_DATA_PATH": "data.path",
}
"""Short names of settings that the environment often gives, because they may hold passwords or differ by place."""


def _fields_of(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields_of(field.annotation, f"{path}{name}.")
        else:
            yield f"{path}{name}", field


@cache
def setting_fields() -> Mapping[str, FieldInfo]:
    """Return dotted name -> field of every setting; a list or mapping is one setting."""
    return dict(_fields_of(Config))


@cache
def environment_names() -> Mapping[str, str]:
    """Return environment variable -> setting: ``search.seconds`` is RARECLASS_SEARCH__SECONDS; and the short names."""
    spelled = {f"RARECLASS_{path.upper().replace('.', '__')}": path for path in setting_fields()}
    return ENVIRONMENT | spelled


def with_environment(raw: dict[str, Any], environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Set what the environment says in ``raw`` and return it: weaker than --set, stronger than the file.

    Values are read as those of --set; an empty one counts as not set. Raises ConfigError for a name with two
    underscores that is no setting's, and where the two names of a setting differ in what they say.
    """
    names = environment_names()
    given: dict[str, str] = {}
    for variable in sorted(environment):
        if variable not in names:
            _refuse_unknown(variable, names)
        elif environment[variable]:
            setting = names[variable]
            other = given.setdefault(setting, variable)
            if environment[other] != environment[variable]:
                raise ConfigError(f"{other} and {variable} say different things of {setting}. Keep one of them")
            _apply(raw, setting, environment[variable], variable)
    return raw


def _refuse_unknown(variable: str, names: Mapping[str, str]) -> None:
    """Raise ConfigError for what was meant as a setting: two underscores stand in no other name of ours."""
    if not variable.startswith("RARECLASS_") or "__" not in variable:
        return
    section = names.get(variable.rpartition("__")[0])
    if section is not None:
        raise ConfigError(
            f"{variable}: {section} is one setting. Set {variable.rpartition('__')[0]} to all of it, as YAML"
        )
    raise ConfigError(
        f"{variable} names no setting.{nearest(variable, list(names))} Its name is RARECLASS_SECTION__NAME; "
        "docs/settings.md lists them"
    )


def with_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set ``a.b=v`` in ``raw`` and return it; values are read as YAML. Raises ConfigError."""
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set '{override}' is not of the form a.b=v, like --set search.seconds=30")
        _apply(raw, key.strip(), text, f"--set '{override}'")
    return raw


def _apply(raw: dict[str, Any], setting: str, text: str, source: str) -> None:
    """Set one setting to what a text means as YAML, or to the text itself where it is none."""
    import yaml

    node: Any = raw
    *sections, last = setting.split(".")
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise ConfigError(
                f"{source}: '{section}' is a value, not a section of settings like '{section}: {{{last}: ...}}'"
            )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    # a path, a column or a time of origin is text, also where YAML would see a number, a date or a comment in it
    written = value is None or text.lstrip()[:1] in ("'", '"')
    field = setting_fields().get(setting)
    is_text = field is not None and field.annotation in (str, str | None)
    node[last] = text.strip() if is_text and not written else value


def parse(raw: Mapping[str, Any]) -> Config:
    """Validate a mapping. Raises ConfigError naming the first wrong setting, the nearest name and what is allowed."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from None


def parse_section(name: str, raw: Mapping[str, Any]) -> Any:
    """Validate one section of a configuration by itself. Raises ConfigError as `parse`."""
    kind: Any = Config.model_fields[name].annotation
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_one_line(error, name)) from None


def _one_line(error: ValidationError, *parent: str) -> str:
    first = error.errors(include_url=False)[0]
    place = [*parent, *map(str, first["loc"])]
    where = ".".join(part for part in place if not part.startswith(("function-", "tuple[")))
    rest = error.error_count() - 1
    more = f" (and {rest} more)" if rest else ""
    if first["type"] == "extra_forbidden":
        section, _, name = where.rpartition(".")
        known = _settings_of(section)
        return (
            f"unknown setting '{where}'.{nearest(name, known)} {section or 'The top level'} knows: "
            f"{', '.join(known)}{more}"
        )
    if first["type"] == "missing":
        return f"setting '{where}' is missing. Set {where} in the configuration or with --set {where}=...{more}"
    message = first["msg"].removeprefix("Value error, ")
    if where == "name" and first["type"] == "string_pattern_mismatch":
        message = _name_rule(str(first["input"]))
    got = "" if not where else f" (it is {masked(json.dumps(first['input'], default=str))[:80]})"
    return f"{f'setting {where!r}: ' if where else ''}{message}{got}{more}"


def name_like(text: str) -> str:
    """Return the nearest name that a model may have; empty where a text has no letter and no digit."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:50].rstrip("-")


def _name_rule(given: str) -> str:
    """Say what a model may be called, and the nearest such name to the given one."""
    near = name_like(given)
    hint = f". Set name to '{near}'" if near else ""
    return f"lower case letters, digits and dashes, at most 50, because the cluster and the registry use it{hint}"


def _settings_of(section: str) -> list[str]:
    model: Any = Config
    for part in filter(None, section.split(".")):
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            return []
        model = field.annotation
    return sorted(getattr(model, "model_fields", {}))


def dump(config: Config) -> dict[str, Any]:
    """Return the configuration as JSON-ready values; ``parse(dump(c)) == c``."""
    return config.model_dump(mode="json")


def public(config: Config) -> dict[str, Any]:
    """Return what ``dump`` returns without its passwords: for logs, registries, versions and reports."""
    found: dict[str, Any] = masked_values(dump(config))
    return found


def schema() -> dict[str, Any]:
    """Return the JSON schema of the configuration; its defaults are written as the parser reads them."""

    class AsWritten(GenerateJsonSchema):
        def encode_default(self, dft: Any) -> Any:
            return format_duration(dft) if isinstance(dft, timedelta) else super().encode_default(dft)

    return Config.model_json_schema(schema_generator=AsWritten)
