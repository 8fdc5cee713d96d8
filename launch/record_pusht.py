"""Records PushT: simulated episodes with actions, and action-free clips in other colours (extra: sim, data).

    python -m launch.record_pusht --out=.cache/pusht [--task=place --episodes=240 --clips=40 --seed=0 --image_size=64]
    python -m launch.record_pusht --out=.cache/pusht_slide --task=slide --episodes=360    # for configs/quickstart.py

The block begins anywhere (`place`), or one long push away from the goal (`slide`), where executed commands stray from
those that are recorded, so that corrections are seen.
Writes OUT/pusht_rlds (TFDS, array_record) and OUT/pusht_clips (mp4); a whole recording of the same recipe is reused.
"""

import time
from pathlib import Path

from absl import flags

from launch.setup import flags as launch_flags


class Progress:
    """One line every few seconds, with the time left of what is being made."""

    def __init__(self, every: float = 5.0):
        self._every, self._last, self._what, self._began = every, 0.0, "", 0.0

    def __call__(self, what: str, done: int, of: int, steps: int) -> None:
        now = time.monotonic()
        if what != self._what:  # the first result comes when its makers have started up: time counts from here
            self._what, self._began = what, now
        elif done == of or now - self._last > self._every:
            self._last = now
            left = (now - self._began) / (done - 1) * (of - done)
            print(f"{what} {done} of {of}, {steps:,} steps, {left:.0f} s left", flush=True)


def main(_) -> None:
    from data_pipelines.simulators.pusht import dataset

    args = flags.FLAGS
    made = dataset.write(Path(args.out), episodes=args.episodes, clips=args.clips, seed=args.seed,
                         image_size=args.image_size, task=args.task, workers=args.workers, progress=Progress())
    print(f"{'recorded' if made else 'reusing'} {args.episodes} episodes in {args.out}/{dataset.EPISODES_DIR} "
          f"and {args.clips} clips in {args.out}/{dataset.CLIPS_DIR}")


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "directory to write")
    flags.DEFINE_enum("task", "place", ("place", "slide"), "where episodes begin, and what they show")
    flags.DEFINE_integer("episodes", 240, "episodes with actions", lower_bound=1)
    flags.DEFINE_integer("clips", 40, "action-free clips", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "of everything")
    flags.DEFINE_integer("image_size", 64, "pixels, height and width", lower_bound=16)
    flags.DEFINE_integer("workers", 2, "simulating processes", lower_bound=1)
    flags.mark_flags_as_required(["out"])
    launch_flags.run(main)
