"""Fixed launch configurations for mamba-ssm's kernels, in place of its autotuning.

mamba-ssm measures some 125 configurations at the first use of its kernels, for every combination of dtypes anew: minutes in
every process. And each rank measures by itself, what it sees first: on short rows as fast as its host launches. Ranks then
go at different speeds and round differently. So each kernel has one here, the fastest or near it on an H100 at the sizes of the
Echo family (64 values a head, 16 to 128 states; `benchmarks/kernels/mamba2_tuning.py`). `ECHO_LM_MAMBA_AUTOTUNE=all` tries them
all again.
"""

import os
import warnings
from typing import Any

# The values of BLOCK_SIZE_* in the order in which a configuration names them.
CHOICES = {
    "_bmm_chunk_fwd_kernel": (64, 128, 32),
    "_bmm_chunk_bwd_kernel": (32, 64, 32),
    "_chunk_cumsum_fwd_kernel": (8,),
    "_chunk_cumsum_bwd_kernel": (8,),
    "_chunk_state_fwd_kernel": (64, 64, 32),
    "_chunk_state_bwd_db_kernel": (64, 64),
    "_chunk_state_bwd_ddAcs_stable_kernel": (32, 32),
    "_state_passing_fwd_kernel": (512,),
    "_state_passing_bwd_kernel": (512,),
    "_chunk_scan_fwd_kernel": (64, 64, 32),
    "_chunk_scan_bwd_dstates_kernel": (64, 64, 32),
    "_chunk_scan_bwd_dc_kernel": (64, 64),
    "_chunk_scan_bwd_dcb_kernel": (32, 32),
    "_chunk_scan_bwd_ddAcs_stable_kernel": (64, 32),
    "_chunk_scan_bwd_ddAcs_prev_kernel": (64, 64),
    "_chunk_scan_chunk_state_bwd_dx_kernel": (64, 64, 32),
}


def choose(modules: list[Any]) -> None:
    """Leave the autotuned kernels in `modules` their configuration of the list. A kernel that has none with these blocks, in
    another release of mamba-ssm, keeps its own, with a warning."""
    if os.environ.get("ECHO_LM_MAMBA_AUTOTUNE") == "all":
        return
    for module in modules:
        for name, blocks in CHOICES.items():
            kernel = vars(module).get(name)
            if kernel is None or not hasattr(kernel, "configs"):
                continue
            listed = [config for config in kernel.configs if blocks_of(config) == blocks]
            if listed:
                kernel.configs = listed[:1]
            else:
                warnings.warn(
                    f"mamba-ssm's {name} has no blocks of {blocks}: each process measures its own choice", stacklevel=2
                )


def blocks_of(config: Any) -> tuple[int, ...]:
    """The block sizes of a Triton configuration."""
    return tuple(value for name, value in config.kwargs.items() if name.startswith("BLOCK_SIZE"))
