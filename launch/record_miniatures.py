"""Records miniatures of the public sets that recipes read, for their `:debug` arms (extra: data).

    python -m launch.record_miniatures [--out=.cache/miniatures]
    python -m launch.train --config=configs/recipes/droid_14b.py:debug --workdir=DIR

A dozen seconds, two megabytes; what is there is reused.
"""

from pathlib import Path

from absl import flags

from configs.recipes import MINIATURES
from launch.setup import flags as launch_flags


def main(_) -> None:
    from data_pipelines.simulators.miniatures import writers

    made = writers.write(Path(flags.FLAGS.out))
    print(f"{'recorded' if made else 'reusing'} the miniatures in {flags.FLAGS.out}")


if __name__ == "__main__":
    flags.DEFINE_string("out", MINIATURES, "directory to write")
    launch_flags.run(main)
