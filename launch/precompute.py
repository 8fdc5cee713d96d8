"""Runs a config's frozen encoders once over every training window; training then reads latents instead of video.

    python -m launch.precompute --config=configs/quickstart.py --out=.cache/latents [--batch=8]
    python -m launch.train --config=configs/quickstart.py --config.data.cache=.cache/latents --workdir=DIR

Stopped at any moment, the same command goes on with the next missing shard. Several processes, each with its
--worker of --workers, share the work. The last one writes _SUCCESS and contact_sheet.png (decoded samples under the
pixels that they come from). --verify reads a finished cache again and checks every hash. launch.precompute_beam lets
Apache Beam hand out the shards. OUT may be an address (gs://, s3://, ...): shards are written to TMPDIR, then sent.
"""

import functools
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_dtypes import bfloat16

from data_pipelines.cache.format import load_encoders, record_bytes
from data_pipelines.cache.writer import CacheWriter, save_encoders
from data_pipelines.episode import BadEpisode, check_limit
from data_pipelines.once import read_rows
from data_pipelines.samples import SampleMaker
from data_pipelines.statistics.stored import save_statistics
from data_pipelines.storage import files
from launch.reporting.contact_sheet import contact_sheet
from launch.setup import cache
from launch.setup import flags as launch_flags
from launch.setup.experiment import Experiment


