"""Batches for one host, in an order that worker processes, hosts and interruptions do not change.

The rows of global batch s are positions s * G .. (s + 1) * G - 1 of the mixture's stream, where G is the global batch
size; each host takes a contiguous share of them. A batch is put together inside one Grain element, so that threads and
worker processes decode whole batches ahead without touching the order.
"""

import copy
import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence

import grain
import numpy as np
from absl import flags, logging

from data_pipelines.augmentation import PLAIN, Augmentation
from data_pipelines.cache.reader import CachedMaker, LatentCache
from data_pipelines.dataset import Dataset
from data_pipelines.episode import check_limit
from data_pipelines.host_batch import BadWindow, HostBatch
from data_pipelines.mixture import describe_mixture, make_order, positions
from data_pipelines.samples import SampleMaker, Tokenize
from data_pipelines.statistics.stored import statistics_hash
from data_pipelines.worker_status import WorkerStatus
from world_model import kinds
from world_model.batch import Layout, check_batch
from world_model.differences import first_difference

_BAD = kinds.fields({"count": kinds.whole(), "reason": kinds.text}, required=("count", "reason"))
_PART = kinds.fields({"weight": kinds.number(0)}, required=("weight",))
STATE = kinds.fields({"step": kinds.whole(), "positions": kinds.map_of(kinds.whole(high=2**62)),
                      "mixture": kinds.map_of(_PART), "bad": kinds.map_of(_BAD)},
                     required=("step", "positions", "mixture", "bad"))  # `Loader.state`


