#!/usr/bin/env bash
# From the SVG sources to a model like the shipped one, no step by hand: CLIP, the priors, decoder,
# upsamplers, export.
#
#   scripts/train_emoji.sh [RUNS] [MODEL]     defaults: runs, unclip_jax/assets/models/emoji
#
# Killed and started again, it continues. The recipes say what each stage took; drawing the pictures
# at 1024 pixels takes another 40 minutes of one CPU core.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-runs}
model=${2:-unclip_jax/assets/models/emoji}
python=${PYTHON:-python}
# A CPU becomes two devices: two cores are used better so. Accelerators are not touched by this.
export XLA_FLAGS="${XLA_FLAGS:---xla_force_host_platform_device_count=2}"

"$python" train.py configs/emoji/clip.py --workdir "$runs/clip"
for stage in prior ar_prior decoder; do
    "$python" train.py "configs/emoji/$stage.py" --workdir "$runs/$stage" --clip "$runs/clip"
done
for stage in upsampler_256 upsampler_1024; do
    "$python" train.py "configs/emoji/$stage.py" --workdir "$runs/$stage"
done
"$python" -m unclip_jax fit-linear "$runs/clip" --out "$runs/linear_prior"
"$python" -m unclip_jax fit-variance "$runs/prior" --clip "$runs/clip"
"$python" -m unclip_jax export --clip "$runs/clip" --prior "$runs/prior" \
    --ar-prior "$runs/ar_prior" --linear-prior "$runs/linear_prior" --decoder "$runs/decoder" \
    --upsampler-256 "$runs/upsampler_256" --upsampler-1024 "$runs/upsampler_1024" \
    --out "$model" --steps 30 --guidance 2 --batch-size 4
