"""The machines that a plan is for."""

from dataclasses import dataclass
from typing import Literal

from recsys.errors import ConfigError

Device = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class Cluster:
    """Ranks, one a device, on hosts of `ranks_per_host` each. Memory in bytes, bandwidths in bytes a second.

    `hbm_bytes` is of a rank, `host_bytes` of a host, whose ranks share it evenly. Each bandwidth is one rank's, in one
    direction: of its memory, of host memory as a CPU rank reads it, between device and host, to ranks of the same
    host, to ranks of others. The defaults are the nominal figures of eight H100 SXM a host with 400 Gbit/s each.
    """

    world_size: int
    ranks_per_host: int = 8
    device: Device = "cuda"
    hbm_bytes: int = 80 * 10**9
    host_bytes: int = 2 * 10**12
    hbm_bandwidth: float = 3.35e12
    host_bandwidth: float = 75e9
    device_to_host_bandwidth: float = 64e9
    intra_host_bandwidth: float = 450e9
    inter_host_bandwidth: float = 50e9

    def __post_init__(self) -> None:
        if self.world_size % self.ranks_per_host:
            raise ConfigError(
                f"--world-size: {self.world_size} ranks do not fill hosts of {self.ranks_per_host}; "
                "give a multiple, or another --ranks-per-host"
            )

    @property
    def hosts(self) -> int:
        return self.world_size // self.ranks_per_host

    @property
    def host_bytes_of_rank(self) -> int:
        """A rank's share of its host's memory."""
        return self.host_bytes // self.ranks_per_host

    @property
    def rank_bytes(self) -> int:
        """What a rank's device holds: its HBM or, on CPUs, its share of the host's memory."""
        return self.hbm_bytes if self.device == "cuda" else self.host_bytes_of_rank
