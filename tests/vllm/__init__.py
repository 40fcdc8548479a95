"""The twin's engines against vLLM itself."""
