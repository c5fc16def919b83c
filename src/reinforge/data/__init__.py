"""From files to prompts: dataset.py (rows -> Example), split.py, order.py, render.py (Example -> Prompt)."""
