"""The sampler: one continuous-batching engine for rollouts and for serving."""

import reinforge.policy  # noqa: F401 - imports bitsandbytes with care, before a module here imports PEFT
