"""Branches with networks of their own: autoguidance, and CFG whose unconditional branch is a smaller network."""

from pathlib import Path

from segue import AutoGuidance, Branch, Engine, Guidance, Term, Weight

OUT = Path("out/examples")
OUT.mkdir(parents=True, exist_ok=True)

# The bundled model brings its weak sibling; of files: Engine.from_pretrained("a.safetensors", models={"weak": "b.safetensors"})
engine = Engine.from_pretrained("herbarium")
print(engine.explain())

small_unconditional = Guidance((Term(Branch("uncond", model="weak"), Weight(0.5)),))
for name, rule in {"autoguidance": AutoGuidance(0.2), "small-unconditional": small_unconditional}.items():
    run = engine.sample(labels=[3, 4], guidance=rule, steps=10, seeds=[0, 1])
    run.images[0].save(OUT / f"{name}.png")
    print(f"{name}: {run.plan.cost.relative:.2f}x the cost of unguided sampling")
