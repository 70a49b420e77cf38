"""The training pipeline on Kubeflow: the steps of rareclass.services in the order the data walks."""

from components.detect_imbalance import detect_imbalance
from components.evaluate import evaluate
from components.ingest import ingest
from components.promote import promote
from components.register import register
from components.resample import resample
from components.select import select
from components.train import train
from components.tune_threshold import tune_threshold
from kfp import dsl


def uncached(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Steps that act on the registry, or read what may have changed, always run."""
    return task.set_caching_options(False)


def sturdy(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Retry what a lost node or a full registry may have broken; a step is safe to run twice."""
    return task.set_retry(num_retries=2, backoff_duration="10s", backoff_factor=2.0)


@dsl.pipeline(
    name="rareclass-training", description="Labelled history in; a calibrated, gated, registered rare-class model out"
)
def training(config: str, data_version: str = "", repair: str = "") -> str:
    """Train, judge, register, promote.

    config : the configuration as JSON
    data_version : what identifies the content of the source; with it `rareclass submit` lets reading be cached
    repair : empty, or JSON with number, moment and reason of the repair that this run is
    """
    read = sturdy(uncached(ingest(config=config, repair=repair, data_version=data_version)))
    parts = {"train": read.outputs["train"], "validation": read.outputs["validation"]}
    plan = sturdy(detect_imbalance(config=config, ingested=read.outputs["ingested"], **parts))
    with dsl.ParallelFor(items=plan.outputs["Output"], parallelism=2) as group:
        rows = sturdy(resample(config=config, group=group, plan=plan.outputs["plan"], **parts))
        fitted = sturdy(
            train(config=config, group=group, plan=plan.outputs["plan"], resampled=rows.outputs["resampled"], **parts)
        )
    chosen = sturdy(
        select(config=config, plan=plan.outputs["plan"], trained=dsl.Collected(fitted.outputs["trained"]), **parts)
    )
    tuned = sturdy(tune_threshold(config=config, selection=chosen.outputs["selection"], **parts))
    judged = sturdy(
        uncached(
            evaluate(
                config=config,
                ingested=read.outputs["ingested"],
                test=read.outputs["test"],
                selection=chosen.outputs["selection"],
                tuning=tuned.outputs["tuning"],
                **parts,
            )
        )
    )
    registered = sturdy(
        uncached(
            register(
                config=config,
                ingested=read.outputs["ingested"],
                plan=plan.outputs["plan"],
                selection=chosen.outputs["selection"],
                tuning=tuned.outputs["tuning"],
                judgement=judged.outputs["judgement"],
                **parts,
            )
        )
    )
    done = sturdy(uncached(promote(config=config, details=registered.outputs["details"])))
    return done.outputs["Output"]
