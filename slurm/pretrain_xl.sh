#!/bin/bash
# Pre-trains GPT-3 XL (1.3B) at 75% sparsity on 4 nodes x 8 GPUs: TP1, DP32, ZeRO-1, global batch 512, micro-batch 4.
#
#   sbatch slurm/pretrain_xl.sh [key.sub=value ...]        such as sparsity.level=0.5 training.lr=3e-4
#   RUN_DIR=runs/gpt3_xl_s50 sbatch slurm/pretrain_xl.sh sparsity.level=0.5
#
# Submit it from the checkout. Before the time limit it saves and returns to the queue. After any other interruption, the
# same command continues the run. Follow it with: tail -f runs/gpt3_xl_s75/logs/slurm-*.log

# ---- edit from here -------------------------------------------------------------------------------------------------
#SBATCH --job-name=spdf-xl-s75
##SBATCH --account=YOUR_ACCOUNT
##SBATCH --partition=YOUR_PARTITION
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --mem=400G
#SBATCH --time=2-00:00:00
# Saving takes about a minute. Slurm may send the signal up to a minute early.
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append

CONFIG=gpt3_xl_s75
RUN_DIR=${RUN_DIR:-runs/gpt3_xl_s75}
DATA=${DATA:-data/packed}                       # written by `spdf data pack`
PYTHON=${PYTHON:-.venv/bin/python}              # or `python`, after: module load ...; source .../bin/activate

# To run in a container, put these options into SRUN_OPTIONS (pyxis/enroot; recipe in docs/cluster.md).
#   --container-image=/shared/spdf.sqsh --container-mounts=$PWD --container-workdir=$PWD
SRUN_OPTIONS=()

# The network interface between nodes, if NCCL or gloo chooses a wrong one:
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
# ---- to here --------------------------------------------------------------------------------------------------------

cd "$SLURM_SUBMIT_DIR" || exit 2
for WORD in "$@"; do
  case $WORD in run_dir=*) echo "$WORD: name the run folder before the command: RUN_DIR=FOLDER sbatch slurm/pretrain_xl.sh ..."; exit 2 ;; esac
done
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
export PYTHONSAFEPATH=1                         # a file in this folder, such as random.py, must not shadow a module
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1        # a rank ends if a peer is lost, and does not wait forever

# Every rank is one task. All GPUs of a node are visible to its tasks, as NCCL's peer access requires; rank i uses GPU i.
exec "$PYTHON" -m spdf_launcher.batch "$RUN_DIR" \
  srun --kill-on-bad-exit=1 --mpi=none --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --cpu-bind=cores \
  "${SRUN_OPTIONS[@]}" \
  "$PYTHON" -m spdf_launcher.rank pretrain "$CONFIG" \
  run_dir="$RUN_DIR" data.train="$DATA" parallel.tensor=1 parallel.data="$SLURM_NTASKS" parallel.zero_stage=1 "$@"
