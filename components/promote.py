from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def promote(
    config: str, details: dsl.Input[dsl.Artifact], summary: dsl.Output[dsl.Artifact], report: dsl.Output[dsl.HTML]
) -> str:
    """Give the registered version its role and leave the summary and the report; returns the role or ''."""
    from rareclass.services.kubeflow import steps

    return steps.promote(config, details.path, summary.path, report.path)
