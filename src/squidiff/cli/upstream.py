"""Upstream's own commands, with its flags: what the scripts at the root run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from squidiff.cli.app import ending_with_a_sentence
from squidiff.cli.show import progress, refuse_overwriting, say
from squidiff.config import InputError
from squidiff.files import require_writable


class _Parser(argparse.ArgumentParser):
    """argparse, but a wrong flag is one sentence."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise InputError(f"{message}; {self.prog} --help lists the flags")


def train_squidiff(tokens: Sequence[str] | None = None) -> None:
    """`python train_squidiff.py`: trains upstream's network with upstream's flags."""
    from squidiff.legacy.flags import FLAGS, in_upstreams_flags, settings

    parser = _Parser(prog="train_squidiff.py", description="Train upstream's network, with upstream's flags and files.")
    for name, known in FLAGS.items():
        kind = _truth if isinstance(known.default, bool) else type(known.default)
        parser.add_argument(f"--{name}", type=kind, help=f"{known.help} (default: {known.default!r})")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, batches and noise (default: 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, or a name that torch knows (default: auto)")
    with ending_with_a_sentence("the same command goes on where the last save was"):
        args = vars(parser.parse_args(sys.argv[1:] if tokens is None else tokens))
        chosen = [name for name in FLAGS if args[name] is not None]
        values = {name: known.default if args[name] is None else args[name] for name, known in FLAGS.items()}
        if not (values["logger_path"] and values["data_path"]):
            raise InputError("train_squidiff.py needs --logger_path FOLDER and --data_path CELLS.h5ad")
        from squidiff.legacy.train import LOSS_PLOT, train
        from squidiff.report.plots import save, training_loss
        from squidiff.report.tables import training_metrics

        try:
            config = settings(values, chosen, say, seed=args["seed"])
            with progress("training", config.n_train_steps) as advance:
                model, folder = train(
                    values, config, say, device=args["device"], on_record=lambda r: advance(r.step, r.live)
                )
        except InputError as error:
            raise in_upstreams_flags(error) from error
        save(training_loss(training_metrics(folder), "eps"), folder / LOSS_PLOT)
        say(f"trained on {model.device} in {model.provenance['seconds']:g} s: {model.history[-1]}")
        say(f"model.pt, its averages and {LOSS_PLOT}: {folder}")


def _truth(text: str) -> bool:
    """`False` is False: upstream's type=bool took every text for True."""
    if text.lower() in ("true", "t", "yes", "y", "1"):
        return True
    if text.lower() in ("false", "f", "no", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")


def sample_squidiff(tokens: Sequence[str] | None = None) -> None:
    """`python sample_squidiff.py`: generates a cell from the latent of each cell of a file."""
    parser = _Parser(prog="sample_squidiff.py", description="Generate cells with a checkpoint of upstream's network.")
    parser.add_argument("--model_path", type=Path, help="the checkpoint, model.pt or model_0.9999.pt")
    parser.add_argument("--data_path", type=Path, help="the .h5ad file of the cells to encode; drugs: SMILES and dose")
    parser.add_argument(
        "--control_data_path",
        type=Path,
        help="drugs: the .h5ad file of control cells, paired by row (default: the cells of --data_path themselves)",
    )
    parser.add_argument("--gene_size", type=int, help="number of genes, to be checked (read from the checkpoint)")
    parser.add_argument("--steps", type=int, help="fewer steps, such as 20 (default: upstream's 1,000, exactly)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, or a name that torch knows (default: auto)")
    parser.add_argument(
        "--out",
        type=Path,
        help="the .h5ad file to write (default: beside the checkpoint, named after files, steps and seed)",
    )
    with ending_with_a_sentence("nothing was written"):
        args = parser.parse_args(sys.argv[1:] if tokens is None else tokens)
        if args.model_path is None or args.data_path is None:
            raise InputError(
                "sample_squidiff.py needs a checkpoint and cells: --model_path MODEL.pt --data_path CELLS.h5ad"
            )
        from squidiff.data.table import write_cells
        from squidiff.legacy.sample import N_STEPS, sample_file

        steps = args.steps if args.steps is not None else N_STEPS
        name = f"{args.data_path.stem}_{args.model_path.stem}_{steps}_steps_seed_{args.seed}.h5ad"
        out = args.out or args.model_path.parent / name
        if out.suffix != ".h5ad":
            raise InputError(f"--out is {out}: name an .h5ad file")
        refuse_overwriting(args.model_path, args.data_path, args.control_data_path, out)
        require_writable(out)
        with progress("sampling") as advance:
            predicted = sample_file(
                args.model_path,
                args.data_path,
                args.control_data_path,
                say,
                gene_size=args.gene_size,
                steps=steps,
                seed=args.seed,
                device=args.device,
                on_step=lambda i, n: advance(i, total=n),
            )
        write_cells(out, predicted)
        say(f"{predicted.n_obs:,} predicted cells of {predicted.n_vars:,} genes: {out}")
