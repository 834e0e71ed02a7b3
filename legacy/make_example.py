"""Makes something to try the other scripts on: two clips and a small model of random weights.

A window pans over photographs that come with scikit-image; nothing is downloaded.

python legacy/make_example.py --output_dir results/legacy
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from wfimagevae.command_line import parse, run_cli
from wfimagevae.options import Count, Options, option

PHOTOGRAPHS = ("chelsea.png", "coffee.png")
SIZE, RATE = (144, 192), 24


class ExampleOptions(Options):
    """example"""

    output_dir: str = option(..., "where clips/ and model/ go", "DIR")
    num_frames: Count = option(33, "frames of a clip", "N")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    options = parse(ExampleOptions, argv, __doc__)

    import numpy as np
    import skimage
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    from clips import write_clip
    from wfimagevae.files import share
    from wfvae_video import WFVAE
    from wfvae_video.loading import WEIGHTS

    folder, (height, width) = Path(options.output_dir), SIZE
    for name in PHOTOGRAPHS:
        with Image.open(Path(skimage.__file__).parent / "data" / name) as image:
            photograph = torch.from_numpy(np.array(image.convert("RGB")))
        # From one corner to the other.
        bottom, right = photograph.shape[0] - height, photograph.shape[1] - width
        steps = torch.linspace(0, 1, options.num_frames).tolist()
        corners = [(round(bottom * step), round(right * step)) for step in steps]
        frames = [photograph[y : y + height, x : x + width] for y, x in corners]
        write_clip(folder / "clips" / f"{Path(name).stem}.mp4", torch.stack(frames), RATE)
    torch.manual_seed(0)
    statistics = {"scale": (0.18215,) * 8, "shift": (0.0,) * 8}
    layers = {"norm_type": "layernorm", "t_interpolation": "trilinear"}
    model = WFVAE(base_channels=16, **layers, **statistics)
    target = folder / "model"
    target.mkdir(parents=True, exist_ok=True)
    config = {"_class_name": "WFVAEModel", **asdict(model.config)}
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(model.state_dict(), target / WEIGHTS)
    share(target / WEIGHTS)
    print(f"{folder}: clips/ of {options.num_frames} frames, model/ of random weights")


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
