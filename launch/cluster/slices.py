"""Slices of TPUs, and what Google's clouds call them."""

import dataclasses
import math
import re


@dataclasses.dataclass(frozen=True)
class Cloud:
    """Names of one chip generation, as Cloud TPU's and GKE's pages give them."""

    gke: str  # node label cloud.google.com/gke-tpu-accelerator
    accelerator: str  # accelerator type, before the number
    per_chip: int  # what that number counts per chip: 2 where it counts cores, 1 where it counts chips
    runtime: str  # software version of a TPU VM
    dimensions: int  # axes of the torus
    host_chips: int = 4  # chips per host in a slice of several hosts


CLOUDS = {
    "v5e": Cloud("tpu-v5-lite-podslice", "v5litepod", 1, "v2-alpha-tpuv5-lite", 2),
    "v5p": Cloud("tpu-v5p-slice", "v5p", 2, "v2-alpha-tpuv5", 3),
    "v6e": Cloud("tpu-v6e-slice", "v6e", 1, "v2-alpha-tpuv6e", 2),
    "v7x": Cloud("tpu7x", "tpu7x", 2, "v2-alpha-tpu7-ubuntu2404", 3),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice, such as "v5p:4x4x4"."""

    cloud: Cloud
    shape: str
    chips: int

    @classmethod
    def parse(cls, topology: str) -> "Slice":
        """Reads the name of a slice. Raises ValueError where it means no slice of several hosts."""
        generation, _, shape = topology.partition(":")
        if generation not in CLOUDS:
            raise ValueError(f"--topology={topology}: {generation!r} is no chip; there are {', '.join(CLOUDS)}")
        cloud = CLOUDS[generation]
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or shape.count("x") + 1 != cloud.dimensions:
            near = "x".join(["4"] * cloud.dimensions)
            raise ValueError(f"--topology={topology}: a slice of {generation} has {cloud.dimensions} sizes, as in "
                             f"{generation}:{near}")
        chips = math.prod(map(int, shape.split("x")))
        if chips % cloud.host_chips:
            raise ValueError(f"--topology={topology}: {chips} chips are no whole hosts of {cloud.host_chips}")
        return cls(cloud, shape, chips)

    @property
    def hosts(self) -> int:
        """Number of virtual machines of the slice."""
        return self.chips // self.cloud.host_chips

    @property
    def accelerator_type(self) -> str:
        """Accelerator type, by which queued resources and xpk know the slice."""
        return f"{self.cloud.accelerator}-{self.chips * self.cloud.per_chip}"
