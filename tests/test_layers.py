"""The layering of the folders, and what must not be loaded."""

import subprocess
import sys

COMMAND_MODULES = ("train", "generate", "status", "evaluate", "target", "cli")


def test_training_loads_neither_ray_nor_mlflow():
    code = (
        "import sys, importlib\n"
        "for name in %r: importlib.import_module('echo_lm.orchestration.' + name)\n"
        "importlib.import_module('echo_lm.pipeline.engine')\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'ray', 'mlflow'}))\n" % (COMMAND_MODULES,)
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[]"
