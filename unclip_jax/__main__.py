"""python -m unclip_jax VERB ..."""

from unclip_jax.cli.main import main

main()
