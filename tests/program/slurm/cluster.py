"""A SLURM of one node, in its own folder and on its own ports."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ["munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel", "sinfo"]
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=bf_interval=2
MaxArraySize={max_array}
ReturnToService=2
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=8000 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=5
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
"""


def missing():
    """Return why no SLURM can be started here, or None."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]
    if absent:
        return f"SLURM is not installed (Debian: slurm-wlm munge): no {', '.join(absent)}"
    return None if os.geteuid() == 0 else "only root can start slurmd"


def search_path():
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def free_ports(n):
    """Return n free TCP ports of this machine."""
    sockets = [socket.socket() for _ in range(n)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Cluster:
    """Starts munged, slurmctld and slurmd; `env` are the environment variables under which commands find them."""

    def __init__(self, folder, cpus=2, max_array=1001):
        self.folder = Path(folder)
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self.folder.chmod(0o755)
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
        self.env = clean | {"PATH": search_path(), "SLURM_CONF": str(self.folder / "slurm.conf")}
        host = socket.gethostname().split(".")[0]
        config = CONFIG.format(
            host=host, user="root", folder=self.folder, ports=free_ports(2), cpus=cpus, max_array=max_array
        )
        (self.folder / "slurm.conf").write_text(config)
        files = {"socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log", "seed-file": "munge.seed"}
        words = [f"--{option}={self.folder / name}" for option, name in files.items()]
        self.daemons = [self._daemon("munged", "-F", "--force", f"--key-file={key}", *words)]
        self._wait(lambda: (self.folder / "munge.socket").exists(), "munged")
        self.daemons.append(self._daemon("slurmctld", "-D"))
        self._wait(lambda: "UP" in self.run("scontrol", "ping", check=False), "slurmctld")
        self.daemons.append(self._daemon("slurmd", "-D", "-N", host))
        self._wait(lambda: "idle" in self.run("sinfo", "-h", "-o", "%T", check=False), "slurmd")

    def _daemon(self, *words):
        with open(self.folder / f"{words[0]}.out", "w") as out:
            return subprocess.Popen(words, env=self.env, stdout=out, stderr=out)

    def _wait(self, there, what):
        for _ in range(300):
            if there():
                return
            time.sleep(0.1)
        said = "".join(path.read_text()[-2000:] for path in self.folder.glob(f"{what}*.*"))
        self.stop()
        raise RuntimeError(f"{what} does not answer: {said}")

    def run(self, *words, check=True, cwd=None, **env):
        """Run a command against this SLURM; return what it prints."""
        done = subprocess.run(words, env=self.env | env, cwd=cwd, capture_output=True, text=True)
        if check and done.returncode:
            raise RuntimeError(f"{words}: {done.stdout}{done.stderr}")
        return done.stdout

    def start(self, *words, cwd, **env):
        """Start a command as `run` does, until the end of this SLURM at the latest; return it as a subprocess.Popen."""
        self.daemons.append(subprocess.Popen(words, env=self.env | env, cwd=cwd, stdout=subprocess.DEVNULL))
        return self.daemons[-1]

    def stop(self):
        """End all jobs and daemons."""
        self.run("scancel", "--user=root", check=False)
        for _ in range(50):
            if not self.run("squeue", "-h", check=False).strip():
                break
            time.sleep(0.2)
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
