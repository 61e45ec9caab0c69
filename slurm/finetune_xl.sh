#!/bin/bash
# Dense fine-tuning of the pre-trained GPT-3 XL on E2E as an array of 12 cells, one GPU per cell: batch {8, 16, 32, 64} x
# learning rate {1e-4, 5e-5, 2.5e-5}, the paper's grid (appendix A.2). Loading densifies the sparse checkpoint.
#
#   sbatch slurm/finetune_xl.sh [key.sub=value ...]
#   sbatch --dependency=afterok:JOB --kill-on-invalid-dep=yes slurm/finetune_xl.sh      after job JOB of pretrain_xl.sh
#
# Each cell saves before the time limit and returns to the queue. A cell that diverges does not stop the others.
# `spdf run gpt3_xl_e2e --on slurm` runs pre-training, this grid, evaluation, selection and the report as one chain.

# ---- edit from here -------------------------------------------------------------------------------------------------
#SBATCH --job-name=spdf-xl-e2e
##SBATCH --account=YOUR_ACCOUNT
##SBATCH --partition=YOUR_PARTITION
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=12
#SBATCH --mem=64G
#SBATCH --time=12:00:00
#SBATCH --array=0-11%4
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append

CONFIG=finetune/gpt3_xl_e2e
PRETRAINED=${PRETRAINED:-runs/gpt3_xl_s75}
RUNS=${RUNS:-runs/gpt3_xl_s75_e2e}
PYTHON=${PYTHON:-.venv/bin/python}              # or `python`, after: module load ...; source .../bin/activate
BATCHES=(8 16 32 64)
RATES=(1e-4 5e-5 2.5e-5)
SRUN_OPTIONS=()                                 # for a container, see pretrain_xl.sh
# ---- to here --------------------------------------------------------------------------------------------------------

cd "$SLURM_SUBMIT_DIR" || exit 2
for WORD in "$@"; do
  case $WORD in run_dir=*) echo "$WORD: name the folder of all cells before the command: RUNS=FOLDER sbatch slurm/finetune_xl.sh ..."; exit 2 ;; esac
done
CELL=${SLURM_ARRAY_TASK_ID:-0}
BATCH=${BATCHES[$((CELL % ${#BATCHES[@]}))]}
RATE=${RATES[$((CELL / ${#BATCHES[@]}))]}
RUN_DIR="$RUNS/batch=$BATCH,lr=$RATE"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
export PYTHONSAFEPATH=1                         # a file in this folder, such as random.py, must not shadow a module

if ! ls "$PRETRAINED"/checkpoints/step_*/manifest.json >/dev/null 2>&1; then
  echo "no whole checkpoint in $PRETRAINED: pre-train first (slurm/pretrain_xl.sh)"
  exit 2
fi
exec "$PYTHON" -m spdf_launcher.batch "$RUN_DIR" \
  srun --kill-on-bad-exit=1 --mpi=none --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "${SRUN_OPTIONS[@]}" \
  "$PYTHON" -m spdf_launcher.rank finetune "$CONFIG" \
  run_dir="$RUN_DIR" finetune.checkpoint="$PRETRAINED" \
  training.global_batch_size="$BATCH" training.micro_batch_size=8 training.lr="$RATE" "$@"
