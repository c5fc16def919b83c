"""The policy: a base model with a LoRA adapter, and the ways to run it that learner and sampler share."""
