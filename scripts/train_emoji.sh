#!/usr/bin/env bash
# From the SVG sources to the shipped model, no step by hand: CLIP, prior, decoder, export.
#
#   scripts/train_emoji.sh [RUNS] [MODEL]     defaults: runs, unclip_jax/assets/models/emoji
#
# Killed and started again, it continues. About 75 minutes on two CPU cores.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-runs}
model=${2:-unclip_jax/assets/models/emoji}
python=${PYTHON:-python}
# A CPU becomes two devices: two cores are used better so. Accelerators are not touched by this.
export XLA_FLAGS="${XLA_FLAGS:---xla_force_host_platform_device_count=2}"

"$python" train.py configs/emoji/clip.py --workdir "$runs/clip"
"$python" train.py configs/emoji/prior.py --workdir "$runs/prior" --clip "$runs/clip"
"$python" train.py configs/emoji/decoder.py --workdir "$runs/decoder" --clip "$runs/clip"
"$python" -m unclip_jax export --clip "$runs/clip" --prior "$runs/prior" \
    --decoder "$runs/decoder" --out "$model" --steps 30 --guidance 2 --batch-size 4
