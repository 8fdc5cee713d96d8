"""Records a task at a table: episodes of its scripted expert (extra: sim, data; Debian's libosmesa6).

    python -m launch.record_tabletop --out=.cache/metaworld [--task=button-press-topdown-v3 --episodes=100]
    python -m launch.record_tabletop --out=.cache/metaworld_green --look=green --seed=1  # in other colours
    python -m launch.record_tabletop --out=.cache/metaworld_repetitive --placements=5 --seed=2  # stands in 5 places
    python -m launch.record_tabletop --out=.cache/tabletop/push-v3 --task=push-v3 --parts=labelled,green  # for a study

Writes OUT/metaworld_rlds or OUT/ogbench_rlds (TFDS, array_record); a whole recording of the same recipe is reused. With
--parts it writes OUT/PART/... of each, as tasks.py says what they are, and other flags of a recording are not asked.
Pictures are rendered without a display: MUJOCO_GL=egl takes a GPU or Mesa's EGL instead of OSMesa.
"""

import sys
from pathlib import Path

from absl import flags

from data_pipelines.simulators.tabletop.tasks import PARTS
from launch.record_pusht import Progress
from launch.setup import flags as launch_flags


def main(_) -> None:
    from data_pipelines.simulators.tabletop import dataset

    args = flags.FLAGS
    one = {"episodes": args.episodes, "seed": args.seed, "look": args.look, "placements": args.placements,
           "noise": args.noise}
    if unknown := set(args.parts) - set(PARTS):
        sys.exit(f"record_tabletop: --parts={','.join(unknown)}: there are {', '.join(PARTS)}")
    recordings = {f"{args.out}/{part}": {"seed": 0} | PARTS[part] for part in args.parts} or {args.out: one}
    for out, recording in recordings.items():
        try:
            attempts = dataset.write(Path(out), task=args.task, image_size=args.image_size, workers=args.workers,
                                     progress=Progress(), **recording)
        except ModuleNotFoundError as error:
            sys.exit(f"record_tabletop: the simulator needs {error.name!r}: pip install -e '.[sim,data]'")
        print(f"{'recorded' if attempts else 'reusing'} {recording['episodes']} episodes in {out}/"
              f"{dataset.folder(args.task)}{f', the good ones of {attempts} attempts' if attempts else ''}")


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "directory to write")
    flags.DEFINE_string("task", "button-press-topdown-v3", "name in data_pipelines/simulators/tabletop/tasks.py")
    flags.DEFINE_integer("episodes", 100, "episodes", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "of everything")
    flags.DEFINE_integer("image_size", 64, "pixels, height and width", lower_bound=16)
    flags.DEFINE_string("look", "plain", "colours, camera: name in data_pipelines/simulators/tabletop/tasks.py")
    flags.DEFINE_integer("placements", 0, "ways things stand, in turn; 0: each episode has its own", lower_bound=0)
    flags.DEFINE_float("noise", 0.0, "of the expert's commands, which reach from -1 to 1: the largest deviation of an "
                       "episode's", lower_bound=0.0)
    flags.DEFINE_list("parts", [], "of a study's data: names in data_pipelines/simulators/tabletop/tasks.py")
    flags.DEFINE_integer("workers", 2, "simulating processes", lower_bound=1)
    flags.mark_flags_as_required(["out"])
    launch_flags.run(main)
