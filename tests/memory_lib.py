# SPDX-License-Identifier: Apache-2.0
"""Programs that get no memory: tests/fault_alloc.c lets allocations and new threads fail
from one of the places on from which a program asks for them."""
import re

from mount_lib import *

ALLOC = os.environ.get("EQFS_FAULT_ALLOC", "")
# How many fail: the first one there, all of them there, everything from then on.
COUNTS = (1, 0, 10**9)
DEPTH = 14 # of a stack, at most

if not os.path.exists(ALLOC):
    sys.exit("EQFS_FAULT_ALLOC names no library to preload")


def sanitized(program):
    """The address sanitizer needs all the memory there is, and cannot do without any."""
    if b"libasan" not in read(program):
        return False
    print("  not with the address sanitizer, which needs all there is")
    return True


def alloc_env(log, place="", count=0, preload=""):
    """The environment in which count allocations fail from a place on."""
    with open(log, "wb"):
        pass
    return {"LD_PRELOAD": ALLOC + preload, "EQFS_ALLOC_LOG": log,
            **({"EQFS_ALLOC_FAULT": f"{place}:{count}"} if place else {})}


def places_of(log):
    """Those that a run has met, and how many allocations have failed."""
    with open(log, encoding="utf-8", errors="surrogateescape") as f:
        text = f.read()
    return re.findall(r"^([0-9a-f]{16})$", text, re.M), len(re.findall(r"^![0-9a-f]{16}$", text, re.M))


def stack_of(log):
    """Of the first that failed."""
    failed = read(log).decode(errors="replace").partition("!")[2].splitlines()
    return "\n  ".join(["", *(line for line in failed[1:1 + DEPTH] if "(" in line)])


__all__ = [n for n in dir() if not n.startswith("_")]
