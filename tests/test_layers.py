"""What a command must not load: a training worker without Ray and MLflow installed must still train."""

import subprocess
import sys

MODULES = [
    "pipeline.engine",
    "pipeline.train",
    *(
        f"orchestration.{name}"
        for name in ("cli", "evaluate", "generate", "status", "study", "study_report", "target", "train")
    ),
]


def test_training_loads_neither_ray_nor_mlflow():
    imports = "".join(f"import echo_lm.{name}\n" for name in MODULES)
    code = f"import sys\n{imports}print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "torch" in loaded
    assert not loaded & {"ray", "mlflow", "fastapi", "uvicorn", "plotly", "jinja2"}
