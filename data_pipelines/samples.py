"""Makes one row of a batch from a window of a dataset."""

from collections.abc import Callable

import numpy as np

from data_pipelines.augmentation import PLAIN, Augmentation
from data_pipelines.dataset import ACTIONS, FIELDS, PICTURES, TEXT, Dataset, check_absent, check_fields, index_windows
from data_pipelines.episode import BadEpisode, Episode
from data_pipelines.features import read_row
from data_pipelines.robots.embodiment import Embodiment
from data_pipelines.robots.normalisation import Scale, make_scale, to_relative
from data_pipelines.robots.slots import scatter, slot_mask
from data_pipelines.robots.views import VIEW_LAYOUTS, separate_views, view_mask
from data_pipelines.windows import block_starts, frame_steps, state_steps
from world_model.batch import Layout

_PART_OF = {"state": "state", "actions": "action", "action_mask": "action"}  # the robot's numbers in a field

Tokenize = Callable[[str], tuple[np.ndarray, int]]  # prompt -> (int32 [text_length], number of tokens)


def check_episode(episode: Episode, embodiment: Embodiment) -> None:
    """Raises BadEpisode where state or action does not have the embodiment's dimensions. Whether numbers are finite is
    asked of those alone that somebody uses (`check_finite`)."""
    if episode.length < 1:
        raise BadEpisode(f"{episode.dataset} episode {episode.index} has no steps")
    for part in ("state", "action"):
        if getattr(embodiment, part):  # a recording may hold more than this embodiment uses
            _check_part(episode, embodiment, part)


def _check_part(episode: Episode, embodiment: Embodiment, part: str) -> None:
    dims, found = getattr(embodiment, part), getattr(episode, part)
    where = f"{episode.dataset} episode {episode.index}: {part}"
    expected, shape = (episode.length, len(dims)), None if found is None else found.shape
    if shape != expected:
        raise BadEpisode(f"{where} of embodiment {embodiment.name!r} should be {expected} "
                         f"({', '.join(d.name for d in dims)}), found {shape}")


def check_finite(episode: Episode, embodiment: Embodiment, part: str, values: np.ndarray, steps: np.ndarray) -> None:
    """Raises BadEpisode where one of the values [n, dims] of "state" or "action" at `steps` [n] is no number."""
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, dim = bad[0]
        name = getattr(embodiment, part)[dim].name
        raise BadEpisode(f"{episode.dataset} episode {episode.index}: {part} {name!r} is {values[row, dim]} at step "
                         f"{steps[row]}")


