"""A page in the browser on which anyone tries models: generates, reconstructs, compares.

python scripts/gradio_demo.py --from_pretrained results/flow --autoencoder WFVAE2Image:results/vae
python scripts/gradio_demo.py --from_pretrained results/flow results/mean_flow --device cuda
make demo    on the models of the quick start
"""

import copy
import logging
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from wfimagevae.command_line import parse, printable, run_cli
from wfimagevae.generate.options import (
    DISCRETE_SAMPLERS,
    SAMPLERS,
    FlowComputeOptions,
    GeneratorOptions,
    SamplingOptions,
    UpsamplerOptions,
)
from wfimagevae.options import Count, option

WHAT = ("prompt", "negative_prompt", "label", "count", "seed", "height", "width")
HOW = ("model", "sampler", "steps", "guidance_scale")
MAX_SIDE, ERROR_GAIN = 1024, 5.0
EXAMPLES = [
    "a red circle",
    "an oil painting of a corgi",
    "a photograph of a lighthouse at dusk",
    "a bowl of oranges on a wooden table",
]
# Samples may be as small as icons.
STYLE = ".pixels img {image-rendering: pixelated} .pixels .grid-wrap {min-height: 0}"
LOOK = {"format": "png", "object_fit": "contain", "height": "auto", "elem_classes": "pixels"}
Models = Mapping[str, Any]


class DemoOptions(GeneratorOptions, UpsamplerOptions, FlowComputeOptions):
    """page: models are given here alone"""

    from_pretrained: list[str] | None = option(
        None, "generators, as those of generate.py", "PATH", repeat="several"
    )
    autoencoder: list[str] | None = option(
        None, "WFVAE2Image:PATH or diffusers:PATH_OR_NAME", "KIND:PATH", repeat="several"
    )
    host: str = option("127.0.0.1", "address to listen at; 0.0.0.0: all of this machine", "HOST")
    port: Count = option(7860, "one that is taken is an error", "N")
    share: bool = option(False, "ask Gradio's servers for a public link, for whoever has it")
    queue_size: Count = option(16, "clicks that may wait for their turn; one more is refused", "N")


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    options = parse(DemoOptions, argv, __doc__)
    if not options.from_pretrained and not options.autoencoder:
        raise ValueError("give --from_pretrained or --autoencoder: the page itself opens no path")
    # Uploads and pictures go after an hour, and when the page ends, by SIGTERM as by Ctrl-C.
    with tempfile.TemporaryDirectory(prefix="gradio-demo-") as folder:
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        serve(options)


def serve(options: DemoOptions) -> None:
    """Loads all models, of which a ValueError says what is wrong; shows the page till the end."""
    try:
        import gradio as gr
    except ModuleNotFoundError:
        raise ValueError("the page needs a package: pip install gradio") from None

    from wfimagevae.engine.device import use_device
    from wfimagevae.generate.autoencoders import load_autoencoder
    from wfimagevae.generate.generator_files import load_generator

    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio asks itself whether it is there
    device, generators = use_device(options.device), {}
    for path in options.from_pretrained or ():
        source = options.changed(from_pretrained=path)
        generators[path] = load_generator(source, device, options.mixed_precision)
        if generators[path].facts["space"] == "point":
            raise ValueError(f"{path} makes points: see them with scripts/visualize_flow.py")
        if needs := generators[path].model.needs:
            raise ValueError(
                f"{path} needs {needs[0]}, which the page cannot give: see generate.py"
            )
        generators[path].resolve(SamplingOptions())
    autoencoders = {spec: load_autoencoder(spec, device) for spec in options.autoencoder or ()}

    with gr.Blocks(title="wfimagevae", delete_cache=(600, 3600)) as page:
        for title, models, fill, flag in (
            ("Generate", generators, partial(samples_tab, "Images"), "from_pretrained"),
            ("Reconstruct", autoencoders, reconstruct_tab, "autoencoder"),
            ("Compare", generators, partial(samples_tab, "Left", "Right"), "from_pretrained"),
        ):
            with gr.Tab(title):
                if models:
                    fill(gr=gr, models=models)
                else:
                    gr.Markdown(f"For this, start the page with `--{flag}`.")
    # Without the way past the queue that Gradio has.
    page.queue(max_size=options.queue_size, api_open=False)
    where = {"server_name": options.host, "server_port": options.port, "share": options.share}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    page.launch(**where, css=STYLE, ssr_mode=False, max_file_size="64mb", footer_links=[])


