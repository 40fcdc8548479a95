"""vLLM's own scheduler and LoRA caches without a model: what runs in vLLM's interpreter for ``engine="vllm"``.

Only `twin.headless.frames` is for both sides; the other modules import vLLM. Paths in comments are inside the `vllm`
package, version 0.32.
"""
