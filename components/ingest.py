from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def ingest(
    config: str,
    repair: str,
    data_version: str,
    ingested: dsl.Output[dsl.Artifact],
    train: dsl.Output[dsl.Dataset],
    validation: dsl.Output[dsl.Dataset],
    test: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
):
    """Read the source once, check it, and split it into three Parquet files; data_version is the key of the cache."""
    from rareclass.services.kubeflow import steps

    found = steps.ingest(config, ingested.path, train.path, validation.path, test.path, repair=repair)
    for name, value in found.items():
        metrics.log_metric(name, value)
