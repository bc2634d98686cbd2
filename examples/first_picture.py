"""Leaves from the bundled model: without guidance, with classifier-free guidance, with segmented guidance."""

from segue import Engine

engine = Engine.from_pretrained("herbarium")
for rule in ("none", "cfg", "sgg"):  # with the numbers that were chosen for this model
    run = engine.sample(labels=[0, 9], guidance=rule, steps=16, seeds=[0, 1])
    files = run.save(f"out/examples/{rule}", force=True)  # each carries how it was made: segue sample --from FILE
    print(f"{rule}: {run.plan.cost.relative:.2f} times the cost of unguided sampling, {files[0]}")
