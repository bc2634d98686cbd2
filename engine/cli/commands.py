"""``segue sample``, ``compare``, ``plan``, ``guidance`` and ``doctor``: what the commands accept.

Modules that import torch are imported inside the commands, so that ``segue --help`` does not wait for them.
"""

import typer

from . import options as o


def register(app: typer.Typer) -> None:
    """Add the commands of this folder to ``app``."""
    for command in (sample, compare, plan, guidance, doctor):
        app.command()(command)


def sample(
    model: o.ModelOption = None,
    family: o.FamilyOption = None,
    heads: o.HeadsOption = None,
    branch_head: o.BranchOption = None,
    revision: o.RevisionOption = None,
    variant: o.VariantOption = None,
    t5: o.T5Option = None,
    vae: o.VAEOption = None,
    weak: o.WeakOption = None,
    adapter: o.AdapterOption = None,
    adapter_scale: o.AdapterScaleOption = None,
    device: o.DeviceOption = None,
    dtype: o.DtypeOption = None,
    linears: o.LinearsOption = None,
    attention: o.AttentionOption = None,
    upscale: o.UpscaleOption = None,
    guidance: o.RuleOption = None,
    scale: o.ScaleOption = None,
    weight: o.WeightOption = None,
    layers: o.LayersOption = None,
    switch: o.SwitchOption = None,
    exit_layer: o.ExitOption = None,
    window: o.WindowOption = None,
    delta: o.DeltaOption = None,
    refresh: o.RefreshOption = None,
    calibration: o.CalibrationOption = None,
    steps: o.StepsOption = None,
    solver: o.SolverOption = None,
    schedule: o.ScheduleOption = None,
    classes: o.ClassesOption = None,
    seeds: o.SeedsOption = None,
    count: o.CountOption = None,
    max_batch: o.MaxBatchOption = None,
    check_finite: o.FiniteOption = None,
    prompt: o.PromptOption = None,
    negative_prompt: o.NegativeOption = None,
    height: o.HeightOption = None,
    width: o.WidthOption = None,
    image: o.ImageOption = None,
    strength: o.StrengthOption = None,
    out: o.OutOption = None,
    kind: o.OutputOption = None,
    grid: o.GridOption = None,
    columns: o.ColumnsOption = None,
    zoom: o.ZoomOption = None,
    force: o.ForceOption = False,
    json: o.JsonOption = False,
    picture: o.FromOption = None,
    rank: o.RankOption = None,
    world: o.WorldOption = None,
) -> None:
    """Draw pictures: by default of up to 24 classes with segmented guidance, into the folder out.

    Into a file .npz go samples for an evaluation suite, --count in all, of the classes in turn; the same command goes on where
    it was interrupted.

    [bold]Examples[/bold]

    segue sample

    segue sample -g cfg --scale 4 --classes 3 --count 8

    segue sample -g slg --layers 7-9 --classes "Acerites alba,Ficaria" --seeds 5 --out leaves.png

    segue sample -g "cfg:scale=4,window=steps:1-14 + slg:weight=2,layers=7,8,window=steps:15-28"

    segue sample -g cfg:scale=1,2,4 --classes 3 --seeds 0,0,0

    segue sample --model sd3.5-medium/ --prompt "a storefront" --prompt "a cat" --num-images 2 --height 768 --width 1024

    segue sample --model sd3.5-medium/ -g slg --prompt "a cat, oil on canvas" --image cat.png --strength 0.6

    segue sample --model SiT-XL-2-256x256.pt --family sit --vae sd-vae-ft-ema/ -g cfg --classes 207

    segue sample --model mine.safetensors --weak smaller.safetensors -g ag:weight=1

    segue sample --adapter sgg --classes 3 --count 8

    segue sample --calibration sgg --classes 3 --count 8

    segue sample --model owner/name --variant fp16 --no-t5 --prompt "a cat" --output latent

    segue sample --from out/003-acerites-dentata-seed3.png --out again.png

    segue sample --from out/003-acerites-dentata-seed3.png -g cfg:scale=2 --out by-cfg.png

    segue sample --count 50000 --out samples.npz --rank 0 --world 4
    """
    from .redraw import redraw
    from .sample import draw_pictures
    from .stream import archive_of, refuse_shards, write_samples

    source = o.Source.of(locals())
    rule = o.RuleOptions.of(
        guidance,
        calibration,
        scale=scale,
        weight=weight,
        layers=layers,
        switch=switch,
        layer=exit_layer,
        window=window,
        delta=delta,
        refresh=refresh,
    )
    run = o.RunOptions(steps, solver, schedule, classes, seeds, count, max_batch, check_finite)
    text = o.PromptOptions(prompt, negative_prompt, height, width, image, strength)
    output = o.Output(out, grid, columns, zoom, json, kind, force)
    if picture is None and (archive := archive_of(out)):
        write_samples(archive, source, rule, run, output, text, rank, world)
        return
    refuse_shards(rank, world)
    if picture is not None:
        redraw(picture, source, rule, run, output, text)
    else:
        draw_pictures(source, rule, run, output, text)


