"""Which configurations of mamba-ssm's kernels are tried.

mamba-ssm measures some 125 configurations at the first use of its kernels, for every combination of dtypes anew: minutes in
every process. These are the ones that were fastest, or near it, on an H100 at the sizes of the Echo family (64 values a
head, 64 or 128 states, chunks of 256, bf16; `docs/log.md`). `ECHO_LM_MAMBA_AUTOTUNE=all` tries them all again.
"""

import os
from typing import Any

# The values of BLOCK_SIZE_* in the order in which a configuration names them.
SHORTLIST = {
    "_bmm_chunk_fwd_kernel": [(64, 128, 32)],
    "_bmm_chunk_bwd_kernel": [(32, 64, 32), (64, 128, 32)],
    "_chunk_cumsum_fwd_kernel": [(4,), (8,)],
    "_chunk_cumsum_bwd_kernel": [(4,), (8,)],
    "_chunk_state_fwd_kernel": [(64, 128, 32), (64, 64, 32)],
    "_chunk_state_bwd_db_kernel": [(64, 64), (32, 128)],
    "_chunk_state_bwd_ddAcs_stable_kernel": [(32, 32), (64, 32)],
    "_state_passing_fwd_kernel": [(512,), (2048,)],
    "_state_passing_bwd_kernel": [(512,), (2048,)],
    "_chunk_scan_fwd_kernel": [(64, 64, 32), (128, 64, 32)],
    "_chunk_scan_bwd_dstates_kernel": [(64, 128, 32), (64, 64, 32)],
    "_chunk_scan_bwd_dc_kernel": [(64, 64), (32, 128)],
    "_chunk_scan_bwd_dcb_kernel": [(32, 32), (64, 32)],
    "_chunk_scan_bwd_ddAcs_stable_kernel": [(64, 32)],
    "_chunk_scan_bwd_ddAcs_prev_kernel": [(64, 64), (32, 64)],
    "_chunk_scan_chunk_state_bwd_dx_kernel": [(64, 64, 32), (128, 64, 32)],
}


def shorten(modules: list[Any]) -> None:
    """Drop the other configurations of the autotuned kernels in `modules`. A kernel that has none of those listed, in
    another release of mamba-ssm, keeps its own."""
    if os.environ.get("ECHO_LM_MAMBA_AUTOTUNE") == "all":
        return
    for module in modules:
        for name, sizes in SHORTLIST.items():
            kernel = vars(module).get(name)
            if kernel is not None and hasattr(kernel, "configs"):
                kernel.configs = pick(kernel.configs, sizes) or kernel.configs


def pick(configs: list[Any], sizes: list[tuple[int, ...]]) -> list[Any]:
    """The configurations with these block sizes, the first of each."""
    blocks = [tuple(v for k, v in config.kwargs.items() if k.startswith("BLOCK_SIZE")) for config in configs]
    return [configs[blocks.index(size)] for size in sizes if size in blocks]
