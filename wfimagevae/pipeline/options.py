"""The flags of pipelines. No torch here."""

from wfimagevae.options import Options, option


class PipelineOptions(Options):
    """pipeline: several trainings from one YAML file"""

    pipeline: str | None = option(
        None,
        "train the steps of this file, or go on where they stopped; all else stands in it, but "
        "flags given with it win over it in all steps that have them",
        "FILE",
        basic=True,
    )
    validate_pipeline: bool = option(False, "check the file, print the plan, and end", basic=True)
    print_schema: bool = option(
        False, "print the JSON schema of such files, by which editors complete them, and end"
    )
