"""Records a Meta-World task: episodes of its scripted expert (extra: sim, data; Debian's libosmesa6).

    python -m launch.record_metaworld --out=.cache/metaworld [--task=button-press-topdown-v3 --episodes=100]
    python -m launch.record_metaworld --out=.cache/metaworld_green --look=green --seed=1  # in other colours
    python -m launch.record_metaworld --out=.cache/metaworld_repetitive --placements=5 --seed=2  # stands in 5 places

Writes OUT/metaworld_rlds (TFDS, array_record); a whole recording of the same recipe is reused. Pictures are rendered
without a display: MUJOCO_GL=egl takes a GPU or Mesa's EGL instead of OSMesa.
"""

import sys
from pathlib import Path

from absl import flags

from launch.record_pusht import Progress
from launch.setup import flags as launch_flags


def main(_) -> None:
    """The command."""
    from data_pipelines.simulators.metaworld import dataset

    args = flags.FLAGS
    try:
        made = dataset.write(Path(args.out), task=args.task, episodes=args.episodes, seed=args.seed,
                             image_size=args.image_size, look=args.look, placements=args.placements,
                             workers=args.workers, progress=Progress())
    except ModuleNotFoundError as error:
        sys.exit(f"record_metaworld: the simulator needs {error.name!r}: pip install -e '.[sim,data]'")
    print(f"{'recorded' if made else 'reusing'} {args.episodes} episodes in {args.out}/{dataset.EPISODES_DIR}")


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "directory to write")
    flags.DEFINE_string("task", "button-press-topdown-v3", "name in data_pipelines/simulators/metaworld/simulator.py")
    flags.DEFINE_integer("episodes", 100, "episodes", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "of everything")
    flags.DEFINE_integer("image_size", 64, "pixels, height and width", lower_bound=16)
    flags.DEFINE_string("look", "plain", "colours: name in data_pipelines/simulators/metaworld/simulator.py")
    flags.DEFINE_integer("placements", 0, "ways things stand, in turn; 0: each episode has its own", lower_bound=0)
    flags.DEFINE_integer("workers", 2, "simulating processes", lower_bound=1)
    flags.mark_flags_as_required(["out"])
    launch_flags.run(main)
