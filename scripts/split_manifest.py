"""Splits a folder of images or a manifest into train.jsonl and eval.jsonl, the same way each time.

python scripts/split_manifest.py --manifest photos.jsonl --train_ratio 0.9 --output_dir splits/
python scripts/split_manifest.py --manifest photos/ --output_dir splits/
"""

import json
import os
import random
from pathlib import Path

from wfimagevae.command_line import parse, run_cli
from wfimagevae.files import write_text
from wfimagevae.options import Integer, Options, Share, option


class SplitOptions(Options):
    """options"""

    manifest: str = option(
        ...,
        "JSON lines with a path under image_path, path or target, whose other fields are kept; "
        "or a folder of images",
        "PATH",
    )
    train_ratio: Share = option(0.9, "share of the images that goes into train.jsonl", "P")
    seed: Integer = option(1234, "of the shuffle", "N")
    output_dir: str = option(..., "where to write both", "DIR")


def main(argv: list[str] | None = None) -> None:
    """Writes the two manifests; each image is on one side only, with all its lines."""
    options = parse(SplitOptions, argv, __doc__)
    from wfimagevae.dataset.images.index import MANIFEST_KEYS, index_images, manifest_records

    # The lines of a manifest, or one for each image of a folder, with absolute paths.
    root = os.path.abspath(os.path.expanduser(options.manifest))
    if os.path.isdir(root):
        index = index_images(root)
        lines = ({"image_path": index.path(i)} for i in range(len(index)))
    else:
        lines = (
            {"image_path": os.path.join(os.path.dirname(root), path)}
            | {key: value for key, value in record.items() if key not in MANIFEST_KEYS}
            for _, path, record in manifest_records(root)
        )
    images: dict[str, list[dict]] = {}
    for record in lines:
        images.setdefault(os.path.realpath(record["image_path"]), []).append(record)
    names = sorted(images)
    random.Random(options.seed).shuffle(names)
    cut = round(len(names) * options.train_ratio)
    if not 0 < cut < len(names):
        raise ValueError(
            f"{options.manifest}: {len(names)} images split by {options.train_ratio} leave one "
            "side empty; change --train_ratio or add images"
        )
    for side, part in (("train", names[:cut]), ("eval", names[cut:])):
        target = Path(options.output_dir) / f"{side}.jsonl"
        records = (record for name in sorted(part) for record in images[name])
        write_text(target, "".join(json.dumps(record) + "\n" for record in records))
        print(f"{len(part)} images in {target}")


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
