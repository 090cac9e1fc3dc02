#!/usr/bin/env bash
# What trains the emoji cascade on a machine without a network, in one folder of less than 64 MiB:
# the code, the emoji as sources and drawn at 64 pixels, and wheels of the packages that a machine
# with JAX, Flax, Optax, Orbax and pyarrow lacks.
#
#   scripts/pack_offline.sh FOLDER [3.12]          the other machine's Python; Linux, x86_64
#
# There, from anywhere, as often as its time allows:
#
#   BUDGET=gpu MINUTES=9 FOLDER/run scripts/train_emoji.sh runs model
#
# Larger pictures, for the upsamplers, are drawn there.
set -euo pipefail
if (($# < 1)); then
    echo "name the folder to pack into: scripts/pack_offline.sh FOLDER" >&2
    exit 2
fi
mkdir -p "$1"
folder=$(cd "$1" && pwd)
version=${2:-3.12}
python=${PYTHON:-python}
cd "$(dirname "$0")/.."

packages=(
    array-record dm-tree docstring-parser etils ftfy googleapis-common-protos grain immutabledict importlib-resources
    portpicker promise regex resvg-py rich safetensors shtab simple-parsing six tensorflow-datasets
    tensorflow-metadata termcolor toml typeguard tyro wcwidth wrapt
)
platforms=()
for name in 2_34 2_31 2_28 2_27 2_24 2_17; do platforms+=(--platform "manylinux_${name}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
mkdir -p "$folder/wheels"
for package in "${packages[@]}"; do
    # A package without a wheel of its own is pure Python, and built here.
    "$python" -m pip download -q --no-deps --only-binary=:all: --python-version "$version" \
        --implementation cp "${platforms[@]}" -d "$folder/wheels" "$package" 2>/dev/null ||
        "$python" -m pip wheel -q --no-deps -w "$folder/wheels" "$package"
done

rm -rf "$folder/code"
mkdir -p "$folder/code"
git archive HEAD -- unclip_jax configs scripts train.py sample.py ':!unclip_jax/assets/models' |
    tar -x -C "$folder/code"
UNCLIP_CACHE="$folder/cache" "$python" -c '
from unclip_jax.data.emoji import build_emoji
build_emoji(64, variants=False)'

cat >"$folder/run" <<'RUN'
#!/usr/bin/env bash
# A command with what was packed: run COMMAND ...
set -euo pipefail
folder=$(cd "$(dirname "$0")" && pwd)
if [[ ! -d $folder/site ]]; then
    python3 -m pip install -q --no-index --no-deps --no-compile --target "$folder/site.part" "$folder"/wheels/*.whl
    mv "$folder/site.part" "$folder/site"
fi
export PYTHONPATH="$folder/site:$folder/code" UNCLIP_CACHE="$folder/cache" PYTHON=${PYTHON:-python3}
cd "$folder/code"
exec "$@"
RUN
chmod +x "$folder/run"
du -sh "$folder"
