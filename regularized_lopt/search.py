"""Launcher: python -m regularized_lopt.search --config_file=... --out_dir=DIR"""

import pathlib

from absl import flags

from regularized_lopt import launch
from regularized_lopt.measure.trial import Trial
from regularized_lopt.report import plot_style
from regularized_lopt.report import trials as report
from regularized_lopt.report.terminal import print_table
from regularized_lopt.study import search as search_lib


def main() -> None:
    """Runs what is missing; writes results after each variant."""
    given = flags.FLAGS
    out_dir = pathlib.Path(given.out_dir)
    what = search_lib.Search()
    search_lib.check(what, out_dir)
    launch.check_read(launch.of_meta_training("Search.bindings"))
    trials: list[Trial] = []
    for tried in search_lib.search(what, out_dir):
        trials += tried
        report.write(trials, out_dir)
        (out_dir / "trials.png").write_bytes(plot_style.to_png(report.plot(trials)))
    rows = [report.row(trial) for trial in trials]
    print_table("Trials", list(rows[0]), [list(row.values()) for row in rows])


def define_flags() -> None:
    """Those of this launcher."""
    flags.DEFINE_string("out_dir", "runs/search", "Where optimizers, runs and results go.")


if __name__ == "__main__":
    launch.run(main, define_flags)
