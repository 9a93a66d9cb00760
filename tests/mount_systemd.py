# SPDX-License-Identifier: Apache-2.0
"""What is installed, under a real systemd: the unit started, restarted, killed, failing,
drained and run as a user, fstab at boot and by hand, the journal, a shutdown."""
import errno

from systemd_lib import *

BUILD = os.path.dirname(os.path.realpath(EQFS))
USER = 65534
AUTOMOUNT = os.path.exists("/dev/autofs")


def unit(name, options="allow_other", **files):
    """The files of a store, a mountpoint and a configuration: eqfs@NAME."""
    return {f"etc/eqfs/{name}.conf": f"STORE=/srv/{name}\nMOUNTPOINT=/mnt/{name}\n" +
            (f"OPTIONS={options}\n" if options else ""),
            f"srv/{name}/README": "store\n", f"mnt/{name}/.keep": ""}


def state(s, name):
    return xattr(s.path(f"/mnt/{name}"), "state")


def archived(s, name):
    poll(f"{name} archived", lambda: state(s, name) == "archived")


def damage(path):
    """Change a byte in the middle of an archive."""
    with open(path, "r+b") as f:
        f.seek(os.path.getsize(path) // 2)
        byte = f.read(1)
        f.seek(-1, os.SEEK_CUR)
        f.write(bytes([byte[0] ^ 1]))


def broken_read(s, name):
    """EIO for the reader, and a line that names archive, tensor and chunk in the journal."""
    with raises(errno.EIO):
        read(s.path(f"/mnt/{name}"))
    return poll("in the journal", lambda: [t for t in s.journal().splitlines() if name.rpartition("/")[2] + ".eqar: " in t])


def test_unit():
    """Its life: up when the mount answers, ended by draining, alive after a crash."""
    save_file(model(1), scratch("unit.model"))
    want = sha(scratch("unit.model"))
    with Systemd("unit", BUILD, unit("models")) as s:
        python = configured(BUILD, "PYTHON")
        if python.startswith("/usr/bin/"): # the system's finds the module
            s.run(python, "-c", "import importlib.util as u; assert u.find_spec('eqfs')")
        s.ctl("start", "eqfs@models")
        mnt, store = s.path("/mnt/models"), s.path("/srv/models")
        assert b"eqfs_info" in read(mnt + "/.eqfs/stats") # at once
        for n in ("open", "closed"):
            shutil.copyfile(scratch("unit.model"), f"{mnt}/{n}")
            archived(s, f"models/{n}")
        # Others are let in, and permissions hold.
        os.chmod(mnt + "/closed", 0o600)
        assert s.run("sha256sum", "/mnt/models/open", user=USER).stdout.startswith(want)
        assert "denied" in s.run("cat", "/mnt/models/closed", user=USER, check=False).stderr
        # A crash: it is started again over what is left of the mount.
        first = s.show("eqfs@models", "MainPID")
        s.ctl("kill", "-s", "KILL", "eqfs@models")
        poll("started again", lambda: s.show("eqfs@models", "MainPID") not in ("0", first) and
             s.show("eqfs@models", "ActiveState") == "active")
        assert sha(mnt + "/open") == want and "took away the mount" in s.journal()
        # Busy: a reader in the mount keeps nobody.
        fd = os.open(mnt + "/open", os.O_RDONLY)
        s.ctl("restart", "eqfs@models")
        assert sha(mnt + "/open") == want
        with raises(errno.ENOTCONN):
            os.close(fd)
        # What was just written is encoded before the end when it is due, or is there as it was.
        shutil.copyfile(scratch("unit.model"), mnt + "/last")
        s.ctl("stop", "eqfs@models")
        assert not s.mounted("/mnt/models") and s.show("eqfs@models", "Result") == "success"
        assert {n.removesuffix(".eqar") for n in os.listdir(store)} == {"README", "open", "closed", "last"}
        damage(store + "/open.eqar")
        s.ctl("start", "eqfs@models")
        assert sha(mnt + "/last") == want
        line = broken_read(s, "models/open")[0]
        assert "chunk" in line and "model." in line, line


def test_failures():
    """One line in the journal, no endless starts, and no mount."""
    files = unit("nothing") | unit("wrong", "bits=99") | unit("first") | {
        "etc/eqfs/second.conf": "STORE=/srv/first\nMOUNTPOINT=/mnt/wrong\n"}
    files.pop("srv/nothing/README")
    with Systemd("failures", BUILD, files) as s:
        s.ctl("start", "eqfs@first")
        for name, says, again in (("nothing", "/srv/nothing: No such file or directory", True),
                                  ("wrong", "bits", False), ("second", "mounted already by another eqfs", True)):
            assert s.ctl("start", f"eqfs@{name}", check=False).returncode
            assert says in s.journal(), (name, s.journal())
            poll("tried again" if again else "given up", lambda name=name, again=again:
                 int(s.show(f"eqfs@{name}", "NRestarts")) > 0 if again else
                 s.show(f"eqfs@{name}", "ActiveState") == "failed")
            s.ctl("stop", f"eqfs@{name}")
            assert not s.mounted(f"/mnt/{name}")
        os.mkdir(s.path("/srv/nothing")) # a disk that comes late
        s.ctl("start", "eqfs@nothing")
        assert s.mounted("/mnt/nothing") and s.show("eqfs@first", "ActiveState") == "active"


def test_user():
    """As an ordinary user by what the unit says of that."""
    text = read(os.path.join(BUILD, "tools", "eqfs@.service")).decode()
    assert "add User=NAME and AmbientCapabilities=CAP_SYS_ADMIN" in text
    drop = "[Service]\nUser=nobody\nAmbientCapabilities=CAP_SYS_ADMIN\n"
    with Systemd("user", BUILD, unit("user", "") | {"etc/systemd/system/eqfs@user.service.d/u.conf": drop}) as s:
        s.run("chown", "-R", str(USER), "/srv/user", "/mnt/user")
        s.ctl("start", "eqfs@user")
        status = read(f"/proc/{s.pid}/root/proc/{s.show('eqfs@user', 'MainPID')}/status").decode()
        assert f"Uid:\t{USER}\t{USER}\t{USER}\t{USER}\n" in status and "NoNewPrivs:\t1\n" in status, status
        s.run("sh", "-c", "echo x >/mnt/user/x && stat -c %u /mnt/user/x && cat /mnt/user/README", user=USER)
        assert os.stat(s.path("/srv/user/x")).st_uid == USER
        with raises(errno.EACCES): # root is another
            os.listdir(s.path("/mnt/user"))
        s.ctl("stop", "eqfs@user")
        assert not s.mounted("/mnt/user") and s.show("eqfs@user", "Result") == "success"


def test_fstab():
    """Mounted at boot, by mount -a and by automount; a bad line keeps nobody up; the log of
    a daemon in the background is in the journal."""
    line = "/srv/{0} /mnt/{0} fuse.eqfs {1} 0 0\n"
    fstab = "".join(line.format(*a) for a in (
        ("boot", "defaults,allow_other,nofail"), ("missing", "defaults,nofail"),
        ("later", "defaults,allow_other,noauto,bits=4"),
        ("auto", "noauto,allow_other" + ",x-systemd.automount" * AUTOMOUNT)))
    files = {f"{d}/{n}/.keep": "" for d in ("srv", "mnt") for n in ("boot", "later", "auto")}
    files |= {"etc/fstab": fstab, "mnt/missing/.keep": ""}
    save_file(model(2), scratch("fstab.model"))
    with Systemd("fstab", BUILD, files) as s:
        poll("mounted at boot", lambda: s.mounted("/mnt/boot"))
        assert "/srv/missing: No such file or directory" in s.run("journalctl", "--no-pager").stdout
        s.run("mount", "/mnt/later")
        assert xattr(s.path("/mnt/later"), "policy").startswith("bits=4")
        s.run("mount", "-a", check=False) # which finds nothing to do but the one that is missing
        s.run("umount", "/mnt/later")
        assert not s.mounted("/mnt/later")
        s.ctl("start", "mnt-later.mount")
        s.ctl("stop", "mnt-later.mount")
        poll("its daemon is gone", lambda: not [c for c in s.commands() if "/mnt/later" in c])
        if AUTOMOUNT:
            assert s.mounted("/mnt/auto") # by autofs, and by us when somebody looks
            assert "eqfs_info" in s.run("cat", "/mnt/auto/.eqfs/stats").stdout
        mnt = s.path("/mnt/boot")
        shutil.copyfile(scratch("fstab.model"), mnt + "/m")
        archived(s, "boot/m")
        with open(mnt + "/m", "rb"):
            assert "busy" in s.run("umount", "/mnt/boot", check=False).stderr
        s.run("umount", "/mnt/boot")
        damage(s.path("/srv/boot/m.eqar"))
        s.run("mount", "/mnt/boot")
        assert "chunk" in broken_read(s, "boot/m")[0]


def test_shutdown():
    """All is unmounted in time, and what was written is in the store."""
    files = unit("unit") | {"etc/fstab": "/srv/tab /mnt/tab fuse.eqfs defaults,allow_other 0 0\n",
                            "srv/tab/.keep": "", "mnt/tab/.keep": ""}
    save_file(model(3, rows=1024, cols=1024), scratch("down.model"))
    with Systemd("down", BUILD, files) as s:
        s.ctl("start", "eqfs@unit")
        stores = [os.open(s.path(f"/srv/{n}"), os.O_PATH) for n in ("unit", "tab")]
        for n in ("unit", "tab"):
            poll("mounted", lambda n=n: s.mounted(f"/mnt/{n}"))
            for i in range(4):
                shutil.copyfile(scratch("down.model"), s.path(f"/mnt/{n}/m{i}"))
        s.ctl("halt", "--no-block")
        s.proc.wait(40)
        for fd in stores: # which outlive their namespaces
            for i in range(4):
                base = f"/proc/{os.getpid()}/fd/{fd}/m{i}" # for eqar, too
                if os.path.exists(base + ".eqar"):
                    assert not os.path.exists(base)
                    eqar("unpack", "-q", base + ".eqar", scratch("down.out"))
                    base = scratch("down.out")
                assert sha(base) == sha(scratch("down.model"))
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(scratch("down.out"))
            assert not [n for n in os.listdir(f"/proc/self/fd/{fd}") if n.startswith(".eqfs-tmp")]
            os.close(fd)


why = lacking(BUILD)
if why:
    if "systemd" in os.environ.get("EQFS_TEST_REQUIRE", ""):
        sys.exit(f"{why}, and EQFS_TEST_REQUIRE asks for systemd")
    print("skipped:", why)
    sys.exit(77)
run(globals())
