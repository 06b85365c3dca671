#!/usr/bin/env bash
# One-machine Slurm for tests: munged + slurmctld + N slurmd (virtual nodes), no systemd,
# no cgroups, no slurmdbd, everything under one state directory.
#   one_machine.sh up   DIR [NNODES]     -> writes DIR/env.sh  (source it)
#   SLURM_PREEMPT=20 ... up: adds a partition "high" that preempts "main" (requeue, grace time 20 s)
#   SLURM_EXTRA='A=b\nC=d' ... up: extra slurm.conf lines
#   one_machine.sh down DIR              -> stops exactly the daemons it started (by pid file)
# Needs the Debian/Ubuntu packages slurm-wlm and munge (22.05 tested), run as root or in a container.
set -euo pipefail
cmd=${1:?up|down}; dir=$(mkdir -p "${2:?state dir}"; cd "$2"; pwd); nn=${3:-1}

alive() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }

stop() { # pid file
  alive "$1" || return 0
  local p; p=$(cat "$1"); kill -TERM "$p" 2>/dev/null || true
  for _ in $(seq 50); do kill -0 "$p" 2>/dev/null || { rm -f "$1"; return 0; }; sleep 0.1; done
  kill -KILL "$p" 2>/dev/null || true; rm -f "$1"
}

if [ "$cmd" = down ]; then
  for f in "$dir"/run/slurmd.*.pid "$dir"/run/slurmctld.pid "$dir"/run/munged.pid; do
    [ -e "$f" ] && stop "$f"; done
  exit 0
fi

mkdir -p "$dir"/{run,log,state}; chmod 755 "$dir" "$dir"/run; umask 022
t0=$(date +%s%N)
# --- munge: own key and own socket, so nothing in /etc is touched
[ -e "$dir/munge.key" ] || { head -c 128 /dev/urandom > "$dir/munge.key"; chmod 600 "$dir/munge.key"; }
munged --force --key-file="$dir/munge.key" --socket="$dir/run/munge.sock" \
  --pid-file="$dir/run/munged.pid" --log-file="$dir/log/munged.log" --seed-file="$dir/run/munge.seed" \
  --num-threads=2
munge -n -S "$dir/run/munge.sock" | unmunge -S "$dir/run/munge.sock" >/dev/null

# --- free ports
read -r -a P < <(python3 - "$nn" <<'PY'
import socket,sys
s=[socket.socket() for _ in range(int(sys.argv[1])+1)]
for x in s: x.bind(("127.0.0.1",0))
print(*[x.getsockname()[1] for x in s])
PY
)
host=$(hostname -s); cpus=$(nproc); mem=$(awk '/MemTotal/{print int($2/1024*0.9)}' /proc/meminfo)
per=$(( cpus / nn )); [ "$per" -ge 1 ] || per=1
{
cat <<C
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${P[0]}
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$dir/run/munge.sock
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdPidFile=$dir/run/slurmd.%n.pid
SlurmdLogFile=$dir/log/slurmd.%n.log
SlurmdSpoolDir=$dir/state/%n
# no cgroups needed
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
# one shared machine: let jobs over-subscribe and start at once
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
# requeue: let jobs restart without the default two minutes' hold
JobRequeue=1
KillWait=5
MinJobAge=300
MessageTimeout=20
SlurmctldTimeout=30
SlurmdTimeout=60
SlurmdParameters=config_overrides
PlugStackConfig=$dir/plugstack.conf
C
names=()
for i in $(seq 1 "$nn"); do
  n=$([ "$nn" = 1 ] && echo "$host" || echo "n$i"); names+=("$n")
  echo "NodeName=$n NodeHostname=$host NodeAddr=127.0.0.1 Port=${P[$i]} CPUs=$per RealMemory=$((mem/nn)) State=UNKNOWN"
done
[ -z "${SLURM_EXTRA:-}" ] || printf '%b\n' "$SLURM_EXTRA"   # e.g. 'PreemptType=preempt/partition_prio\nPreemptMode=REQUEUE'
[ -z "${SLURM_PREEMPT:-}" ] || echo "PartitionName=high Nodes=$(IFS=,; echo "${names[*]}") PriorityTier=10 PreemptMode=off MaxTime=INFINITE State=UP"
echo "PartitionName=main Nodes=$(IFS=,; echo "${names[*]}") Default=YES MaxTime=INFINITE $([ -z "${SLURM_PREEMPT:-}" ] && echo OverSubscribe=FORCE:8 || echo "PriorityTier=1 PreemptMode=REQUEUE GraceTime=${SLURM_PREEMPT}") State=UP"
} > "$dir/slurm.conf"
: > "$dir/plugstack.conf"
echo "export SLURM_CONF=$dir/slurm.conf" > "$dir/env.sh"
export SLURM_CONF=$dir/slurm.conf

slurmctld -c -f "$dir/slurm.conf"
for n in "${names[@]}"; do mkdir -p "$dir/state/$n"; slurmd -N "$n" -f "$dir/slurm.conf"; done
for _ in $(seq 100); do
  [ "$(sinfo -h -N -t idle -o %N 2>/dev/null | sort -u | wc -l)" = "$nn" ] && break; sleep 0.1
done
sinfo -h -N -o '%N %T %c cpu %m MB'
echo "up in $(( ($(date +%s%N)-t0)/1000000 )) ms; source $dir/env.sh"
