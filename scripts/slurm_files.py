"""The files of a SLURM cluster of two nodes on one machine, as SLURM 22.05 and later read them."""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import socket
from pathlib import Path

from cluster_parts import free_ports, private

NODES = ("n1", "n2")

SLURM_CONF = """\
# Its jobs' numbers begin with 1 again
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={slurmctld_port}
SlurmUser={user}
SlurmdUser={user}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
CredType=cred/munge
# How long a requeued job waits is the lifetime of a credential
AuthInfo=socket={folder}/munge/munge.sock,cred_expire=10
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool.%n
SlurmdLogFile={folder}/log/slurmd.%n.log
SlurmdParameters=config_overrides
SlurmdTimeout=10
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
JobRequeue=1
ReturnToService=2
KillWait=5
MinJobAge=3600
PropagateResourceLimits=NONE
DefMemPerCPU={memory_of_cpu_mb}
{accounting}
{nodes}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=debug Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
PartitionName=grace Nodes=n[1-2] GraceTime=30 MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=n[1-2] PriorityTier=10 MaxTime=INFINITE State=UP
"""
WITHOUT_ACCOUNTING = "AccountingStorageType=accounting_storage/none\nJobAcctGatherType=jobacct_gather/none"
WITH_ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={slurmdbd_port}
AccountingStoragePass={folder}/munge/munge.sock
JobAcctGatherType=jobacct_gather/linux"""
SLURMDBD_CONF = """\
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={slurmdbd_port}
SlurmUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/munge.sock
PidFile={folder}/slurmdbd.pid
LogFile={folder}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mariadb_port}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm_acct_db
"""
ACCOUNTS_SQL = """\
CREATE DATABASE IF NOT EXISTS slurm_acct_db;
CREATE USER IF NOT EXISTS 'slurm'@'127.0.0.1' IDENTIFIED BY '{password}';
CREATE USER IF NOT EXISTS 'slurm'@'localhost' IDENTIFIED BY '{password}';
GRANT ALL ON slurm_acct_db.* TO 'slurm'@'127.0.0.1';
GRANT ALL ON slurm_acct_db.* TO 'slurm'@'localhost';
"""


def write_files(folder: Path, accounting: bool) -> None:
    """A new cluster's configuration, with a key and ports of its own."""
    for old in ("munge", "state", "mariadb", "log", *(f"spool.{node}" for node in NODES)):
        shutil.rmtree(folder / old, ignore_errors=True)
    for new in ("munge", "state", "log"):
        (folder / new).mkdir(parents=True)
    slurmctld_port, slurmdbd_port, mariadb_port, *node_ports = free_ports(3 + len(NODES))
    memory_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 // len(NODES)
    host = socket.gethostname().split(".")[0]
    values = {"name": f"tl{secrets.token_hex(3)}", "folder": folder, "user": getpass.getuser()}
    nodes = [
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory={memory_mb}"
        for node, port in zip(NODES, node_ports, strict=True)
    ]
    values |= {"slurmdbd_port": slurmdbd_port, "mariadb_port": mariadb_port, "password": secrets.token_hex(16)}
    private(folder / "munge" / "munge.key", secrets.token_bytes(128))
    if accounting:
        private(folder / "slurmdbd.conf", SLURMDBD_CONF.format_map(values).encode())
        private(folder / "accounts.sql", ACCOUNTS_SQL.format_map(values).encode())
    else:
        (folder / "slurmdbd.conf").unlink(missing_ok=True)
    (folder / "slurm.conf").write_text(
        SLURM_CONF.format(
            host=host,
            slurmctld_port=slurmctld_port,
            memory_of_cpu_mb=memory_mb // 2,
            nodes="\n".join(nodes),
            accounting=WITH_ACCOUNTING.format_map(values) if accounting else WITHOUT_ACCOUNTING,
            **values,
        )
    )


def value(path: Path, key: str) -> str:
    """Of a line ``key=value``."""
    (found,) = (line.partition("=")[2] for line in path.read_text().splitlines() if line.startswith(f"{key}="))
    return found
