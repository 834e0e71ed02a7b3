"""Draws a run's loss curves and writes one self-contained HTML report about it.

python scripts/plot_training.py results/wfvae2-image-lr1.00e-05-bs2-ga8-rs1024
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from wfimagevae.engine.args import Parser, output_file, positive_int
from wfimagevae.engine.cli import run_cli


def build_parser() -> Parser:
    """Flags of this command."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", help="folder of a training run (options.json, *.csv, *.jsonl)")
    parser.add_argument(
        "--output",
        type=output_file,
        metavar="FILE",
        help="the HTML file; RUN_DIR/report.html if not given",
    )
    parser.add_argument(
        "--max_pictures",
        type=positive_int,
        default=8,
        metavar="N",
        help="validation pictures of each kind to put into the report",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the report and prints where it is."""
    args = build_parser().parse_args(argv)

    from wfimagevae.engine.report.html import write_report

    output = Path(args.output or Path(args.run_dir) / "report.html")
    if args.output:
        output.parent.mkdir(parents=True, exist_ok=True)
    print(write_report(args.run_dir, output, args.max_pictures))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
