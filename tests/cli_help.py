# SPDX-License-Identifier: Apache-2.0
"""The programs, their --help and their manual pages know the same options."""
import os
import re
import subprocess
import sys

TOP, EQAR, EQFS = os.environ["top_srcdir"], os.environ["EQAR"], os.environ["EQFS"]
wrong, cases = [], 0


def check(ok, what):
    global cases
    cases += 1
    if not ok:
        wrong.append(what)


def run(*args):
    return subprocess.run(args, capture_output=True, text=True, timeout=60, check=False)


def options(text):
    """Those of lines that explain one: {"-j", "--jobs", ...}."""
    out = set()
    for line in text.splitlines():
        m = re.match(r"  +((?:-[a-zA-Z],? +)*(?:--[a-z-]+)?)", line)
        if m and line.lstrip().startswith("-"):
            out |= set(re.findall(r"--[a-z-]+|(?<!\S)-[a-zA-Z]\b", m[1]))
    return out


def page(name):
    with open(os.path.join(TOP, "man", name), encoding="utf-8") as f:
        return f.read()


def section(text, head):
    """From a .Ss or .Sh to the next."""
    m = re.search(rf"^\.S[sh] {re.escape(head)}\n(.*?)(?=^\.S[sh] |\Z)", text, re.M | re.S)
    assert m, head
    return m[1]


def flags(text):
    """Options that mdoc(7) marks up in an item's head: -f, --force."""
    out = set()
    for line in re.findall(r"^\.It (Fl .*)", text, re.M):
        for name in re.findall(r"(?:Fl|,) (-?[a-zA-Z][a-z-]*)", line):
            out |= {"-" + name} - {"-Ns"}
    return out


def synopsis(text, command):
    """What the forms of a command show: its letters and words."""
    forms = [f for f in section(text, "SYNOPSIS").split(".Nm\n") if f.startswith(f".Cm {command}\n")]
    assert forms, command
    letters = "".join(re.findall(r"Fl ([a-zA-Z]+)\b", "".join(forms)))
    return {"-" + c for c in letters} | {"-" + w for w in re.findall(r"Fl (-[a-z-]+)", "".join(forms))}


def accepts(program, command, option):
    """Whether a command knows it; without operands it does nothing else."""
    r = run(program, command, f"{option}=x" if option.startswith("--") else option)
    return not re.search("unrecognized option|invalid option", r.stderr)


def check_eqar():
    text = page("eqar.1")
    common = flags(section(text, "Common options"))
    commands = re.findall(r"^  ([a-z]+) ", run(EQAR, "--help").stdout, re.M)
    check(len(commands) == 9, f"commands: {commands}")
    helps = {c: options(run(EQAR, c, "--help").stdout) for c in commands}
    letters = {"-" + c for c in "abcdefghijklmnopqrstuvwxyz"}
    every = set().union(*helps.values(), letters, common, flags(text))
    for c, said in helps.items():
        own = flags(section(text, c))
        policy = {"--bits", "--lambda", "--format", "--include", "--exclude", "--policy"}
        check(len(said) > 1, f"{c}: --help names {said}")
        check(said <= own | common, f"{c}: not in eqar(1): {said - own - common}")
        check(own <= said, f"{c}: in eqar(1) alone: {own - said}")
        shown = synopsis(text, c)
        brief = {o for o in said if len(o) == 2} | {o for o in said & {"--json", "--gpu", "--against"}}
        check(shown == brief, f"{c}: synopsis and --help: {shown ^ brief}")
        # To show what mounts do waits for those there are; it has no operand to lack.
        for o in sorted(every - {"--help"}):
            if c in ("du", "status") and o in said:
                continue
            check(accepts(EQAR, c, o) == (o in said), f"{c} {o}: {'not known' if o in said else 'known, not in --help'}")
        check(not policy & said or policy <= said, f"{c}: some of a policy's options")


def check_eqfs():
    text = page("eqfs.1")
    said = run(EQFS, "--help").stdout
    own = flags(section(text, "DESCRIPTION"))
    check(options(said) == own, f"eqfs: eqfs(1) and --help: {own ^ options(said)}")
    mount = set(re.findall(r"^  ([a-z_][a-z_-]+)(?:[=, ]|$)", said, re.M)) | {"default_permissions"}
    items = re.findall(r"^\.It (Cm .*)", section(text, "Policy") + section(text, "Other options"), re.M)
    known = {w for i in items for w in re.findall(r"Cm ([a-z_-]+)", i)} | {"default_permissions"}
    check(len(mount) > 12, f"eqfs --help: {mount}")
    check(mount <= known, f"not in eqfs(1): {mount - known}")
    check(known - mount <= {"fsname"}, f"in eqfs(1) alone: {known - mount}")  # libfuse's own


check_eqar()
check_eqfs()
print("\n".join(wrong))
print(f"{cases} cases, {len(wrong)} failures")
sys.exit(bool(wrong) or cases < 100)
