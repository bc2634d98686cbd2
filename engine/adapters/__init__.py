"""Engines inside other programs' loops: diffusers, modular diffusers, ComfyUI, vLLM-Omni, k-diffusion."""
