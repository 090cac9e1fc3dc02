"""The mathematics of diffusion: pure functions and frozen tables, no parameters, no networks.

`schedule` the noise levels · `spacing` which of them are visited · `process` q(x_t | x_0), the
posterior and eps/x0/v · `losses` what a network is trained on, `weighting` how much each level
counts · `guidance` what is done to its output · `sampler_config`, `samplers` how pictures come out,
with the steps of `steps` and `solvers` · `inversion` how they go back in · `analytic` the best
reverse variances.

Notation of every module: abar_t is the product of (1 - beta_s) for s <= t, t = 0 is the least
noise, and x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps.
"""
