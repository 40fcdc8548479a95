"""GPUs that a prior can be made for: what their vendors' datasheets say.

Rates are peaks: what kernels reach of them is `twin.calibration.prior`'s matter. Memory is what an engine sees, about
2 % less than nominal, 8 % where error correction takes ordinary memory (GDDR6); `--gpu-memory-gib` replaces it.
"""

from __future__ import annotations

from dataclasses import dataclass

from twin.errors import InputError


@dataclass(frozen=True)
class GpuDatasheet:
    """One kind of GPU.

    Attributes
    ----------
    memory_gib
        Device memory that an engine sees, in GiB.
    bandwidth_gb_per_s
        Of the device memory, in 1e9 bytes per second.
    dense_tflops
        bfloat16 on tensor cores without sparsity, in 1e12 operations per second.
    pcie_gb_per_s
        From host to device, one direction, in 1e9 bytes per second.
    num_sms, boost_ghz
        Streaming multiprocessors (compute units), and their boost clock.
    source
        Where the numbers stand.
    """

    name: str
    memory_gib: float
    bandwidth_gb_per_s: float
    dense_tflops: float
    pcie_gb_per_s: float
    num_sms: int
    boost_ghz: float
    source: str


_AMPERE = "NVIDIA A100 Tensor Core GPU datasheet; SMs and clock: NVIDIA A100 architecture whitepaper"
_HOPPER = "NVIDIA H100 Tensor Core GPU datasheet; SMs and clock: NVIDIA H100 architecture whitepaper"
_CUSTOM = (
    "custom part without a public datasheet: bandwidth assumed as HBM2e of 2.0 TB/s, everything else as the H100 SXM "
    "datasheet; memory as its engines report it"
)

DATASHEETS: dict[str, GpuDatasheet] = {
    sheet.name: sheet
    for sheet in (
        GpuDatasheet("a100-40gb", 39.2, 1555.0, 312.0, 32.0, 108, 1.41, _AMPERE),
        GpuDatasheet("a100-80gb", 78.4, 2039.0, 312.0, 32.0, 108, 1.41, _AMPERE),
        GpuDatasheet("h100-64gb", 63.43, 2020.0, 989.4, 64.0, 132, 1.83, _CUSTOM),
        GpuDatasheet("h100-pcie-80gb", 78.4, 2000.0, 756.0, 64.0, 114, 1.755, _HOPPER),
        GpuDatasheet("h100-80gb", 78.4, 3350.0, 989.4, 64.0, 132, 1.83, _HOPPER),
        GpuDatasheet(
            *("h200-141gb", 138.0, 4800.0, 989.4, 64.0, 132, 1.83),
            "NVIDIA H200 Tensor Core GPU datasheet; SMs and clock as H100 SXM",
        ),
        GpuDatasheet(
            *("b200-180gb", 176.0, 8000.0, 2250.0, 64.0, 148, 1.85),
            "NVIDIA HGX B200 datasheet, per GPU; SMs and clock are approximate",
        ),
        GpuDatasheet(
            *("l40s-48gb", 44.2, 864.0, 362.0, 32.0, 142, 2.52),
            "NVIDIA L40S datasheet; SMs and clock: NVIDIA Ada architecture whitepaper",
        ),
        GpuDatasheet(
            *("l4-24gb", 22.0, 300.0, 121.0, 32.0, 58, 2.04),
            "NVIDIA L4 datasheet; SMs and clock: NVIDIA Ada architecture whitepaper",
        ),
        GpuDatasheet(
            *("a10g-24gb", 22.0, 600.0, 70.0, 32.0, 80, 1.71),
            "NVIDIA A10 datasheet, with the lower tensor rate of the A10G; SMs and clock as A10G instances report them",
        ),
        GpuDatasheet(
            *("mi300x-192gb", 188.0, 5300.0, 1307.4, 64.0, 304, 2.1),
            "AMD Instinct MI300X datasheet",
        ),
    )
}


def datasheet_of(gpu: str) -> GpuDatasheet:
    """Return the datasheet of a GPU; InputError when there is none."""
    if gpu not in DATASHEETS:
        raise InputError(
            f"the GPU must be one whose datasheet is known: {', '.join(sorted(DATASHEETS))}. Got {gpu!r}.",
            field="gpu",
            value=gpu,
            hint="name the most similar of these, and give the memory with --gpu-memory-gib; with measurements, a "
            "profile of a similar GPU can be given instead (--prior FILE), or nothing be presumed (--prior guess)",
        )
    return DATASHEETS[gpu]
