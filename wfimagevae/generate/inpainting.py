"""An image and a mask as parts of what a network that fills in is told."""

import torch

from wfimagevae.dataset.images.decode import UnreadableImage, open_rgb
from wfimagevae.dataset.images.transforms import center_crop
from wfimagevae.dataset.protocol import to_signed_unit
from wfimagevae.generate.generator import FlowGenerator
from wfimagevae.generate.two_stages import TwoStageGenerator


def fill_in(generator: FlowGenerator, image: str, mask: str) -> None:
    """Lets a generator draw what is missing of an image, the middle square of it.

    The mask, an image of the same size, is white where something is to be drawn. A model that does
    not fill in, unreadable files, or a mask of another size are a ValueError.
    """
    sizes = []
    for flag, path in (("inpaint_image", image), ("inpaint_mask", mask)):
        try:
            sizes.append(open_rgb(path).size)
        except (OSError, UnreadableImage) as error:
            raise ValueError(f"--{flag} {path}: {error}") from error
    if sizes[0] != sizes[1]:
        (w, h), (mask_w, mask_h) = sizes
        raise ValueError(
            f"--inpaint_mask {mask} has {mask_w} x {mask_h} pixels and --inpaint_image {image} "
            f"{w} x {h}: make them of one size"
        )
    stages = [generator]
    if isinstance(generator, TwoStageGenerator):
        stages.append(generator.upsampler)
    for stage in stages:
        if "inpaint_mask" not in stage.model.needs:
            path = stage.source.get("path")
            raise ValueError(f"{path} does not fill in images: give GLIDE's inpainting models")
        side = stage.model.sample_shape[-1]
        opened = (open_rgb(path, short_side=side) for path in (image, mask))
        pixels = [to_signed_unit(torch.from_numpy(center_crop(x, side)))[None] for x in opened]
        known = (pixels[1].mean(1, keepdim=True) < 0).float()
        stage.given = {"inpaint_image": pixels[0], "inpaint_mask": known}
        stage.given = {name: part.to(stage.device) for name, part in stage.given.items()}
    generator.source |= {"inpaint_image": image, "inpaint_mask": mask}
