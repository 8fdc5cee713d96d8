"""Published figures of accelerators: what a plan is reckoned with."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, as its maker publishes it."""

    peak_flops: float  # bf16, per second
    hbm_gib: float
    hbm_bandwidth: float  # bytes per second
    ici_bandwidth: float  # bytes per second that a chip sends, all links together
    clock: float  # cycles per second of the matrix units, derived: peak / FLOP per cycle
    devices: int  # that JAX shows per chip
    dollars_per_hour: float | None  # on demand, us-central list price where there is one


DCN_BANDWIDTH = 6.25e9  # bytes per second and chip between slices: 200 Gbit/s per host of four chips

# Google Cloud's pages of each generation. FLOP per cycle: 128 x 128 (v6e, v7x: 256 x 256) multiply-adds per unit,
# four units on v5e, eight on v5p, two on v6e and four on v7x.
CHIPS = {
    "v5e": Chip(197e12, 16.0, 819e9, 200e9, 197e12 / (4 * 2 * 128**2), 1, 1.20),
    "v5p": Chip(459e12, 95.0, 2765e9, 600e9, 459e12 / (8 * 2 * 128**2), 1, 4.20),
    "v6e": Chip(918e12, 32.0, 1640e9, 448e9, 918e12 / (2 * 2 * 256**2), 1, 2.70),
    "v7x": Chip(2307e12, 192.0, 7380e9, 1200e9, 2307e12 / (4 * 2 * 256**2), 2, None),
}
