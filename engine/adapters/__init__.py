"""Engines inside other libraries' loops: diffusers, modular diffusers, ComfyUI, k-diffusion."""
