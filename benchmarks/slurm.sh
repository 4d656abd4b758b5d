#!/usr/bin/env bash
# Training and prediction under a real SLURM of two hosts, each with a network and a name of its own, on one machine:
#     benchmarks/slurm.sh FOLDER
# as root on Linux, with Debian's slurm-wlm, munge and iproute2, and squidiff on the PATH. All is done in namespaces, so
# that nothing of it outlives the command; FOLDER gets what the jobs say.
set -euo pipefail

folder=$(mkdir -p "$1" && cd "$1" && pwd)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ "${2:-}" != inside ]; then
    exec unshare --mount --net --uts --pid --fork --kill-child --mount-proc "$here/$(basename "$0")" "$folder" inside
fi
cd "$folder"
export SLURM_CONF=$folder/slurm.conf
schema="--condition-key condition --control control --context-key cell_type"

# --- the cluster

hostname head
printf '127.0.0.1 localhost\n10.77.0.1 head\n10.77.0.11 n1\n10.77.0.12 n2\n' >hosts
mount --bind hosts /etc/hosts
ip link add bridge type bridge
ip addr add 10.77.0.1/24 dev bridge
ip link set lo up
ip link set bridge up
cat >slurm.conf <<END
ClusterName=two
SlurmctldHost=head(10.77.0.1)
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldPidFile=$folder/slurmctld.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
NodeName=n1 NodeAddr=10.77.0.11 CPUs=2
NodeName=n2 NodeAddr=10.77.0.12 CPUs=2
PartitionName=all Nodes=n1,n2 Default=YES State=UP
END
echo 'CgroupPlugin=cgroup/v1' >cgroup.conf
mkdir -p state spool.n1 spool.n2 munge
chown munge munge
su -s /bin/sh munge -c "munged --socket=$folder/munge/socket --pid-file=$folder/munge/pid --log-file=$folder/munge/log --seed-file=$folder/munge/seed"
slurmctld -D >slurmctld.log 2>&1 &
for i in 1 2; do
    unshare --net --uts sh -c "hostname n$i; ip link set lo up; exec sleep infinity" &
    host=$!
    sleep 0.5
    ip link add "port$i" type veth peer name eth0 netns "$host"
    ip link set "port$i" master bridge up
    nsenter --net --target "$host" sh -c "ip addr add 10.77.0.1$i/24 dev eth0; ip link set eth0 up"
    nsenter --net --uts --target "$host" slurmd -D -N "n$i" >"slurmd.n$i.log" 2>&1 &
done
for _ in $(seq 30); do
    sinfo --noheader --states=idle --format=%D 2>/dev/null | grep -q 2 && break
    sleep 1
done
sinfo

# --- the work

job() { # NAME COMMAND: runs it as a batch job of two tasks on each host, and says what it said
    echo "--- $1"
    sbatch --wait --quiet --nodes=2 --ntasks-per-node=2 --output="$1.txt" --wrap "$2" || true
    grep -v 'socket.cpp' "$1.txt" || true # that a host has no name server
}

python - <<'END'
import squidiff

squidiff.simulate_perturbation(n_cells=500, conditions=("drug", "other")).write_h5ad("raw.h5ad")
END
squidiff prepare raw.h5ad $schema --normalize --out train.h5ad
printf 'cell_type,condition,n_cells\ntype A,drug,900\ntype B,other,700\n' >queries.csv
train="squidiff train train.h5ad $schema --batch-size 256 --n-train-steps 300 --log-every-steps 10"
both="--devices 2 --nodes 2"

job whole "srun -n2 $train --out whole --nodes 2"
job stopped "srun -n2 $train --out stopped --nodes 2 & timeout 60 sh -c 'until [ -s stopped/metrics.jsonl ]; do sleep 1; done'; scancel --signal=TERM \$SLURM_JOB_ID.0; wait"
job resumed "srun -n2 $train --out stopped --nodes 2 --resume"
cmp whole/model.safetensors stopped/model.safetensors && echo "the weights are those of the run that was not stopped"
job killed "srun $train --out killed $both & timeout 60 sh -c 'until [ -s killed/metrics.jsonl ]; do sleep 1; done'; pkill -9 -n -f 'out [k]illed'; wait"
job predicted "srun squidiff predict whole --source train.h5ad --queries queries.csv --out four.h5ad $both"
squidiff predict whole --source train.h5ad --queries queries.csv --out one.h5ad
python - <<'END'
import anndata as ad
import numpy as np

four, one = (ad.read_h5ad(f"{name}.h5ad").to_df() for name in ("four", "one"))
print("four processes predict what one does, but for", float(np.abs(four - one).to_numpy().max()))
END
few="squidiff train train.h5ad $schema --n-train-steps 20 --devices 2"
job beside "srun --overlap -N1 -n2 -w n2 $few --out a & srun --overlap -N1 -n2 -w n2 $few --out b; wait"
job without-srun "$few --out c"
job wrong "srun -N1 -n1 $few --out d --nodes 2"
