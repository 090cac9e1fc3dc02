"""Draw pictures: python sample.py text "a red apple, 3d style" [--num-images 4 --seed 0 ...].

`unclip text ...` is the same.
"""

import sys

try:
    from unclip_jax.cli.main import run
    from unclip_jax.cli.sample import main
except KeyboardInterrupt:  # before `run` could say it
    print("stopped", file=sys.stderr)
    sys.exit(130)

if __name__ == "__main__":
    run(main, sys.argv[1:])
