"""How well a model predicts a text: perplexity, and how far its predictions are from another's, as llama.cpp measures.

Token ids and numbers only; files of text and what is printed are the command's business.
"""
