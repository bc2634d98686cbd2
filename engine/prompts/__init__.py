"""The engine for prompts: encoding, planning, parity with diffusers, VAE, saved pipelines, live velocity."""
