"""Train a stage: python train.py configs/emoji/decoder.py --workdir runs/decoder [--steps N ...].

Run the same command again and it continues. `unclip train` is the same.
"""

import sys

try:
    from unclip_jax.cli.main import run
    from unclip_jax.cli.train import main
except KeyboardInterrupt:  # before `run` could say it
    print("stopped", file=sys.stderr)
    sys.exit(130)

if __name__ == "__main__":
    run(main, sys.argv[1:])
