"""Sampling of on-policy methods with vLLM (``method.sampler: vllm``)."""

from alignkit_vllm.sampler import VLLMSampler as VLLMSampler
