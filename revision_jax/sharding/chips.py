"""What chips can do at best: the table that roofline estimates (planning) and the share of the peak (MFU, training) are counted against.

Peak is dense bfloat16 with float32 sums. HBM is what the vendor sells; what a program may use of it is what the compiler says ("available HBM"), here
`usable` GiB. Links are those of a chip to its neighbours in its slice; a ring over one axis of the torus uses two of them, one in each direction. The network
is the data centre's, between slices.

Sources: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p-training,v6e} (peak, HBM, bidirectional interconnect a chip: v5e 400 GB/s over 4 ports, v5p 1,200 over 6,
v6e 800 over 4; data center network: v5e 6.4 and v6e 25.6 Tb/s a pod of 256 chips, v5p 50 Gb/s a chip); TPU v4 (arXiv 2304.01433: six links of 50 GB/s in each
direction); nvidia.com's data sheets of A100 SXM (NVLink 600 GB/s, both directions) and H100, H200 SXM (900 GB/s). Usable HBM: libtpu 0.0.42's own refusals.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One row. Bytes and FLOPs per second of one chip."""

    kind: str
    flops: float  # bfloat16
    hbm_gib: float
    usable_gib: float
    hbm_bandwidth: float
    link_bandwidth: float  # of one link, in one direction
    links: int  # of a chip
    network: float | None = None  # between slices, a chip's share of its host's; None: not published

    @property
    def usable(self) -> int:
        """Bytes of HBM that a program may use."""
        return int(self.usable_gib * GIB)

    def interconnect(self, axes: int) -> float:
        """Bytes per second that leave a chip in a collective whose groups extend along so many axes of the torus."""
        return min(2 * max(axes, 1), self.links) * self.link_bandwidth


CHIPS: dict[str, Chip] = {
    chip.kind: chip
    for chip in (
        Chip("v4", 275e12, 32, 30.75, 1.2e12, 50e9, 6),
        Chip("v5e", 197e12, 16, 15.75, 8.19e11, 50e9, 4, 3.125e9),
        Chip("v5p", 459e12, 95, 95.74, 2.765e12, 100e9, 6, 6.25e9),
        Chip("v6e", 918e12, 32, 31.25, 1.638e12, 100e9, 4, 12.5e9),
        Chip("a100", 312e12, 80, 79.0, 2.039e12, 300e9, 1),
        Chip("h100", 989e12, 80, 79.0, 3.35e12, 450e9, 1),
        Chip("h200", 989e12, 141, 139.0, 4.8e12, 450e9, 1),
    )
}

# How jax calls them (`device.device_kind`), the longest fitting word first.
KINDS = {
    "tpu v4": "v4", "tpu v5 lite": "v5e", "tpu v5e": "v5e", "tpu v5p": "v5p", "tpu v5": "v5p", "tpu v6 lite": "v6e", "tpu v6e": "v6e", "a100": "a100",
    "h100": "h100", "h200": "h200",
}  # fmt: skip


def chip_of(device_kind: str) -> Chip | None:
    """The row of a device that jax calls so; None for one that is not in the table."""
    fitting = [word for word in KINDS if word in device_kind.lower()]
    return CHIPS[KINDS[max(fitting, key=len)]] if fitting else None
