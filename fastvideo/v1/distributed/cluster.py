"""The GPUs and the links between them that a layout is chosen for: assumed figures, each with its source."""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class GPU:
    """``memory`` in bytes; ``flops`` a second that a whole forward of a transformer sustains in bfloat16.

    ``memory_bandwidth`` is what copies and element-wise kernels reach, bytes read and written a second.
    """

    name: str
    memory: float
    flops: float
    memory_bandwidth: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Link:
    """The way from one GPU to the others of a collective.

    ``bandwidth`` is nominal, bytes a second that one GPU sends; ``efficiency`` the part of it that collectives of
    megabytes reach; ``latency`` the seconds that a collective takes however little it sends.
    """

    name: str
    bandwidth: float
    efficiency: float
    latency: float
    source: str

    def seconds(self, num_bytes: float, count: int) -> float:
        """What ``count`` collectives take in which a GPU sends ``num_bytes`` in all."""
        return count * self.latency + num_bytes / (self.bandwidth * self.efficiency)


_MEASURED = (
    "forwards of Wan 1.3B, 14B and HunyuanVideo on one H100 ran at 632, 659 and 659 TFLOP/s (infra/benchmarks/dit_*), "
    "their element-wise kernels at 2.4-2.8 TB/s (infra/benchmarks/README.md); memory by nvidia-smi"
)
H100 = GPU(name="H100", memory=79.6 * GIB, flops=650e12, memory_bandwidth=2.5e12, source=_MEASURED)
H200 = GPU(
    name="H200",
    memory=140.4 * GIB,
    flops=650e12,
    memory_bandwidth=3.6e12,
    source="arithmetic as the H100's; memory bandwidth by the data sheets' ratio, 4.8 to 3.35 TB/s",
)
GPUS = {"h100": H100, "h200": H200}

NVLINK = Link(
    name="NVLink 4",
    bandwidth=450e9,
    efficiency=0.75,
    latency=20e-6,
    source="H100 data sheet: 900 GB/s both ways; efficiency and latency assumed, as NCCL without multicast has them",
)
PCIE = Link(
    name="PCIe 5 x16",
    bandwidth=63e9,
    efficiency=0.6,
    latency=30e-6,
    source="32 GT/s x 16 lanes, 128b/130b; efficiency and latency assumed: GPUs share switches and the host",
)
NETWORK = Link(
    name="InfiniBand NDR",
    bandwidth=50e9,
    efficiency=0.8,
    latency=40e-6,
    source="400 Gb/s, one port a GPU; efficiency and latency assumed",
)
LINKS = {"nvlink": NVLINK, "pcie": PCIE}


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Nodes of equal GPUs; ``reserved`` bytes of each are for CUDA, NCCL's buffers and what an allocator loses."""

    gpu: GPU = H100
    inside: Link = NVLINK
    between: Link = NETWORK
    gpus_per_node: int = 8
    reserved: float = 4 * GIB

    @property
    def usable_memory(self) -> float:
        """Bytes of a GPU for weights and activations."""
        return self.gpu.memory - self.reserved

    def link(self, span: int) -> Link:
        """What ties ranks together that lie within ``span`` successive ones."""
        return self.inside if span <= self.gpus_per_node else self.between
