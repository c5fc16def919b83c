"""The reward lab: reward functions on completions whose worth is known, before a model is trained on them."""
