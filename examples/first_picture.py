"""Leaves from the bundled model: without guidance, with classifier-free guidance, with segmented guidance."""

from pathlib import Path

from segue import Engine, parse_rule

OUT = Path("out/examples")
OUT.mkdir(parents=True, exist_ok=True)

engine = Engine.from_pretrained("herbarium")
for name in ("none", "cfg", "sgg"):
    rule = parse_rule(name, engine.spec)  # with the numbers that were chosen for this model
    run = engine.sample(labels=[0, 9], guidance=rule.guidance, steps=16, seeds=[0, 1])
    for label, image in zip(run.labels, run.images, strict=True):
        image.save(OUT / f"{name}-class{label}.png")
    print(f"{rule.text}: {run.plan.cost.relative:.2f} times the cost of unguided sampling")
