# SPDX-License-Identifier: Apache-2.0
"""A systemd of our own as process 1 of a few namespaces, on an overlay of the root
directory into which the build was installed; nothing that it does is seen outside."""
import subprocess

from mount_lib import *

INIT = "/lib/systemd/systemd"

# $1: an empty directory, $2: the build. Becomes process 1 of its namespaces; what is
# between the overlay and the pivot is what systemd asks of whoever runs it in a container.
BOOT = """set -e
mount -t tmpfs -o mode=755 tmpfs $1
mkdir $1/upper $1/work $1/root
mount -t overlay -o lowerdir=/,upperdir=$1/upper,workdir=$1/work overlay $1/root
cd $1/root
make -s -C "$2" install DESTDIR=$1/root >/dev/null
for d in proc sys run tmp dev; do mkdir -p $d; done
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 run run
mount -t tmpfs -o mode=1777 tmp tmp
mount -t tmpfs -o mode=755 dev dev
for d in null zero full random urandom tty fuse autofs; do
	[ ! -e /dev/$d ] || { touch dev/$d; mount --bind /dev/$d dev/$d; }
done
chmod 666 dev/fuse
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
mount -t tmpfs shm dev/shm
ln -s pts/ptmx dev/ptmx
cp -a $3/. .
pivot_root . mnt
umount -l /mnt
exec env -i container=eqfs PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \\
	/lib/systemd/systemd --unit=eqfs-test.target --log-level=warning --show-status=0
"""

# The host's other services stay out of it.
TARGET = "[Unit]\nRequires=sysinit.target\nAfter=sysinit.target local-fs.target\n"


def cgroup_top():
    """Where version 2 is mounted, by itself or beside version 1, or None."""
    with open("/proc/self/mountinfo", encoding="utf-8") as f:
        tops = [s.split()[4] for s in f if " - cgroup2 " in s]
    return next((t for t in tops if os.access(t, os.W_OK)), None)


def configured(build, name):
    with open(os.path.join(build, "config.log"), encoding="utf-8") as f:
        return next(line.split("'")[1] for line in f if line.startswith(name + "='"))


def lacking(build):
    """Why there can be none here, or None."""
    prefix = configured(build, "prefix")
    if prefix not in ("/usr", "/usr/local"):
        return "systemd does not look for units in " + prefix
    if os.geteuid():
        return "not root"
    if not os.path.exists(INIT) or not shutil.which("unshare"):
        return "no systemd"
    if not cgroup_top():
        return "no writable cgroup2"
    r = subprocess.run(["unshare", "--pid", "--mount", "--uts", "--ipc", "--cgroup", "--fork", "sh", "-ec",
                        "mount -t tmpfs t $1; mkdir $1/u $1/w $1/r; mount -t overlay -o "
                        "lowerdir=/,upperdir=$1/u,workdir=$1/w o $1/r", "sh", TMP], capture_output=True, check=False)
    if r.returncode:
        return "no overlay of the root directory in namespaces"
    try: # in containers of many kinds it does not come up, eqfs or not
        with Systemd("probe", build, {}):
            return None
    except AssertionError as e:
        return f"systemd does not boot here: {e}"


class Systemd:
    """files: {path: text}, put over the root directory before it starts. A context manager."""

    def __init__(self, name, build, files):
        self.log = scratch(name + ".log")
        self.cgroup = os.path.join(cgroup_top(), os.path.basename(TMP) + "-" + name)
        top, more = scratch(name), scratch(name + ".files")
        os.makedirs(top)
        for path, text in {"etc/systemd/system/eqfs-test.target": TARGET, "etc/fstab": "", **files}.items():
            os.makedirs(os.path.dirname(os.path.join(more, path)), exist_ok=True)
            with open(os.path.join(more, path), "w", encoding="utf-8") as f:
                f.write(text)
        os.mkdir(self.cgroup)
        with open(self.log, "wb") as log:
            self.proc = subprocess.Popen(
                ["sh", "-ec", 'echo 0 >"$0/cgroup.procs"; exec unshare --pid --mount --uts --ipc --cgroup --fork '
                 '--kill-child --propagation private sh -c "$@"', self.cgroup, BOOT, "sh", top,
                 os.path.realpath(build), more], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.pid = None

    def __enter__(self):
        try:
            self.pid = poll("process 1", self.init)
            poll("booted", lambda: self.run("systemctl", "is-active", "eqfs-test.target", check=False).returncode == 0)
        except BaseException:
            print("log of systemd:\n" + read(self.log).decode(errors="replace"))
            self.__exit__()
            raise
        return self

    def init(self):
        assert self.proc.poll() is None, read(self.log).decode(errors="replace")
        for pid in read(f"/proc/{self.proc.pid}/task/{self.proc.pid}/children").split():
            if read(f"/proc/{int(pid)}/comm") == b"systemd\n":
                return int(pid)
        return None

    def __exit__(self, *exc):
        self.proc.kill() # and with it, all
        self.proc.wait(30)
        poll("no process left", self.remove_cgroups)

    def remove_cgroups(self):
        try:
            for d, _, _ in os.walk(self.cgroup, topdown=False):
                os.rmdir(d)
        except OSError:
            return False # somebody in there is about to end
        return True

    def run(self, *args, check=True, user=None):
        """A command in there."""
        how = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
        r = subprocess.run(["nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-p", "-C", "-r", "-w", *how, *args],
                           capture_output=True, text=True, check=False, timeout=120, stdin=subprocess.DEVNULL)
        assert not check or r.returncode == 0, (args, r.returncode, r.stdout, r.stderr)
        return r

    def ctl(self, *args, **how):
        return self.run("systemctl", "--no-pager", *args, **how)

    def show(self, unit, what):
        return self.ctl("show", "--value", "-p", what, unit).stdout.strip()

    def path(self, path):
        """That of a file in there, seen from here."""
        return f"/proc/{self.pid}/root{path}"

    def journal(self):
        self.run("journalctl", "--sync")
        return self.run("journalctl", "--no-pager", "-o", "cat", "-t", "eqfs").stdout

    def commands(self):
        """The command lines of all processes."""
        found = []
        for pid in filter(str.isdigit, os.listdir(self.path("/proc"))):
            with contextlib.suppress(OSError):
                found.append(read(self.path(f"/proc/{pid}/cmdline")).replace(b"\0", b" ").decode())
        return found

    def mounted(self, path):
        with open(f"/proc/{self.pid}/mountinfo", encoding="utf-8") as f:
            return any(s.split()[4] == path for s in f)
