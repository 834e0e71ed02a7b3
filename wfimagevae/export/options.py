"""Options of what goes into the world with an export. No torch here."""

from wfimagevae.options import Options, option


class CardOptions(Options):
    """model card"""

    name: str | None = option(None, "title of the model card; not given: the folder's name")
    license: str = option("apache-2.0", "of the weights, as the hub calls it, cc-by-4.0 say", "ID")
    training_data: str | None = option(
        None,
        "what the model was trained on, in words; not given: the data set, if this repository "
        "draws or fetches it; paths are never told",
        "TEXT",
    )
    metrics_json: str | None = option(
        None,
        "what eval_image.py wrote, or of a flow eval_generation.py, to be quoted in the model card",
        "FILE",
    )
    picture: str | None = option(
        None,
        "picture to show; not given: of a flow the last samples of its training, of an "
        "autoencoder a photograph of NASA's and its reconstruction",
        "FILE",
    )
    push_to_hub: str | None = option(
        None,
        "also upload the export to this repository of the Hugging Face hub, made if there is none",
        "USER/NAME",
    )
