"""The configurations of mamba-ssm's kernels that are tried."""

import sys
from types import SimpleNamespace

from echo_lm.kernels.ssd.scan import mamba_ssm_kernel
from echo_lm.kernels.ssd.shortlist import SHORTLIST, pick, shorten


def test_every_kernel_of_the_list_exists_and_keeps_what_is_listed():
    assert mamba_ssm_kernel() is not None
    prefix = "mamba_ssm.ops.triton.ssd_"
    modules = [vars(module) for name, module in sys.modules.items() if name.startswith(prefix)]
    for name, sizes in SHORTLIST.items():
        (kernel,) = {id(module[name]): module[name] for module in modules if name in module}.values()
        blocks = [tuple(v for k, v in config.kwargs.items() if k.startswith("BLOCK_SIZE")) for config in kernel.configs]
        assert blocks == sizes, name


def test_a_kernel_without_the_listed_configurations_keeps_its_own(monkeypatch):
    others = [SimpleNamespace(kwargs={"BLOCK_SIZE_H": size}) for size in (3, 5, 4)]
    assert pick(others, [(7,)]) == []
    module = SimpleNamespace(_chunk_cumsum_fwd_kernel=SimpleNamespace(configs=others[:2]))
    shorten([module])
    assert module._chunk_cumsum_fwd_kernel.configs == others[:2]
    module._chunk_cumsum_fwd_kernel.configs = others
    monkeypatch.setenv("ECHO_LM_MAMBA_AUTOTUNE", "all")
    shorten([module])
    assert module._chunk_cumsum_fwd_kernel.configs == others
    monkeypatch.delenv("ECHO_LM_MAMBA_AUTOTUNE")
    shorten([module])
    assert module._chunk_cumsum_fwd_kernel.configs == others[2:]
