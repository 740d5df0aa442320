"""Make the parts of a build by Apache Beam: one machine's cores, or Dataflow, Spark or Flink.

Every worker must see input, output and key at the same paths (a shared or a mounted file system);
a part is a few hundred films, so that is how finely work is shared out.
"""

from collections.abc import Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from data_prep.parts import Part, Recipe, build_part
from xmae_jax.data.sandbox import Sandbox


class _BuildPart(beam.DoFn):
    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe

    def setup(self) -> None:
        self._sandbox = Sandbox()

    def process(self, element: Part) -> None:
        counter = beam.metrics.Metrics.counter
        films, rejected = counter("data_prep", "films"), counter("data_prep", "rejected")

        def tell(done: int, refused: int) -> None:
            films.inc(done)
            rejected.inc(refused)

        build_part(element, self._recipe, self._sandbox, tell=tell)

    def teardown(self) -> None:
        self._sandbox.close()


def run(parts: Sequence[Part], recipe: Recipe, *, options: Sequence[str]) -> None:
    """Make all parts that are not there yet; `options` are Beam's own, such as its runner."""
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        _ = (
            pipeline
            | beam.Create(parts)
            | beam.Reshuffle()  # else one worker would be given them all
            | beam.ParDo(_BuildPart(recipe))
        )
