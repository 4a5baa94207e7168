"""`qllama bench`: llama-bench's tests, options and output, and where each operation stands under the machine's roof."""