class SampleMaker:
    """Cuts windows of one dataset. Picklable where source and tokenizer are."""

    def __init__(self, dataset: Dataset, dataset_id: int, layout: Layout, tokenize: Tokenize, *,
                 fields: dict[str, tuple], augmentation: Augmentation = PLAIN, seed: int = 0):
        """fields: what a row holds, as `world_model.batch.batch_spec` returns it; statistics are needed where state or
        actions are among them. augmentation, seed: how pictures are cut and coloured.

        Raises ValueError for a field that nobody makes, too many cameras, or unusable statistics.
        """
        check_fields(fields, dataset)
        check_absent(dataset, fields)
        self._views = [view for view in dataset.embodiment.views if view not in dataset.absent_views]
        self._fields, self._augmentation, self._seed = fields, augmentation, seed
        self.dataset, self.dataset_id, self.layout, self.tokenize = dataset, dataset_id, layout, tokenize
        self.windows = index_windows(dataset, layout)
        self._widths = {part: fields[name][0][-1] for name, part in _PART_OF.items() if name in fields}
        self._scales = {part: self._scale(part) for part in self._widths if getattr(dataset.embodiment, part)}

    def _scale(self, part: str) -> Scale:
        embodiment, statistics = self.dataset.embodiment, self.dataset.statistics
        for dim in getattr(embodiment, part):
            if (slot := max(dim.slot, dim.sine_slot or 0)) >= self._widths[part]:
                raise ValueError(f"embodiment {embodiment.name!r}: {part} {dim.name!r} lies in slot "
                                 f"{slot}, but model.{part}_dim = {self._widths[part]}")
        if statistics is None:
            raise ValueError(f"dataset {self.dataset.name!r} has no statistics; embodiment "
                             f"{embodiment.name!r} needs them")
        if statistics["actions_per_block"] != self.layout.actions_per_block:
            raise ValueError(f"statistics of dataset {self.dataset.name!r} are those of actions_per_block = "
                             f"{statistics['actions_per_block']}, the layout has "
                             f"{self.layout.actions_per_block}: relative actions have another range. "
                             f"Compute the statistics again")
        return make_scale(statistics, embodiment, part)

    def scale(self, part: str) -> Scale:
        """The scale by which "state" or "action" is normalised."""
        return self._scales[part]

    def __call__(self, window: int, sample_index: int) -> dict[str, np.ndarray]:
        """One row of the fields; raises BadEpisode where the recording cannot be used."""
        index, start = self.windows[window]
        episode = self.dataset.source[index]
        check_episode(episode, self.dataset.embodiment)
        row = self.origin(index, start, sample_index)
        if self._asks_for(*PICTURES):
            row |= self._pictures(episode, start, sample_index)
        if self._asks_for(*TEXT):
            row |= self._text(episode, start)
        if self._asks_for("state"):
            row["state"] = self._state(episode, start)
        if self._asks_for(*ACTIONS):
            row |= self._actions(episode, start)
        for name in self._fields.keys() - set(FIELDS):
            row[name] = read_row(self.dataset.features, name, episode, start, *self._fields[name])
        return {name: row[name] for name in self._fields}

    @property
    def _places(self) -> list[int]:
        """Where the views that there are stand in the embodiment's order."""
        return [self.dataset.embodiment.views.index(view) for view in self._views]

    def _asks_for(self, *names: str) -> bool:
        return any(name in self._fields for name in names)

    def origin(self, index: int, start: int, sample_index: int) -> dict[str, np.ndarray]:
        """The fields of ORIGIN."""
        return {
            "embodiment_id": np.int32(self.dataset.embodiment.id),
            "dataset_id": np.int32(self.dataset_id),
            "episode_index": np.int32(index),
            "start": np.int32(start),
            "sample_index": np.uint32(sample_index % 2**32),
        }

    def _pictures(self, episode: Episode, start: int, sample_index: int) -> dict[str, np.ndarray]:
        """Makes those fields of PICTURES that are asked for."""
        embodiment, layout, row = self.dataset.embodiment, self.layout, {}
        steps = frame_steps(layout, start, episode.rate / embodiment.rate)
        unique, back = np.unique(np.minimum(steps, episode.length - 1), return_inverse=True)
        if self._asks_for("video", "views"):
            cameras = self._read_cameras(episode, unique)
            cameras = self._augmentation.cut(cameras, self._seed, sample_index)
            cameras = self._augmentation.colour(cameras, self._seed, sample_index)  # before tiling: its gaps stay black
        if "video" in self._fields:
            video = VIEW_LAYOUTS[embodiment.view_layout](cameras, layout.height, layout.width)
            row["video"] = video if len(unique) == len(steps) else video[back]
        if "views" in self._fields:
            row["views"] = separate_views([frames[:1] for frames in cameras], self._places,
                                          *self._fields["views"][0][:3])
        if "view_mask" in self._fields:
            row["view_mask"] = view_mask(self._places, *self._fields["view_mask"][0])
        return row | {"frame_mask": steps < episode.length}

    def _read_cameras(self, episode: Episode, steps: np.ndarray) -> list[np.ndarray]:
        """Decodes those steps and no others: uint8 [n, H, W, 3] of each camera, in the embodiment's order."""
        frames, where = episode.read_frames(steps), f"{episode.dataset} episode {episode.index}"
        missing = [view for view in self._views if view not in frames]
        if missing:
            raise BadEpisode(f"{where} has no view {missing}; it has {sorted(frames)}")
        views = [frames[view] for view in self._views]
        for name, view in zip(self._views, views):
            if view.dtype != np.uint8 or view.ndim != 4 or view.shape[0] != len(steps) or view.shape[3] != 3:
                raise BadEpisode(f"{where} view {name!r}: expected uint8 [{len(steps)}, H, W, 3], found "
                                 f"{view.dtype} {list(view.shape)}")
        return views

    def _text(self, episode: Episode, start: int) -> dict[str, np.ndarray]:
        prompt = self.dataset.embodiment.format_prompt(episode.instruction_at(start))
        try:
            ids, length = self.tokenize(prompt)
        except ValueError as error:
            raise ValueError(f"{episode.dataset} episode {episode.index}: {error}") from error
        return {"text_ids": np.asarray(ids, np.int32), "text_length": np.int32(length)}

    def _state(self, episode: Episode, start: int) -> np.ndarray:
        shape = (self.layout.num_states, self._widths["state"])
        if "state" not in self._scales:
            return np.zeros(shape, np.float32)
        steps = np.minimum(state_steps(self.layout, start), episode.length - 1)
        check_finite(episode, self.dataset.embodiment, "state", episode.state[steps], steps)
        values = self._scales["state"].normalise(episode.state[steps])
        return scatter(values, self.dataset.embodiment.state_slots, shape[1])

    def _actions(self, episode: Episode, start: int) -> dict[str, np.ndarray]:
        shape = (self.layout.num_actions, self._widths["action"])
        if "action" not in self._scales:
            return {"actions": np.zeros(shape, np.float32), "action_mask": np.zeros(shape, np.bool_)}
        embodiment, slots = self.dataset.embodiment, self.dataset.embodiment.action_slots
        starts = block_starts(self.layout, start)
        relative, real = checked_actions(episode, starts, self.layout.actions_per_block, embodiment)
        values = scatter(self._scales["action"].normalise(relative), slots, shape[1]).reshape(shape)
        mask = real.reshape(-1, 1) & slot_mask(slots, shape[1])
        return {"actions": np.where(mask, values, np.float32(0)), "action_mask": mask}


def relative_actions(episode: Episode, starts: np.ndarray, block: int,
                     embodiment: Embodiment) -> tuple[np.ndarray, np.ndarray]:
    """The actions of the blocks of `block` steps that begin at `starts` [n], relative to the state there where the
    embodiment says so: ([n, block, action dims] in robot units, bool [n, block] real).

    An action is real where the frame that it leads to was recorded and the embodiment's horizon is not over. Statistics
    and training both come through here.
    """
    last = episode.length - 1
    steps = starts[:, None] + np.arange(block)
    state = np.zeros((episode.length, 0)) if episode.state is None else episode.state
    anchors = state[np.minimum(starts, last)][:, None]
    real = (steps < last) & (np.arange(block) < (embodiment.horizon or block))
    return to_relative(episode.action[np.minimum(steps, last)], anchors, embodiment), real


def checked_actions(episode: Episode, starts: np.ndarray, block: int,
                    embodiment: Embodiment) -> tuple[np.ndarray, np.ndarray]:
    """`relative_actions`; raises BadEpisode where a real one, or the state that it is relative to, is no number."""
    relative, real = relative_actions(episode, starts, block, embodiment)
    used = starts[real.any(1)]
    if any(dim.relative_to for dim in embodiment.action):
        check_finite(episode, embodiment, "state", episode.state[used], used)
    check_finite(episode, embodiment, "action", relative[real], (starts[:, None] + np.arange(block))[real])
    return relative, real
