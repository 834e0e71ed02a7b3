"""Splits a JSON-lines manifest into train.jsonl and eval.jsonl, the same way each time.

python scripts/split_manifest.py --manifest photos.jsonl --train_ratio 0.9 --output_dir splits/
"""

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from wfimagevae.engine.args import Parser, probability
from wfimagevae.engine.cli import run_cli


def build_parser() -> Parser:
    """Flags of the split."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--manifest",
        required=True,
        metavar="FILE",
        help="JSON lines with a path under image_path, path or target",
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
    """Writes the two manifests; each image path is on one side only."""
    args = build_parser().parse_args(argv)
    from wfimagevae.dataset.sources import read_manifest
    from wfimagevae.engine.checkpoint import write_atomically

    paths = sorted({str(Path(path).resolve()) for path in read_manifest(args.manifest)})
    random.Random(args.seed).shuffle(paths)
    cut = round(len(paths) * args.train_ratio)
    if not 0 < cut < len(paths):
        raise ValueError(
            f"{args.manifest}: {len(paths)} images split by {args.train_ratio} leave one side "
            "empty; change --train_ratio or add images"
        )
    for name, part in (("train", paths[:cut]), ("eval", paths[cut:])):
        target = Path(args.output_dir) / f"{name}.jsonl"
        text = "".join(json.dumps({"image_path": path}) + "\n" for path in sorted(part))
        write_atomically(target, lambda file, text=text: file.write(text.encode()))
        print(f"{len(part)} images in {target}")


if __name__ == "__main__":
    sys.exit(run_cli(main))
