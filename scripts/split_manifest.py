"""Splits a folder of images or a manifest into train.jsonl and eval.jsonl, the same way each time.

python scripts/split_manifest.py --manifest photos.jsonl --train_ratio 0.9 --output_dir splits/
python scripts/split_manifest.py --manifest photos/ --output_dir splits/
"""

import json
import os
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from wfimagevae.engine.args import Parser, probability
from wfimagevae.engine.cli import run_cli


def build_parser() -> Parser:
    """Flags of the split."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--manifest",
        required=True,
        metavar="PATH",
        help="JSON lines with a path under image_path, path or target, whose other fields are "
        "kept; or a folder of images",
    )
    parser.add_argument(
        "--train_ratio",
        type=probability,
        default=0.9,
        metavar="P",
        help="share of the images that goes into train.jsonl",
    )
    parser.add_argument("--seed", type=int, default=1234, metavar="N", help="of the shuffle")
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="where to write both")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the two manifests; each image is on one side only, with all its lines."""
    args = build_parser().parse_args(argv)
    from wfimagevae.files import write_atomically

    images: dict[str, list[dict]] = {}
    for record in read_records(args.manifest):
        images.setdefault(os.path.realpath(record["image_path"]), []).append(record)
    names = sorted(images)
    random.Random(args.seed).shuffle(names)
    cut = round(len(names) * args.train_ratio)
    if not 0 < cut < len(names):
        raise ValueError(
            f"{args.manifest}: {len(names)} images split by {args.train_ratio} leave one side "
            "empty; change --train_ratio or add images"
        )
    for side, part in (("train", names[:cut]), ("eval", names[cut:])):
        target = Path(args.output_dir) / f"{side}.jsonl"
        records = (record for name in sorted(part) for record in images[name])
        text = "".join(json.dumps(record) + "\n" for record in records)
        write_atomically(target, lambda file, text=text: file.write(text.encode()))
        print(f"{len(part)} images in {target}")


def read_records(source: str) -> Iterator[dict]:
    """The lines of a manifest, or one for each image of a folder, with absolute paths."""
    from wfimagevae.dataset.images.index import MANIFEST_KEYS, index_images, manifest_records

    root = os.path.abspath(os.path.expanduser(source))
    if os.path.isdir(root):
        index = index_images(root)
        yield from ({"image_path": index.path(i)} for i in range(len(index)))
        return
    for _, path, record in manifest_records(root):
        others = {key: value for key, value in record.items() if key not in MANIFEST_KEYS}
        yield {"image_path": os.path.join(os.path.dirname(root), path)} | others


if __name__ == "__main__":
    sys.exit(run_cli(main))
