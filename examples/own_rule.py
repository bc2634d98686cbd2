"""A rule of your own: towards the species and away from its genus, stronger the more noise there is; then a weak branch."""

from pathlib import Path

from segue import CFG, Branch, Engine, Guidance, SkipLayer, Term, Weight, Window

OUT = Path("out/examples")
OUT.mkdir(parents=True, exist_ok=True)

engine = Engine.from_pretrained("herbarium")

# CFG's usual reference is no condition; here it is the superclass. A scale may be a function of the noise level.
away_from_genus = CFG(lambda sigma: 1 + sigma, condition="parent", window=Window.sigma(0.5, 1.0))
weak = SkipLayer(0.1, layers=(7, 8), window=Window.sigma(0.0, 0.5))
rule = away_from_genus + weak

print(engine.plan(rule, steps=10))  # who runs when, with which weights, and what it costs
engine.sample(labels=[3], guidance=rule, steps=10, seeds=[7]).images[0].save(OUT / "own-rule.png")

# The same first term from its parts: a branch, an added weight (0 is off), a window.
by_hand = Guidance((Term(Branch("parent"), Weight(function=lambda sigma: sigma), Window.sigma(0.5, 1.0)),)) + weak
same = engine.sample(labels=[3], guidance=by_hand, steps=10, seeds=[7]).latents
print("made of its parts it draws the same:", bool((same == engine.sample([3], rule, steps=10, seeds=[7]).latents).all()))