def compare(
    rules: o.RulesOption = None,
    model: o.ModelOption = None,
    family: o.FamilyOption = None,
    heads: o.HeadsOption = None,
    branch_head: o.BranchOption = None,
    revision: o.RevisionOption = None,
    variant: o.VariantOption = None,
    t5: o.T5Option = None,
    vae: o.VAEOption = None,
    weak: o.WeakOption = None,
    adapter: o.AdapterOption = None,
    adapter_scale: o.AdapterScaleOption = None,
    calibration: o.CalibrationOption = None,
    device: o.DeviceOption = None,
    dtype: o.DtypeOption = None,
    linears: o.LinearsOption = None,
    attention: o.AttentionOption = None,
    steps: o.StepsOption = None,
    solver: o.SolverOption = None,
    schedule: o.ScheduleOption = None,
    classes: o.ClassesOption = None,
    seeds: o.SeedsOption = None,
    count: o.CountOption = None,
    max_batch: o.MaxBatchOption = None,
    check_finite: o.FiniteOption = None,
    prompt: o.PromptOption = None,
    negative_prompt: o.NegativeOption = None,
    height: o.HeightOption = None,
    width: o.WidthOption = None,
    image: o.ImageOption = None,
    strength: o.StrengthOption = None,
    out: o.SheetOption = None,
    zoom: o.ZoomOption = None,
    force: o.ForceOption = False,
    json: o.JsonOption = False,
    sheet: o.FromSheetOption = None,
) -> None:
    """Draw the same pictures by several rules, one labelled row each, with cost and seconds; a JSON file goes beside it.

    With --adapter the last row is drawn without guidance by the network that has the adapter in its weights, with --calibration
    by a rule that is calibrated.

    [bold]Examples[/bold]

    segue compare --out demo.png

    segue compare -g none -g cfg:scale=2 -g cfg:scale=4 --classes Betulina --count 3

    segue compare --model sd3.5-medium/ --prompt "a storefront with a sign" --seeds 1-3

    segue compare --adapter sgg --classes 0-7

    segue compare --from out/compare.png --out again.png

    segue compare -g cfg -g "cfg:scale=3,window=fraction:0,0.5 + slg:weight=1,layers=7" --json
    """
    from .compare import compare_rules
    from .redraw import refuse_calibration
    from .redraw_sheet import redraw_sheet

    run = o.RunOptions(steps, solver, schedule, classes, seeds, count, max_batch, check_finite)
    text = o.PromptOptions(prompt, negative_prompt, height, width, image, strength)
    source = o.Source.of(locals())
    output = o.Output(out, zoom=zoom, json=json, force=force)
    if sheet is not None:
        refuse_calibration(calibration)
        redraw_sheet(sheet, rules, source, run, output, text)
    else:
        compare_rules(rules, source, run, output, text, calibration)


def plan(
    model: o.PlanModelOption = None,
    family: o.FamilyOption = None,
    heads: o.HeadsOption = None,
    branch_head: o.BranchOption = None,
    revision: o.RevisionOption = None,
    variant: o.VariantOption = None,
    weak: o.WeakOption = None,
    attention: o.AttentionOption = None,
    guidance: o.RuleOption = None,
    scale: o.ScaleOption = None,
    weight: o.WeightOption = None,
    layers: o.LayersOption = None,
    switch: o.SwitchOption = None,
    exit_layer: o.ExitOption = None,
    window: o.WindowOption = None,
    delta: o.DeltaOption = None,
    refresh: o.RefreshOption = None,
    calibration: o.CalibrationOption = None,
    steps: o.StepsOption = None,
    solver: o.SolverOption = None,
    schedule: o.ScheduleOption = None,
    height: o.HeightOption = None,
    width: o.WidthOption = None,
    json: o.JsonOption = False,
) -> None:
    """Show which branches run when, with which weights, and what it costs, without drawing.

    [bold]Examples[/bold]

    segue plan

    segue plan -g cfg --scale 4 --window sigma:0.3,0.9 --steps 50 --solver heun

    segue plan --calibration sgg

    segue plan --model sd3.5-medium --height 768 --width 1344

    segue plan --model DiT-XL/2 -g sgg:scale=4,weight=1.5,layers=10-12,switch=0.6 --json
    """
    from .show_plan import show_plan

    rule = o.RuleOptions.of(
        guidance,
        calibration,
        scale=scale,
        weight=weight,
        layers=layers,
        switch=switch,
        layer=exit_layer,
        window=window,
        delta=delta,
        refresh=refresh,
    )
    text = o.PromptOptions(height=height, width=width)
    show_plan(o.Source.of(locals()), rule, o.RunOptions(steps, solver, schedule), text, json)


def guidance(
    model: o.PlanModelOption = None,
    family: o.FamilyOption = None,
    heads: o.HeadsOption = None,
    branch_head: o.BranchOption = None,
    weak: o.WeakOption = None,
    steps: o.StepsOption = None,
    json: o.JsonOption = False,
) -> None:
    """List every named rule: its formula, its cost on a model, its source, and whether it is the published one.

    [bold]Examples[/bold]

    segue guidance

    segue guidance --model sd3.5-medium
    """
    from .list_rules import list_rules

    list_rules(o.Source.of(locals()), steps, json)


def doctor(verbose: o.VerboseOption = False, json: o.JsonOption = False) -> None:
    """Show in ten lines what is installed, what engines run on, which kernels are chosen, and what is missing.

    [bold]Examples[/bold]

    segue doctor

    segue doctor --verbose

    segue doctor --json
    """
    from .doctor import show_report

    show_report(json, verbose)
