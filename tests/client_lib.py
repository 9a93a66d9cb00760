# SPDX-License-Identifier: Apache-2.0
"""What the tests of clients share: running them, and waiting for what they left in a mount."""
import os
import subprocess


def call(*args, **how):
    """Its standard output; it must succeed."""
    r = subprocess.run([os.fspath(a) for a in args], capture_output=True, text=True, check=False, timeout=300, **how)
    assert r.returncode == 0, (args, r.stdout[-2000:], r.stderr[-2000:])
    return r.stdout


def settle_models(m, top, n):
    """All models below a directory of the mount are encoded; links are followed."""
    real = {os.path.realpath(os.path.join(d, f)) for d, _, names in os.walk(top) for f in names
            if f.endswith(".safetensors")}
    assert len(real) == n, real
    for path in real:
        m.settle(os.path.relpath(path, m.point))


def hub_env(hub, home):
    return {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": home, "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1"}
