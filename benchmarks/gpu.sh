#!/usr/bin/env bash
# All benchmarks beside PyTorch on a machine with one NVIDIA GPU and no network, in pieces of less
# than ten minutes each.
#
#   benchmarks/gpu.sh pack FOLDER     with a network: what the other machine lacks, under 64 MiB
#   FOLDER/run benchmarks/gpu.sh PIECE [OUT]
#
# PIECE is sampling-prior, sampling-decoder, sampling-upsampler, training, roofline, emoji, memory,
# startup or all, which runs one after the other. Results are JSON in OUT (benchmarks/results/gpu). The other
# machine has Python 3.12, torch 2.11 or newer and JAX with CUDA; diffusers travels as a wheel.
# Karlo is run at full size in bfloat16. WIDTH=0.125 DEVICE=cpu tries everything out without a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
piece=${1:-}
python=${PYTHON:-python}
device=${DEVICE:-cuda}
width=${WIDTH:-1}
dtype=bfloat16
if [[ $device == cpu ]]; then dtype=float32; fi

pack() {
    local folder=$1
    PYTHON=$python scripts/pack_offline.sh "$folder" 3.12
    for package in diffusers dalle2-pytorch; do
        "$python" -m pip download -q --no-deps --only-binary=:all: -d "$folder/wheels" "$package"
    done
    mkdir -p "$folder/code/unclip_jax/assets/models"
    git archive HEAD -- benchmarks unclip_jax/assets/models/emoji | tar -x -C "$folder/code"
    du -sh "$folder"
}

case $piece in
pack)
    pack "${2:?name the folder to pack into}"
    exit
    ;;
esac
out=${2:-benchmarks/results/gpu}
mkdir -p "$out"
weights=$out/karlo-$width
steps=(25 25 7)
batches=(1 4 16)
rounds=5
training_batch=32
if [[ $device == cpu ]]; then steps=(3 3 2) batches=(1 2) rounds=1 training_batch=2; fi
karlo=(--width "$width" --weights "$weights" --device "$device")

case $piece in
sampling-*)
    "$python" benchmarks/sampling.py "${karlo[@]}" --stages "${piece#sampling-}" --dtype "$dtype" \
        --batches "${batches[@]}" --steps "${steps[@]}" --rounds "$rounds" --out "$out/$piece.json"
    ;;
training)
    "$python" benchmarks/training.py --width "${WIDTH:-0.5}" --weights "$out/karlo-training" \
        --device "$device" --dtype "$dtype" --batch "$training_batch" --rounds "$rounds" \
        --out "$out/training.json"
    ;;
roofline)
    "$python" benchmarks/roofline.py --width "$width" --weights "$weights" --dtype "$dtype" \
        --batch "${batches[-1]}" --steps "${steps[@]}" --rounds "$rounds" --out "$out/roofline.json"
    ;;
emoji) "$python" benchmarks/emoji.py --rounds "$rounds" --out "$out/emoji.json" ;;
memory) "$python" benchmarks/memory.py "${karlo[@]}" --batch 4 --out "$out/memory.json" ;;
startup) "$python" benchmarks/startup.py --rounds 1 --out "$out/startup.json" ;;
all)
    for one in sampling-prior sampling-decoder sampling-upsampler training roofline emoji memory \
        startup; do
        "$0" "$one" "$out"
    done
    ;;
*)
    echo "PIECE is '$piece': give pack, sampling-prior, sampling-decoder, sampling-upsampler," \
        "training, roofline, emoji, memory, startup or all" >&2
    exit 2
    ;;
esac
