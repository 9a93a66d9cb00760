#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The Python module on files of a mounted store: it finds the archive behind them, also
through symbolic links, and says so when there is none."""

import os
import sys

# The library is ASan's in such a build: see python_load.py, which runs there.
import subprocess

if "libasan" in subprocess.run(["ldd", os.environ["EQFS_LIBRARY"]], capture_output=True, text=True,
                               check=True).stdout:
    sys.exit(77)

from mount_lib import Mount, model, poll, run, same, save_file, scratch  # noqa: E402

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import eqfs  # noqa: E402


def fails(path, what):
    try:
        eqfs.load_file(path, framework="np")
    except eqfs.EqfsError as e:
        assert what in str(e), f"'{e}' does not say '{what}'"
    else:
        raise AssertionError(f"{path}: loaded")


def test_mounted():
    want = model()
    # A blank and a backslash in the path: mountinfo escapes them.
    with Mount(scratch("a \\store")) as m:
        os.makedirs(m.path("blobs"))
        os.makedirs(m.path("snapshots/main"))
        save_file(want, m.path("blobs/0123"))
        os.symlink("../../blobs/0123", m.path("snapshots/main/model.safetensors"))
        m.settle("blobs/0123")
        assert os.path.exists(m.disk("blobs/0123.eqar"))
        for path in (m.path("blobs/0123"), m.path("snapshots/main/model.safetensors"), m.disk("blobs/0123.eqar")):
            assert same(eqfs.load_file(path, framework="np"), want), path
        with open(m.path("note"), "w", encoding="utf-8") as f:
            f.write("no model")
        fails(m.path("note"), "not encoded")
        fails(m.disk("note"), "not an archive")


def test_not_encoded_yet():
    """The plain file wins over an archive that is older than it."""
    with Mount(scratch("busy"), settle="60") as m:
        save_file(model(), m.path("m.safetensors"))
        poll("the file is there", lambda: os.path.exists(m.disk("m.safetensors")))
        fails(m.path("m.safetensors"), "is a plain file")


if __name__ == "__main__":
    run(globals())
