from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def register(
    config: str,
    ingested: dsl.Input[dsl.Artifact],
    plan: dsl.Input[dsl.Artifact],
    train: dsl.Input[dsl.Dataset],
    validation: dsl.Input[dsl.Dataset],
    selection: dsl.Input[dsl.Artifact],
    tuning: dsl.Input[dsl.Artifact],
    judgement: dsl.Input[dsl.Artifact],
    details: dsl.Output[dsl.Artifact],
) -> str:
    """Refit on every labelled row, log the run, register what the gate admits; returns the version or ''."""
    from rareclass.services.kubeflow import steps

    return steps.register(
        config,
        ingested.path,
        plan.path,
        train.path,
        validation.path,
        selection.path,
        tuning.path,
        judgement.path,
        details.path,
    )
