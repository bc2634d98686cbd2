"""Segue's node for ComfyUI: copy this folder to ``custom_nodes/segue`` of a ComfyUI whose Python has Segue."""

from segue.engine.adapters.comfy_v3 import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
