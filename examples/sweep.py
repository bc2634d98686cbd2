"""A sweep over scales: one row for each, the same classes and seeds in every row."""

from pathlib import Path

from PIL import Image

from segue import CFG, Engine

OUT = Path("out/examples")
OUT.mkdir(parents=True, exist_ok=True)
LABELS, SCALES = [0, 5, 9], [1.0, 1.5, 4.0]

engine = Engine.from_pretrained("herbarium")
rows = []
for scale in SCALES:
    run = engine.sample(LABELS, CFG(scale), steps=10, seeds=0)  # 0, 1, 2: the noise is the same at every scale
    rows.append(run.images)
    print(f"scale {scale:g}: {run.plan.cost.relative:.2f}x unguided, standard deviation {run.latents.std():.3f}")

width, height = rows[0][0].size
sheet = Image.new("RGB", (width * len(LABELS), height * len(SCALES)))
for y, images in enumerate(rows):
    for x, image in enumerate(images):
        sheet.paste(image, (x * width, y * height))
sheet.resize((sheet.width * 3, sheet.height * 3), Image.Resampling.NEAREST).save(OUT / "sweep.png")
