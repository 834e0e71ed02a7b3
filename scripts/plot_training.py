"""Draws a run's loss curves and writes one self-contained HTML report about it.

python scripts/plot_training.py results/wfvae2-image-lr1.00e-05-bs2-ga8-rs1024
"""

from pathlib import Path
from pkgutil import resolve_name

from wfimagevae.command_line import parse, run_cli
from wfimagevae.options import Count, Options, OutputFile, option
from wfimagevae.task import TASKS


class ReportOptions(Options):
    """report: of what, and where"""

    run_dir: str = option(
        ..., "folder of a training run (options.json, *.csv, *.jsonl)", positional=True
    )
    output: OutputFile | None = option(
        None, "the HTML file; RUN_DIR/report.html if not given", "FILE"
    )
    max_pictures: Count = option(8, "validation pictures of each kind to put into the report", "N")


def main(argv: list[str] | None = None) -> None:
    """Writes the report and prints where it is."""
    options = parse(ReportOptions, argv, __doc__)

    from wfimagevae.engine.report.html import write_report

    output = Path(options.output or Path(options.run_dir) / "report.html")
    defaults = {t: resolve_name(n).model_construct().values() for t, n in TASKS.items()}
    print(write_report(options.run_dir, output, options.max_pictures, defaults))


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