class Precompute:
    """The job of one process."""

    def __init__(self, config, out: str, *, shard_bytes: int, batch: int, worker: int, workers: int):
        """Fits or reads the encoders and checks that OUT, a folder or its address, is this config's. Raises CacheError,
        OSError, ValueError."""
        if config.data.cache:
            raise ValueError("a cache is made with data.cache empty")
        if worker >= workers:
            raise ValueError(f"--worker={worker} of --workers={workers}: they are counted from 0")
        self.experiment, self.out, self.batch = Experiment(config), out, batch
        self.worker, self.workers = worker, workers
        self.inputs = self.experiment.inputs
        self.spec, self._store = self.inputs.stored_fields(), jax.jit(self.inputs.store)
        self.data = self.experiment.data()
        there = files.exists(f"{out}/encoders.safetensors")
        self.kept = load_encoders(out, self.inputs.encoders) if there else self.experiment.fit_encoders(self.data)
        self.frozen = jax.tree.map(jnp.asarray, self.experiment.load_encoders(self.kept))
        self.makers = self.data.makers()
        self._check_encoders()
        self.windows = {maker.dataset.name: len(maker.windows) for maker in self.makers}
        self._bad: dict[tuple, str] = {}  # (dataset, window) -> why this job could not read it
        self.writer = CacheWriter(out, {
            "identity": cache.identity(self.experiment), "windows": self.windows,
            "encoders": cache.encoders_hash(self.kept), "statistics": self.data.statistics_hash,
            "heldout": {d.name: d.episodes.tolist() for d in self.data.heldout},
        }, self.spec, max(1, shard_bytes // record_bytes(self.spec)))

    def _check_encoders(self) -> None:
        """Raises ValueError where an encoder is missing, before anything is decoded."""
        fields, row = self.inputs.batch_fields(), {}
        for name in self.inputs.stored_from:
            shape, dtype = fields[name]
            row[name] = jax.ShapeDtypeStruct((1, *shape), dtype)
        jax.eval_shape(self.inputs.store, self.frozen, row)

    def estimate(self) -> str:
        """What will be written, for people."""
        count, size = sum(self.windows.values()), record_bytes(self.spec)
        left = sum(len(self.writer.windows_of(shard, self.windows[name])) for name, shard in self.missing())
        return (f"{count:,} windows of {size / 2**10:,.0f} KiB: {count * size / 2**30:,.2f} GiB; {left:,} windows "
                f"are still to be made")

    def run(self, say) -> bool:
        """True where the cache is whole afterwards. Raises ValueError where too many windows are unreadable."""
        self.prepare()
        done, began = 0, time.monotonic()
        own = [(name, shard) for name, shard in self.missing() if shard % self.workers == self.worker]
        for i, (name, shard) in enumerate(own):
            about = self.make(name, shard)
            done += about["records"]
            rate = done / (time.monotonic() - began)
            say(f"{name} shard {shard}: {about['records']} windows, {about['bytes'] / 2**20:.0f} MiB; "
                f"{i + 1} of {len(own)} shards, {rate:.1f} windows/s")
        return self.finish()

    def prepare(self) -> None:
        """What lies beside the shards."""
        save_encoders(self.out, cache.flat_encoders(self.kept))
        save_statistics(self.data.statistics, f"{self.out}/statistics.json")
        self._write_texts()

    def missing(self) -> list[tuple[str, int]]:
        """(dataset, shard) of all that are not there yet."""
        return [(name, shard) for name, count in self.windows.items() for shard in self.writer.shards(name, count)]

    def make(self, name: str, shard: int) -> dict:
        """Writes a shard; returns its JSON. Raises ValueError where this job has met too many unreadable windows; the
        shard is then made again at the next start."""
        maker = next(maker for maker in self.makers if maker.dataset.name == name)

        def check(bad: dict[str, str]) -> None:
            self._bad |= {(name, window): reason for window, reason in bad.items()}
            check_limit(len(self._bad), sum(self.windows.values()), self.experiment.config.data.max_bad_fraction,
                        "windows", sorted(set(self._bad.values())))

        return self.writer.write_shard(name, shard, self._rows(maker, shard), check)

    def finish(self) -> bool:
        """_SUCCESS and, where the family has a video codec, the contact sheet, once every shard is there."""
        whole = self.writer.finish(self.windows)
        if whole and "latents" in self.spec:
            made = cache.open_cache(with_cache(self.experiment.config, self.out))
            contact_sheet(self.experiment.encoders["video"], self.frozen["video"], self.makers, made)
        return whole

    def _write_texts(self) -> None:
        """The features of every distinct prompt once, and which episode has which from which step on."""
        numbers: dict[str, int] = {}
        for maker in self.makers:
            dataset, source = maker.dataset, maker.dataset.source
            first, changes = np.full(len(source), -1, np.int64), []
            for index in maker.windows.episodes.tolist():
                try:
                    episode = source[index]
                except BadEpisode:
                    continue  # its windows are unreadable: no row asks for a prompt
                prompt = dataset.embodiment.format_prompt(episode.instruction)
                first[index] = numbers.setdefault(prompt, len(numbers))
                changes += [(index, step, dataset.embodiment.format_prompt(text))
                            for step, text in episode.instructions if step and isinstance(text, str)]
            later = [(index, step, numbers.setdefault(prompt, len(numbers))) for index, step, prompt in changes]
            self.writer.write_index(
                dataset.name, lengths=np.asarray(source.lengths(), np.int64), kept=source.stretches(), text=first,
                rates=np.asarray(source.rates(), np.float64), later=np.array(later, np.int64).reshape(-1, 3))
        if "text_features" in self.spec:
            self.writer.write_texts(list(numbers), self._features)

    def _features(self, prompt: str) -> np.ndarray:
        """bfloat16 [tokens, width]."""
        ids, length = self.inputs.tokenize(prompt)
        encoded = self._encode_text(self.frozen["text"], ids[None], np.array([length]))
        return np.asarray(encoded[0, :length], bfloat16)

    @functools.partial(jax.jit, static_argnums=0)
    def _encode_text(self, params, ids, length):
        return self.experiment.encoders["text"].encode(params, ids, length)

    def _rows(self, maker: SampleMaker, shard: int) -> Iterator[dict | str]:
        """Rows of a shard, decoded while the batch before is encoded."""
        asked = [(maker, window, 0) for window in self.writer.windows_of(shard, len(maker.windows))]
        for rows in read_rows(asked, self.batch):
            yield from self._encoded(rows)

    def _encoded(self, rows: list[dict | str]) -> list[dict | str]:
        good = [row for row in rows if isinstance(row, dict)]
        if not good or not self.inputs.stored_from:
            return rows
        stacked = {name: np.stack([row[name] for row in good]) for name in self.inputs.stored_from}
        padded = {name: np.concatenate([x, x[:1].repeat(self.batch - len(x), 0)])  # one shape, one program
                  for name, x in stacked.items()}
        stored = {name: np.asarray(value) for name, value in self._store(self.frozen, padded).items()}
        features = iter([{name: value[i] for name, value in stored.items()} for i in range(len(good))])
        return [row if isinstance(row, str) else row | next(features) for row in rows]


def with_cache(config, out: str) -> Experiment:
    """The experiment that trains from a cache."""
    config = config.copy_and_resolve_references()
    config.data.cache = out
    return Experiment(config)


def main(_) -> None:
    args = flags.FLAGS
    say = functools.partial(print, flush=True)
    if args.verify:
        if problems := list(cache.open_cache(with_cache(args.config, args.out)).verify()):
            raise ValueError("\n".join(problems))
        say(f"{args.out}: every record is as it was written")
        return
    job = Precompute(args.config, args.out, shard_bytes=args.shard_mib << 20, batch=args.batch,
                     worker=args.worker, workers=args.workers)
    say(job.estimate())
    whole = job.run(say)
    look = f"; look at {args.out}/contact_sheet.png" if "latents" in job.spec else ""
    say(f"done: train with --config.data.cache={args.out}{look}" if whole
        else "done here; other workers still have shards to make")


def define_flags() -> None:
    """Defines the flags that this command and launch.precompute_beam share."""
    launch_flags.define_config()
    flags.DEFINE_string("out", None, "folder of the cache, or its address")
    flags.DEFINE_integer("shard_mib", 256, "size of a shard", lower_bound=1)
    flags.DEFINE_integer("batch", 8, "windows encoded at once", lower_bound=1)
    flags.mark_flags_as_required(["config", "out"])


if __name__ == "__main__":
    define_flags()
    flags.DEFINE_integer("worker", 0, "this process among --workers", lower_bound=0)
    flags.DEFINE_integer("workers", 1, "processes that share the work", lower_bound=1)
    flags.DEFINE_bool("verify", False, "only read a finished cache and check its hashes")
    launch_flags.run(main)
