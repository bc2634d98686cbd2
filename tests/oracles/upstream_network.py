"""diffusers' own transformer in the place of the engine's network: what is left to differ is all but the network."""

from contextlib import nullcontext

import torch
from nag_processor import nag_processors

from segue.engine.rules.dropped_blocks import DropBlocks
from segue.engine.running.program import Program
from segue.models.mmdit_rows import MMDiTRows


def use_upstream_network(engine, monkeypatch, separately: bool = False):
    """Evaluate every branch by diffusers' transformer, at the times that our rows were loaded with.

    Whole branches are one batch, uncond first, as in the pipeline, unless ``separately``.  NAG needs them apart: a conditional
    row then has the negative prompt beside it, in the second half of the batch.
    """
    load, upstream = MMDiTRows.load, engine.pipe.transformer

    def noted_load(rows, times, conditions):
        rows.given = times.float(), conditions
        load(rows, times, conditions)

    def branch_outputs(program, live):
        (rows,), plan = program.rows.values(), program.plan
        times, conditions = rows.given
        time, x = times[program.time_table.lookup[program.call, 0]], program.x.to(engine.dtype)
        place, normalized = int(program.call[0]), any(plan.branches[i].is_text for i in live)

        def call(members, skip=None):
            named = [plan.branches[i].condition for i in members]
            guided = normalized and named == ["cond"]
            texts = [conditions[plan.conditions.index(name)] for name in (*named, "uncond")[: len(named) + guided]]
            with nag_processors(upstream, *plan.attention[place]) if guided else nullcontext():
                out = upstream(
                    hidden_states=torch.cat([x] * len(texts)),
                    timestep=torch.cat([time] * len(texts)),
                    encoder_hidden_states=torch.cat([text.context for text in texts]),
                    pooled_projections=torch.cat([text.pooled for text in texts]),
                    skip_layers=skip,
                    return_dict=False,
                )[0]
            return dict(zip(members, out.chunk(len(texts)), strict=False))

        live = plan.outputs(live)
        whole = [i for i in live[::-1] if plan.branches[i].network is None]
        outputs = {}
        for members in [[i] for i in whole] if separately else [whole]:
            outputs |= call(members)
        for i in set(live) - set(whole):
            outputs |= call([i], list(layers_left_out(plan, i, place)))
        return [outputs[i] for i in live]

    monkeypatch.setattr(MMDiTRows, "load", noted_load)
    monkeypatch.setattr(Program, "branch_outputs", branch_outputs)


def layers_left_out(plan, branch, call):
    network, step = plan.branches[branch].network, int(plan.steps[call])
    return network.dropped(plan.spec.depth, step + 1)[step] if isinstance(network, DropBlocks) else network.layers
