#!/usr/bin/env bash
# A SLURM cluster of one node on this machine, in a folder of its own.
#
#     slurm.sh start FOLDER      prints the line that tells SLURM's commands of it
#     slurm.sh stop FOLDER
set -euo pipefail
folder=$(realpath -m "$2")

start() {
    mkdir -p "$folder"/{state,spool,log,munge}
    host=$(hostname -s)
    # Munge wants folders that nobody else may write to, up to the root: /run and the like will do.
    if ! munge -n >/dev/null 2>&1; then
        mkdir -p /run/munge && chmod 755 /run/munge
        [ -f /etc/munge/munge.key ] || dd if=/dev/urandom of=/etc/munge/munge.key bs=1024 count=1
        chmod 400 /etc/munge/munge.key
        munged --force --pid-file="$folder/munge/munged.pid" --log-file="$folder/munge/munged.log"
    fi
    cat > "$folder/slurm.conf" <<CONF
ClusterName=memjax
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
CryptoType=crypto/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MailProg=/bin/true
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
KillWait=10
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
    export SLURM_CONF=$folder/slurm.conf
    slurmctld
    slurmd
    for _ in $(seq 60); do
        if sinfo -h -o %T 2>/dev/null | grep -q idle; then
            echo "export SLURM_CONF=$folder/slurm.conf"
            return
        fi
        sleep 0.5
    done
    tail -n 20 "$folder"/log/*.log >&2
    exit 1
}

stop() {
    for name in slurmd slurmctld munge/munged; do
        [ -f "$folder/$name.pid" ] || continue
        pid=$(cat "$folder/$name.pid")
        kill "$pid" || continue
        # The next one needs its port.
        for _ in $(seq 100); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
    done
}

"$1"
