"""The policy: a base model with a LoRA adapter, and the ways to run it that learner and sampler share."""

from reinforge.policy.quantized import import_bitsandbytes

import_bitsandbytes()  # with care, before one of the modules here imports PEFT, which imports it without
