# SPDX-License-Identifier: Apache-2.0
"""What memory eqar takes does not grow with the file, nor with a tensor unless that is
quantised. With 4 threads; each has some of its own."""
import os
import subprocess
import sys
import tempfile

EQAR, GEN = os.environ["EQAR"], os.path.join(os.environ["top_srcdir"], "tests", "gen_model.py")
MIB = 1 << 20
FEW = 96 * MIB          # of a program that has its buffers and nothing else
wrong = []


def peak(*args):
    """Resident bytes at most."""
    with open(os.devnull, "wb") as null:
        p = subprocess.Popen([EQAR, *args], stdout=null)
    _, status, usage = os.wait4(p.pid, 0)
    p.returncode = os.waitstatus_to_exitcode(status)
    assert p.returncode == 0, args
    return usage.ru_maxrss * 1024


def check(what, most, *args):
    got = peak(*args)
    print(f"{what}: {got / MIB:.0f} MiB of {most / MIB:.0f}")
    if got > most:
        wrong.append(what)


with open(EQAR, "rb") as program:
    if b"libasan" in program.read():
        print("not with the address sanitizer, whose own memory this would be")
        sys.exit(77)
with tempfile.TemporaryDirectory() as tmp:
    def path(name):
        return os.path.join(tmp, name)

    # One tensor is all of it: 128 MiB.
    large, tensor = path("large"), "model.layers.0.mlp.up_proj.weight:BF16:8192x8192"
    subprocess.run([sys.executable, GEN, "--tensor", tensor, large], check=True)
    check("pack", FEW, "pack", "-j4", large)
    check("unpack", FEW, "unpack", "-f", "-j4", large + ".eqar", path("back"))
    check("unpack -c", FEW, "unpack", "-c", "-j4", large + ".eqar")
    check("verify", FEW, "verify", "-j4", "--against", large, large + ".eqar")
    check("pack -r", FEW, "pack", "-r", "-j4", tmp)
    check("unpack -r", FEW, "unpack", "-r", "-j4", tmp)
    # It is in memory, and a byte a weight beside it.
    check("pack --lambda", 3 * 64 * MIB + FEW, "pack", "-f", "-j4", "--lambda=14.5", large)
    check("unpack, quantised", FEW, "unpack", "-f", "-j4", large + ".eqar", path("back"))
    os.unlink(large + ".eqar")
    check("pack --dry-run", FEW, "pack", "-n", "-j4", "--bits=4", large)
sys.exit(f"more memory than that: {', '.join(wrong)}" if wrong else 0)