def draw(generators: Models, values: Mapping[str, Any], progress: Callable) -> list[list]:
    """Draws what the page's controls say; what the model has no use for is left aside.

    Gives pictures with captions, and files to download: what generate.py writes, in an archive and
    one by one. Values that do not fit the model are a ValueError.
    """
    from wfimagevae.engine.distributed import World
    from wfimagevae.files import read_json
    from wfimagevae.generate.generated_files import Sheet, class_stems, write_folder
    from wfimagevae.generate.subjects import records_folder, slug, subjects_in_turn

    generator = generators[values["model"]]
    takes_text, labels = generator.model.takes_text, [values["label"]] if values["label"] else None
    sampling = {name: values[name] or None for name in ("sampler", "steps")}
    sampling |= {name: values[name] for name in ("guidance_scale", "seed")}
    sampling |= {"negative_prompt": values["negative_prompt"] if takes_text else ""}
    options = generator.resolve(SamplingOptions(**sampling))
    size = generator.sample_size(values["height"] or None, values["width"] or None)
    classes = generator.class_numbers(labels) if labels or not takes_text else []
    prompts = [values["prompt"] or ""] if takes_text else []
    subjects = subjects_in_turn(round(values["count"]), classes, prompts)
    stems = [slug(prompts[0])] * len(subjects) if prompts else class_stems(generator, subjects)

    # As generate.py does, but every step is told.
    tell = lambda step, num_steps, x: progress((step, num_steps), unit="steps")  # noqa: E731
    watched = copy.copy(generator)
    watched.draw = partial(generator.draw, progress=tell)
    root = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"]))
    folder, sheet = root / "all" / "samples", Sheet(subjects, stems, [options], size)
    write_folder(folder, watched, sheet, len(subjects), World(0, 1, generator.device))
    archive = shutil.make_archive(str(root / "samples"), "zip", root / "all")
    names = read_json(records_folder(folder) / "samples.json")["files"]
    told = [f"seed {options.seed}, {s.index}: {generator.title(s)}" for s in subjects]
    gallery = [(str(folder / name), text) for name, text in zip(names, told, strict=True)]
    return [gallery, [archive, *sorted(map(str, (root / "all").rglob("*.*")))]]


def reconstruct(autoencoder: Any, path: str | None) -> tuple[Any, Any, Any, str, list]:
    """Sends the photograph of a file, shrunk if it is large, through an autoencoder.

    Gives original, reconstruction and error as Pillow's images, the PSNR of 8-bit pixels as text,
    and each latent channel as a picture, from its lowest value to its highest, with a caption. A
    file that was not uploaded, or is no image, is a ValueError.
    """
    import torch
    from PIL import Image

    from wfimagevae.dataset.images.decode import UnreadableImage, image_size, open_rgb
    from wfimagevae.dataset.images.transforms import center_crop
    from wfimagevae.dataset.protocol import to_signed_unit
    from wfimagevae.eval.psnr import psnr
    from wfimagevae.model.vae.tiling import pad_to_multiple
    from wfimagevae.pictures.grid import amplified_error
    from wfimagevae.pictures.pixels import from_uint8, to_uint8, to_unit

    # Gradio lets through any path that is not marked as a file's.
    uploads = Path(os.environ["GRADIO_TEMP_DIR"]).resolve()
    if not path or not Path(path).resolve().is_relative_to(uploads):
        raise ValueError("drop a photograph first")
    try:
        sides = image_size(path)
        short_side = max(min(sides) * MAX_SIDE // max(sides), 1) if max(sides) > MAX_SIDE else None
        image = open_rgb(path, short_side=short_side)
    except UnreadableImage as error:
        raise ValueError(f"this photograph cannot be used: {error}") from None
    real = to_signed_unit(torch.from_numpy(center_crop(image, None)))[None]  # (1, 3, H, W)
    pixels = to_uint8(autoencoder.reconstruct(real)).cpu()
    decibels = psnr(to_unit(real), to_unit(from_uint8(pixels))).item()
    result = Image.fromarray(pixels[0].permute(1, 2, 0).contiguous().numpy())
    with torch.inference_mode():
        padded, _ = pad_to_multiple(real.to(autoencoder.device), autoencoder.multiple)
        latents = autoencoder.encode(padded)[0].float().cpu()  # (C, h, w)
    channels = []
    for number, z in enumerate(latents):
        low, high = z.aminmax()
        gray = to_uint8((z - low) / (high - low).clamp(min=1e-12) * 2 - 1)
        channels.append((Image.fromarray(gray.numpy()), f"{number}: {low:.2f} to {high:.2f}"))
    told = f"**PSNR {decibels:.2f} dB** at {image.width} x {image.height} px"
    return image, result, amplified_error(image, result, ERROR_GAIN), told, channels


def samples_tab(*sides: str, gr: Any, models: Models) -> None:
    """What is drawn, below how it is drawn at each side, and below the pictures of each."""
    inputs, outputs = controls(gr, models, WHAT), []
    if any(generator.model.takes_text for generator in models.values()):
        gr.Examples(EXAMPLES, inputs["prompt"], label="Prompts to begin with")
    with gr.Row():
        for number, side in enumerate(sides):
            with gr.Column():
                own = controls(gr, models, HOW, number)
            inputs |= {f"{side} {key}": control for key, control in own.items()}
    button = gr.Button("Draw", variant="primary")
    with gr.Row():
        for side in sides:
            with gr.Column():
                files = {"file_count": "multiple", "interactive": False, "height": 200}
                outputs.append(gr.Gallery(label=side, columns=4, **LOOK))
                outputs.append(gr.File(label="PNG and JSON files", **files))

    def run(values: Mapping[str, Any], progress: Callable) -> list:
        chosen = [values | {key: values[f"{side} {key}"] for key in HOW} for side in sides]
        return [shown for own in chosen for shown in draw(models, own, progress)]

    connect(gr, [button.click, inputs["prompt"].submit], run, inputs, outputs, "draw")


def reconstruct_tab(gr: Any, models: Models) -> None:
    """A place to drop a photograph, and what an autoencoder makes of it."""
    names, titles = [*models], ("Original", "Reconstruction", f"Error x {ERROR_GAIN:g}")
    with gr.Row():
        with gr.Column():
            model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1)
            photograph = gr.Image(label="Photograph", sources=["upload", "clipboard"])
            # The file as it came: we decode it, within our limits.
            photograph.preprocess = lambda payload: payload and payload.path
            button, told = gr.Button("Reconstruct", variant="primary"), gr.Markdown()
        look = {"format": "png", "buttons": ["download", "fullscreen"]}  # none that sends it away
        pictures = [gr.Image(label=title, **look) for title in titles]
    channels = gr.Gallery(label="Latent channels", columns=8, **LOOK)

    def run(values: Mapping[str, Any], progress: Callable) -> tuple:
        return reconstruct(models[values["model"]], values["photograph"])

    inputs, outputs = {"model": model, "photograph": photograph}, [*pictures, told, channels]
    connect(gr, [button.click], run, inputs, outputs, "reconstruct")


