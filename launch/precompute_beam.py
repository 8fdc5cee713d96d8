"""launch.precompute as an Apache Beam pipeline (extra: beam): an element per missing shard, made where Beam puts it.

    python -m launch.precompute_beam --config=configs/quickstart.py --out=.cache/latents --beam=--runner=DirectRunner

--beam=OPTION, once for each, goes to Beam as it is: --beam=--runner=FlinkRunner, DataflowRunner, SparkRunner and what
they ask for. Workers must see OUT and the data at the same paths or addresses, and have this package. What is written,
resuming, the manifest and the checks are launch.precompute's; Beam only hands out shards and starts lost ones again,
which is safe because a shard appears whole or not at all. Beam's pins clash with newer protobuf: install it in an
environment apart.
"""

import functools

from absl import flags
from ml_collections import ConfigDict

from launch import precompute
from launch.setup import flags as launch_flags
from world_model import kinds


@functools.lru_cache(maxsize=1)
def job_of(config: str, out: str, shard_bytes: int, batch: int) -> precompute.Precompute:
    """One per worker process: opening the data and compiling the encoder are shared by its shards. config: JSON."""
    return precompute.Precompute(ConfigDict(kinds.parse(config, kinds.MAP, "config")), out, shard_bytes=shard_bytes,
                                 batch=batch, worker=0, workers=1)


def make_shard(work: tuple[str, int], *job) -> dict:
    """(dataset, shard) -> what `Precompute.make` says of it."""
    name, shard = work
    return {"dataset": name, "shard": shard, **job_of(*job).make(name, shard)}


def run(job_arguments: tuple, options: list[str], say) -> bool:
    """`Precompute.run` by Beam. job_arguments: of `job_of`; options: of the pipeline. True where the cache is whole."""
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    job = job_of(*job_arguments)
    say(job.estimate())
    job.prepare()
    missing = job.missing()
    with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
        made = (pipeline | beam.Create(missing) | beam.Reshuffle() | beam.Map(make_shard, *job_arguments))
        _ = made | beam.Map(lambda about: about["records"]) | beam.CombineGlobally(sum) | beam.Map(
            lambda count: print(f"{count} windows made", flush=True))
    return job.finish()


def main(_) -> None:
    args = flags.FLAGS
    say = functools.partial(print, flush=True)
    whole = run((args.config.to_json(), args.out, args.shard_mib << 20, args.batch), args.beam, say)
    say(f"done: train with --config.data.cache={args.out}; look at {args.out}/contact_sheet.png" if whole
        else "shards are missing: see the pipeline's errors, and run this again to go on")


if __name__ == "__main__":
    precompute.define_flags()
    flags.DEFINE_multi_string("beam", [], "an option of the pipeline")
    launch_flags.run(main, RuntimeError)
