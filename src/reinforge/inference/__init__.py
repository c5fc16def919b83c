"""The sampler: one continuous-batching engine for rollouts and for serving."""
