"""The configurations of mamba-ssm's kernels that are taken."""

import sys
from types import SimpleNamespace

import pytest

from echo_lm.kernels.ssd.scan import mamba_ssm_kernel
from echo_lm.kernels.ssd.tuning import CHOICES, blocks_of, choose


def test_every_kernel_of_the_list_exists_and_has_the_one_that_is_listed():
    assert mamba_ssm_kernel() is not None
    prefix = "mamba_ssm.ops.triton.ssd_"
    modules = [vars(module) for name, module in sys.modules.items() if name.startswith(prefix)]
    for name, blocks in CHOICES.items():
        (kernel,) = {id(module[name]): module[name] for module in modules if name in module}.values()
        assert [blocks_of(config) for config in kernel.configs] == [blocks], name


def test_the_listed_configuration_is_taken_and_a_kernel_without_it_keeps_its_own(monkeypatch):
    configs = [SimpleNamespace(kwargs={"BLOCK_SIZE_H": size, "other": 1}) for size in (3, 5, 8, 8)]
    kernel = SimpleNamespace(configs=configs[:2])
    module = SimpleNamespace(_chunk_cumsum_fwd_kernel=kernel)
    with pytest.warns(UserWarning, match=r"_chunk_cumsum_fwd_kernel has no blocks of \(8,\)"):
        choose([module])
    assert kernel.configs == configs[:2]
    kernel.configs = configs
    monkeypatch.setenv("ECHO_LM_MAMBA_AUTOTUNE", "all")
    choose([module])
    assert kernel.configs == configs
    monkeypatch.delenv("ECHO_LM_MAMBA_AUTOTUNE")
    choose([module])
    assert kernel.configs == [configs[2]]
