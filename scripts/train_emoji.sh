#!/usr/bin/env bash
# From the SVG sources to a model like the shipped one, no step by hand: CLIP, the priors, decoder,
# upsamplers, export.
#
#   scripts/train_emoji.sh [RUNS] [MODEL]     defaults: runs, unclip_jax/assets/models/emoji
#
#   BUDGET=cpu     the recipes as they are: a night of two CPU cores (the default)
#   BUDGET=gpu     the same recipes with larger batches and more steps, in bfloat16: half an hour of
#                  an H100 is what the steps are meant for
#   MINUTES=9      stop by itself after so long, with everything saved, where a machine is lent for
#                  ten minutes at a time; exit code 143, and the same command goes on
#
# Killed and started again, it continues. The recipes say what each stage took; drawing the pictures
# at 1024 pixels takes another 40 minutes of one CPU core.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-runs}
model=${2:-unclip_jax/assets/models/emoji}
python=${PYTHON:-python}
budget=${BUDGET:-cpu}
# A CPU becomes two devices: two cores are used better so. Accelerators are not touched by this.
export XLA_FLAGS="${XLA_FLAGS:---xla_force_host_platform_device_count=2}"

# What the budget changes in the recipe of a stage.
more() {
    local half="--model.unet.dtype bfloat16"
    case $budget:$1 in
    cpu:*) ;;
    gpu:clip) echo "--steps 3000 --batch_size 512 --model.vision.dtype bfloat16" ;;
    gpu:prior) echo "--steps 15000 --batch_size 256" ;;
    gpu:ar_prior) echo "--steps 8000 --batch_size 256" ;;
    gpu:decoder) echo "--steps 40000 --batch_size 128 --ema_decay 0.9995 $half" ;;
    gpu:upsampler_*) echo "--steps 8000 --batch_size 64 $half" ;;
    *)
        echo "BUDGET is '$budget': give cpu or gpu" >&2
        exit 2
        ;;
    esac
}

# One stage, for no longer than what is left of MINUTES; SIGTERM makes it save.
train() {
    local stage=$1 limit=() changed
    shift
    changed=$(more "$stage")
    if [[ -n ${MINUTES:-} ]]; then
        local left=$((60 * MINUTES - SECONDS))
        if ((left < 1)); then exit 143; fi
        limit=(timeout --preserve-status --signal=TERM "$left")
    fi
    # shellcheck disable=SC2086  # the changes are words
    ${limit[@]+"${limit[@]}"} "$python" train.py "configs/emoji/$stage.py" \
        --workdir "$runs/$stage" "$@" $changed
}

train clip
for stage in prior ar_prior decoder; do
    train "$stage" --clip "$runs/clip"
done
for stage in upsampler_256 upsampler_1024; do
    train "$stage"
done
"$python" -m unclip_jax fit-linear "$runs/clip" --out "$runs/linear_prior"
"$python" -m unclip_jax fit-variance "$runs/prior" --clip "$runs/clip"
"$python" -m unclip_jax export --clip "$runs/clip" --prior "$runs/prior" \
    --ar-prior "$runs/ar_prior" --linear-prior "$runs/linear_prior" --decoder "$runs/decoder" \
    --upsampler-256 "$runs/upsampler_256" --upsampler-1024 "$runs/upsampler_1024" \
    --out "$model" --steps 30 --guidance 2 --batch-size 4
