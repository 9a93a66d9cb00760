#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A quantised file loses nothing more until somebody writes to it."""

import os

from mount_lib import Mount, model, poll, run, scratch, sha, xattr
from safetensors.numpy import save_file


def quantised(name):
    """A mount of a store that holds m.safetensors at 4 bits; and what it reads as."""
    m = Mount(scratch(name), "bits=4")
    save_file(model(), m.path("m.safetensors"))
    m.settle("m.safetensors")
    assert 3 < float(xattr(m.path("m.safetensors"), "bits")) < 5
    return m, sha(m.path("m.safetensors"))


def test_open_for_writing():
    """Opened for writing and closed: plain again, the same bytes, and left so."""
    m, before = quantised("untouched")
    with m:
        with open(m.path("m.safetensors"), "r+b"):
            pass
        assert m.state("m.safetensors") == "plain"
        assert sha(m.path("m.safetensors")) == before
    with Mount(scratch("untouched"), "bits=4") as m:
        os.sync()
        # Whatever a new mount finds to do, it has not queued this.
        poll("mounted again", lambda: os.path.exists(m.path("m.safetensors")))
        assert m.state("m.safetensors") == "plain"
        assert sha(m.path("m.safetensors")) == before


def test_write():
    """Really written to: encoded again."""
    m, _ = quantised("written")
    with m:
        with open(m.path("m.safetensors"), "r+b") as f:
            head = f.read(64)
            f.seek(0)
            f.write(head)
        m.settle("m.safetensors")


def test_save_again():
    """Saving over it is a new file."""
    m, before = quantised("again")
    with m:
        save_file(model(seed=9), m.path("m.safetensors"))
        m.settle("m.safetensors")
        assert sha(m.path("m.safetensors")) != before


if __name__ == "__main__":
    run(globals())
