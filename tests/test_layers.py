"""What a command must not load: a machine without Ray, MLflow and the readers of data must still train on a finished dataset."""

import subprocess
import sys

MODULES = [
    "pipeline.engine",
    "pipeline.loop",
    "orchestration.cli.main",
    "orchestration.evaluation.by_hand",
    "orchestration.evaluation.generate",
    "orchestration.launch.target",
    "orchestration.launch.train",
    "orchestration.monitor.status",
    "orchestration.studies.cell",
    "orchestration.studies.reporting",
    "orchestration.studies.run",
]


def test_training_loads_neither_ray_nor_mlflow_nor_readers_of_data():
    imports = "".join(f"import echo_lm.{name}\n" for name in MODULES)
    code = f"import sys\n{imports}print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    loaded = {name.split(".")[0] for name in process.stdout.split()}
    assert "torch" in loaded
    assert not loaded & {"ray", "mlflow", "zstandard", "datasets", "fastapi", "uvicorn", "plotly", "jinja2"}
