"""From logits to a token: llama.cpp's samplers, their order and their defaults.

`samplers.py` says what each one does, `order.py` which of them run, `chain.py` runs them. The first two do
without NumPy, because the command line reads its flags from them.
"""
