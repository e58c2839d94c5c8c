"""Nothing listens to the network, strangers' folders and pickles are not opened, a configuration runs nothing."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch

from echo_lm.models import build_model, from_pretrained, save_pretrained
from echo_lm.models.common.errors import UserError
from echo_lm.orchestration.jobs.cluster import make_token
from echo_lm.pipeline.config import load_config
from echo_lm.pipeline.run.folder import RunFolder

LOCAL_CLUSTER = textwrap.dedent("""
    import os, psutil, subprocess, sys
    from pathlib import Path
    from echo_lm.orchestration.jobs.cluster import ray_cluster

    with ray_cluster():
        import ray
        ray.get(ray.remote(lambda: 1).remote())
        me = psutil.Process()
        listening = []
        for process in [me, *me.children(recursive=True)]:
            try:
                name, connections = process.name(), process.net_connections()
            except psutil.NoSuchProcess:  # it ended since it was listed
                continue
            listening += [(name, connection.laddr.ip) for connection in connections if connection.status == "LISTEN"]
        assert any(name == "gcs_server" for name, _ in listening), listening
        outside = [entry for entry in listening if entry[1].removeprefix("::ffff:") not in ("127.0.0.1", "::1")]
        assert not outside, outside
        assert ray._private.authentication.authentication_utils.is_token_auth_enabled()
        stranger = f"import ray; ray.init(address={ray.get_runtime_context().gcs_address!r}, log_to_driver=False)"
        wrong = os.environ | {"RAY_AUTH_TOKEN": "0" * 64}
        refused = subprocess.run([sys.executable, "-c", stranger], env=wrong, capture_output=True, text=True, timeout=120)
        assert refused.returncode, refused.stdout
        assert "uthenticat" in refused.stderr, refused.stderr
    print(oct((Path.home() / ".ray" / "auth_token").stat().st_mode & 0o777))
""")


def test_a_cluster_of_ours_listens_on_loopback_and_wants_the_token(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    environment["HOME"] = str(tmp_path)
    process = subprocess.run(
        [sys.executable, "-c", LOCAL_CLUSTER], env=environment, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.split()[-1] == "0o600"


def test_without_a_home_the_token_is_that_of_the_cluster_alone(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    make_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


def test_a_run_of_another_user_is_refused_without_trust(tmp_path, smoke, data_root, monkeypatch):
    """Only root can give a folder away, so it is the reader who becomes another one."""
    config = smoke()
    run = RunFolder(tmp_path / "smoke")
    run.prepare(config, data_root / config.data.name)
    run.check(config)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(UserError, match=rf"belongs to another user \(uid {owner}, you are {owner + 1}\).*--trust"):
        run.check(config)
    run.check(config, trust=True)


class Bomb:
    """Runs code in whoever unpickles it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_only_safetensors_are_read(tmp_path, smoke):
    model = build_model(smoke().model.resolve(vocab_size=512), seed=0)
    save_pretrained(model, tmp_path / "model")
    exploded = tmp_path / "exploded"
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save({"weight": Bomb(exploded)}, tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors is missing"):
        from_pretrained(tmp_path / "model")
    torch.save({"weight": Bomb(exploded)}, tmp_path / "model" / "model.safetensors")
    with pytest.raises(UserError, match="is damaged"):
        from_pretrained(tmp_path / "model")
    assert not exploded.exists()


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "a-${oc.decode:1}", "${oc.create:{}}"])
def test_a_configuration_calls_nothing(value, tmp_path):
    with pytest.raises(UserError, match="calls a resolver") as raised:
        load_config("smoke", [f"name='{value}'"])
    assert "\n" not in str(raised.value)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"name: '{value}'\n")
    with pytest.raises(UserError, match="calls a resolver"):
        load_config(recipe)


def test_a_configuration_may_point_into_itself():
    assert load_config("smoke", ["run.checkpoint_every=${train.steps}"]).run.checkpoint_every == 30


def test_a_recipe_with_python_in_it_is_refused(tmp_path):
    exploded = tmp_path / "exploded"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"name: !!python/object/apply:os.system ['touch {exploded}']\n")
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(recipe)
    assert not exploded.exists()