class Loader:
    """Endless iterator over this host's batches, each of the fields asked for.

    It has to be closed, or used as a context manager: worker processes do not end by themselves. With workers > 0 a
    script must be importable (`if __name__ == "__main__":`), because Grain spawns its processes.
    """

    def __init__(self, datasets: Sequence[Dataset], layout: Layout, tokenize: Tokenize, *,
                 fields: dict[str, tuple], seed: int, global_batch_size: int, start_step: int = 0, workers: int = 0,
                 prefetch: int = 4, process_index: int = 0, process_count: int = 1, max_bad_fraction: float = 0.001,
                 cache: LatentCache | None = None, augmentation: Augmentation = PLAIN):
        """Args:
          tokenize: prompt -> (int32 [text_length], number of tokens); picklable where workers > 0.
          fields: name -> (shape without B, dtype) of what a batch holds, as `world_model.batch.batch_spec` returns it.
          start_step: first batch to yield.
          workers: decoding processes; 0 decodes in threads of this process.
          prefetch: batches decoded ahead, over all workers; 0 decodes on demand.
          process_index, process_count: this host among all.
          cache: where the rows come from instead of being made; batches then hold the fields of `cache.spec`.
          augmentation: how pictures are cut and coloured; a sample's pixels depend on no host and no worker.
          max_bad_fraction: share of this host's windows that may be unreadable before `__next__` raises.

        Raises ValueError for an empty mixture, weights not positive, unusable statistics, an unknown field, more
        cameras than views, or a batch that does not divide among the hosts.
        """
        if global_batch_size < 1 or global_batch_size % process_count:
            raise ValueError(f"train.global_batch_size = {global_batch_size} does not divide among "
                             f"{process_count} hosts")
        makers = [SampleMaker(dataset, i, layout, tokenize, fields=fields, augmentation=augmentation, seed=seed)
                  for i, dataset in enumerate(datasets)]
        readers = [CachedMaker(maker, cache) if cache else maker for maker in makers]
        windows = [maker.windows for maker in makers]
        order = make_order(datasets, windows, seed, global_batch_size)
        self._datasets, self._global_batch_size, self._step = datasets, global_batch_size, start_step
        self._rows = global_batch_size // process_count
        self._workers, self._max_bad_fraction = workers, max_bad_fraction
        self._bad: dict[str, dict] = {}
        self._status = WorkerStatus()
        self._identity = {
            "seed": seed, "global_batch_size": global_batch_size, "layout": layout.as_json(),
            "augmentation": dataclasses.asdict(augmentation),
            "mixture": describe_mixture(datasets, windows),
            "statistics": statistics_hash({d.name: d.statistics for d in datasets}),
        }
        self._spec = cache.spec if cache else fields
        lengths = {name: shape[0] for name, (shape, _) in self._spec.items() if name == "text_features"}
        rows = slice(process_index * self._rows, (process_index + 1) * self._rows)
        batches = (order.batch(global_batch_size, batch_fn=list)
                   .slice(slice(start_step, None)).map(HostBatch(readers, seed, rows, lengths, self._status)))
        self._iterator = iter(_decode_ahead(batches, workers, prefetch))

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            raise ValueError("the loader is closed")
        try:
            batch, bad = next(self._iterator)
        except RuntimeError as error:
            if not (unfinished := self._status.unfinished()):
                raise
            raise ValueError("a loader process died, perhaps by the sample that it was at:\n  "
                             + "\n  ".join(unfinished) + f"\n{error}") from error
        if self._workers:  # their arrays lie in shared memory, which whoever keeps a batch would leak
            batch = {name: np.array(value) for name, value in batch.items()}
        check_batch(batch, self._spec, self._rows)
        self._step += 1
        self._count_bad(bad)
        return batch

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *unused) -> None:
        self.close()

    def close(self) -> None:
        """Ends threads and worker processes; may be called twice."""
        # Grain's iterator is closed here, because at the interpreter's end it would print a traceback
        self._status.close()
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator.close()

    def state(self) -> dict:
        """JSON data for the checkpoint: the step of the next batch, all that the stream depends on, each dataset's
        draws so far, and the unreadable recordings that this host met."""
        drawn = positions(self._datasets, self._step * self._global_batch_size, self._global_batch_size)
        return {"step": self._step, **self._identity, "positions": drawn, "bad": copy.deepcopy(self._bad)}

    def check_resume(self, saved: dict) -> None:
        """Takes over the count of unreadable recordings from `saved`, which `state` returned.

        Raises ValueError naming the first difference where this loader would not continue the same stream.
        """
        kinds.check(saved, STATE, "the checkpoint's data")
        found = {"step": self._step, **self._identity}
        if difference := first_difference({key: saved.get(key) for key in found}, found, path="data"):
            raise ValueError(f"the data does not continue the checkpoint's: {difference}")
        self._bad = copy.deepcopy(saved["bad"])

    def _count_bad(self, bad: Sequence[BadWindow]) -> None:
        for window in bad:
            key = f"{window.dataset}/{window.episode}"
            if key not in self._bad:
                self._bad[key] = {"count": 0, "reason": window.reason}
                logging.warning("skipped an unreadable recording: %s", window.reason)
            self._bad[key]["count"] += 1
        lines = (f"{key}, met {entry['count']} times: {entry['reason']}" for key, entry in self._bad.items())
        check_limit(sum(entry["count"] for entry in self._bad.values()), self._step * self._rows,
                    self._max_bad_fraction, "windows", lines)


def _decode_ahead(batches: grain.MapDataset, workers: int, prefetch: int) -> grain.IterDataset:
    """The batches in their order, made ahead in threads of this process or, with workers > 0, in processes."""
    if not workers:
        threads = min(prefetch, os.cpu_count() or 1)
        return batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch))
    for name in flags.FLAGS:  # Grain reads its flags even where nobody parsed any, as in a notebook or a test
        if name.startswith("grain_"):
            flags.FLAGS[name].present = True
    each = -(-prefetch // workers)
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=max(1, each))
    on_demand = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)  # the process itself is the thread
    return batches.to_iter_dataset(on_demand).mp_prefetch(options, _end_with_parent)


def _end_with_parent(worker: int, workers: int) -> None:
    """Leaves signals to the whole process group to the parent, which saves and then closes the loader. A parent that is
    killed outright cannot close anything, so its workers watch it."""
    del worker, workers
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
