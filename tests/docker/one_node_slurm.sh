#!/usr/bin/env bash
# A Slurm of one node on this machine, for the test of docker/slurm.sbatch. Needs root and Debian's slurm-wlm and munge.
#
#   one_node_slurm.sh FOLDER    starts it, with its state in FOLDER; the ids of its daemons are in FOLDER/*.pid
set -euo pipefail
folder=${1:?usage: one_node_slurm.sh FOLDER}
name=$(hostname -s)
mkdir -p "$folder"/{state,spool} /run/munge /etc/slurm
chown munge:munge /run/munge
if [ ! -S /run/munge/munge.socket.2 ]; then
    [ -f /etc/munge/munge.key ] || head -c 1024 /dev/urandom >/etc/munge/munge.key
    chown munge:munge /etc/munge/munge.key
    chmod 400 /etc/munge/munge.key
    setpriv --reuid=munge --regid=munge --clear-groups munged
fi
cat >/etc/slurm/slurm.conf <<EOF
ClusterName=one
SlurmctldHost=$name(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
NodeName=$name NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=main Nodes=$name Default=YES MaxTime=INFINITE State=UP
EOF
slurmctld
slurmd