def controls(gr: Any, models: Models, keys: Sequence[str], number: int = 0) -> dict[str, Any]:
    """Some controls, which offer what any of the generators has; that of ``number`` is chosen."""
    names, those, own = [*models], [*models.values()], "the model's own"

    def can(generator: Any, **sampling: Any) -> bool:
        try:
            return bool(generator.resolve(SamplingOptions(**sampling)))
        except ValueError:
            return False

    takes_text = any(generator.model.takes_text for generator in those)
    words = {"value": "", "visible": takes_text, "min_width": 400, "max_length": 2000}
    classes = dict.fromkeys(g.class_name(n) for g in those for n in g.class_numbers(None))
    not_given = "none" if takes_text else "all in turn"
    samplers = [s for s in SAMPLERS + DISCRETE_SAMPLERS if any(can(g, sampler=s) for g in those)]
    sides = [max(g.pixel_size(None)) for g in those if g.model.size_multiple]
    whole = {"value": 0, "precision": 0}
    given = whole | {"minimum": 0, "info": f"0: {own}"}
    size = given | {"visible": bool(sides), "maximum": 4 * max(sides, default=1)}
    kinds = {
        "model": (gr.Dropdown, "Model", {"choices": names, "visible": len(names) > 1}),
        "prompt": (gr.Textbox, "Prompt", words),
        "negative_prompt": (gr.Textbox, "Negative prompt", words),
        "label": (gr.Dropdown, "Class", {"choices": [(not_given, ""), *classes]}),
        "count": (gr.Slider, "Images", {"value": 4, "minimum": 1, "maximum": 16, "step": 1}),
        "seed": (gr.Number, "Seed", whole),
        "height": (gr.Number, "Height, px", size),
        "width": (gr.Number, "Width, px", size),
        "sampler": (gr.Dropdown, "Sampler", {"choices": [(own, ""), *samplers]}),
        "steps": (gr.Number, "Steps", given | {"maximum": 1000}),
        "guidance_scale": (gr.Number, "Guidance", {"value": 1, "minimum": 0}),
    }
    kinds["model"][2]["value"] = names[min(number, len(names) - 1)]
    kinds["label"][2]["visible"] = bool(classes)
    kinds["guidance_scale"][2]["visible"] = any(can(g, guidance_scale=2.0) for g in those)
    with gr.Row():
        return {key: kinds[key][0](label=kinds[key][1], **kinds[key][2]) for key in keys}


def connect(
    gr: Any, events: list, run: Callable, inputs: Mapping[str, Any], outputs: list, name: str
) -> None:
    """Lets events call ``run(values, progress)``; errors become messages."""
    import torch

    def told(values: Mapping[Any, Any], progress: Any = gr.Progress()) -> Any:  # noqa: B008
        try:
            return run({name: values[part] for name, part in inputs.items()}, progress)
        except torch.OutOfMemoryError:
            text = "out of memory: ask for fewer or smaller images"
        except (ValueError, OSError) as error:
            # A page has no flags.
            text = re.sub(r"--(\w+)", lambda flag: flag[1].replace("_", " "), str(error))
        raise gr.Error(printable(text), print_exception=False)

    # One at a time, of all tabs and visitors.
    how = {"concurrency_id": "models", "concurrency_limit": 1, "api_name": name}
    gr.on(events, told, {*inputs.values()}, outputs, **how)


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
